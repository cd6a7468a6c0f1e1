"""A folder of images with captions (captions.py), cropped square for training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from paella_jax.config import UserError
from paella_jax.data.captions import CaptionedFile, list_captioned, list_images
from paella_jax.data.listing import suffixes
from paella_jax.data.sizes import AESTHETIC_SCORE
from paella_jax.data.split import Chosen, Held, choose
from paella_jax.images.decode import ImageError, shown_size
from paella_jax.images.modes import WHITE, parse_colour
from paella_jax.images.notes import Notes
from paella_jax.images.read import read_rgb

MAX_BROKEN_FRACTION = 0.1
CROPS = ("center", "random")
MOST_PIXELS = 2**27  # of an image that is resized to cover a crop
PROBED = 256  # samples whose captions and headers are read before the first step
# What a damaged image raises, and what a caption that is no text raises.
UNREADABLE = (OSError, ValueError)


class BrokenDataError(UserError, RuntimeError, ValueError):
    """Too many samples cannot be read; the message names the last one and the reason."""


@dataclass
class FolderSource:
    """Images whose short side becomes `resize` pixels, cropped to `image_size` pixels.

    `source[i]` is always cropped at the centre, with its first caption; `source.draw(i, rng)` is
    what training reads: any of its captions, and the random crop and flip that were asked for.

    What belongs to the folder and what was left out is told. An unreadable sample is replaced by
    the next readable one, counted and reported; when more than one in ten is broken, the run stops.
    A missing file and a missing or empty caption count as broken.

    Attributes:
      folder: laid out as captions.py describes.
      image_size: pixels of the square sample.
      split: "train", or anything else for the validation images.
      crop: "center" or "random".
      resize: pixels of the short side before the crop; 0 means `image_size`.
      flip: mirror half of the drawn samples left to right.
      captions: False reads no captions and needs none; they are then empty.
      caption_lines: every line of a caption's text file is a caption of its own.
      background: the colour behind transparent images.
      held: which images are held back for validation.
      broken: positions of the samples found broken so far.

    Raises:
      ValueError: no such folder, no images or captions in it, too many missing or unreadable files,
        an unknown crop or colour, or a `resize` below `image_size`.
    """

    folder: str
    image_size: int
    split: str = "train"
    crop: str = "center"
    resize: int = 0
    flip: bool = False
    captions: bool = True
    caption_lines: bool = False
    background: str = WHITE
    held: Held = field(default_factory=Held)
    broken: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        root = Path(self.folder)
        if not self.folder or not root.is_dir():
            raise ValueError(f"data.folder {self.folder!r} is not a folder of images with captions")
        check_cropping(self.crop, self.resize, self.image_size)
        check_background(self.background)
        self.notes = Notes(f"data.folder {self.folder}")
        self.left_out: Counter[str] = Counter()
        chosen = choose(root, self._list, self.held, self.split == "train", self.left_out)
        self.samples = chosen.samples
        if not self.samples:
            raise ValueError(f"data.folder {self.folder} has no images ({sorted(suffixes())})")
        self._tell(chosen)
        self._find_missing()
        self._probe()

    def _list(self, folder: Path) -> list[CaptionedFile]:
        column = self.held.column
        if self.captions:
            return list_captioned(folder, self.left_out, column, self.caption_lines)
        return list_images(folder, self.left_out, column)

    def _tell(self, chosen: Chosen) -> None:
        """One line: how many images, why these, and what else was there."""
        use = "training" if self.split == "train" else "validation"
        others = ", ".join(f"{count} {kind}" for kind, count in sorted((+self.left_out).items()))
        print(
            f"data.folder {self.folder}: {len(chosen.samples)} images for {use} ({chosen.how})"
            + (f"; left out: {others}" if others else ""),
            flush=True,
        )

    def _find_missing(self) -> None:
        """Counts what is known to be missing before anything is read."""
        for position, sample in enumerate(self.samples):
            reason = _missing(sample)
            if reason is None:
                continue
            print(f"skipping broken sample {sample.image}: {reason}", flush=True)
            self.broken.add(position)
            if self._too_many():
                raise ValueError(
                    f"data.folder {self.folder}: more than {len(self.broken) - 1} of "
                    f"{len(self.samples)} samples lack their image or caption, the last: "
                    f"{sample.image} ({reason}); clean the folder"
                )

    def _probe(self) -> None:
        """Reads some captions and headers, so that a folder of unreadable ones ends here."""
        places = np.linspace(0, len(self.samples) - 1, min(PROBED, len(self.samples)))
        several = failed = 0
        for position in sorted(set(places.round().astype(int).tolist()) - self.broken):
            sample = self.samples[position]
            try:
                several += not self.caption_lines and "\n" in sample.read_caption()
                shown_size(sample.image, self.notes)
            except UNREADABLE as error:
                failed += 1
                self._skip(position, error)
                if failed > most_broken(len(places)):
                    last = f"{sample.image} ({error})"
                    raise self._broken(failed, len(places), last) from error
        if several:
            print(
                f"{self.notes.owner}: {several} of {len(places)} captions have several lines, each "
                "text is one caption; --config.data.caption_lines=True makes each line one",
                flush=True,
            )

    def _too_many(self) -> bool:
        count, of = len(self.broken), len(self.samples)
        return count > most_broken(of) or count == of

    @property
    def files(self) -> list[Path]:
        """The images of this split."""
        return [sample.image for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Sample: `image` uint8 [image_size, image_size, 3], `caption` str, `index` int, and
        aMUSEd's `micro_conds` float32 [5]: the file's width and height, the crop's top and left
        in the resized image, and a fixed aesthetic score."""
        return self._sample(int(index), None)

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The sample of `source[index]`, cropped and flipped by `rng` where that was asked for."""
        return self._sample(int(index), rng)

    def _sample(
        self, index: int, rng: np.random.Generator | None, size: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """The sample at `index`, or the next readable one; `size` (height, width) if not square."""
        height, width = size or (self.image_size, self.image_size)
        enlarge = max(1.0, self.resize / self.image_size)
        for offset in range(len(self.samples)):
            position = (index + offset) % len(self.samples)
            if position in self.broken:
                continue
            sample = self.samples[position]
            try:
                captions = sample.read_captions()
                original = read_rgb(sample.image, self.background, self.notes)
                image = cover(original, round(height * enlarge), round(width * enlarge))
            except UNREADABLE as error:
                self._skip(position, error)
                continue
            crop_rng = rng if self.crop == "random" else None
            flip_rng = rng if self.flip else None
            # Only where there is a choice: the chance of other samples stays as it is.
            chance = rng if len(captions) > 1 else None
            choice = 0 if chance is None else int(chance.integers(len(captions)))
            cropped = crop_and_flip(image, original.size, (height, width), crop_rng, flip_rng)
            return {"caption": captions[choice], "index": index} | cropped
        raise BrokenDataError(f"no readable sample in {self.folder}")

    def _skip(self, position: int, error: Exception) -> None:
        """Counts a broken sample. Raises BrokenDataError where there are too many."""
        self.broken.add(position)
        file = self.samples[position].image
        reason = str(error).removeprefix(f"{file} ")  # which image errors begin with
        print(f"skipping broken sample {file}: {reason}", flush=True)
        if self._too_many():
            raise self._broken(len(self.broken), len(self.samples), f"{file} ({reason})") from error

    def _broken(self, count: int, of: int, last: str) -> BrokenDataError:
        return BrokenDataError(
            f"{count} of {of} samples in {self.folder} are broken, the last: {last}; clean the "
            "folder"
        )


def most_broken(of: int) -> float:
    """How many of so many samples may be broken."""
    return max(MAX_BROKEN_FRACTION * of, 3)


def _missing(sample: CaptionedFile) -> str | None:
    if sample.caption is None:
        return "no caption"
    if isinstance(sample.caption, Path) and _is_empty(sample.caption):
        return f"no caption: {sample.caption.name} is empty"
    return None if sample.image.is_file() else "no such file"


def _is_empty(file: Path) -> bool:
    """Whether a text file is empty but for line ends; longer ones are found when they are read."""
    try:
        return file.stat().st_size <= 4 and not file.read_bytes().strip(b"\xef\xbb\xbf \r\n\t")
    except OSError:
        return False  # reading it says why


def check_background(background: str) -> None:
    """Raises ValueError for what is no colour, naming the setting."""
    try:
        parse_colour(background)
    except ValueError as error:
        raise ValueError(f"data.{error}") from error


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resized (bicubic, antialiased) to just cover height x width pixels.

    Raises:
      ImageError: it is so long and narrow that it would become too large.
    """
    scale = max(width / image.width, height / image.height)
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    if size[0] * size[1] > max(MOST_PIXELS, image.width * image.height):
        raise ImageError(
            f"an image of {image.width}x{image.height} pixels is too narrow: covering "
            f"{width}x{height} it would have {size[0]}x{size[1]}"
        )
    return image.resize(size, Image.Resampling.BICUBIC)


def check_cropping(crop: str, resize: int, image_size: int) -> None:
    """Raises ValueError for an unknown crop, or a size before the crop below that after it."""
    if crop not in CROPS:
        raise ValueError(f"data.crop must be one of {', '.join(CROPS)}, got {crop!r}")
    if resize and resize < image_size:
        raise ValueError(
            f"data.resize {resize} is smaller than data.image_size {image_size}; "
            "0 resizes to the image size"
        )


def crop_and_flip(
    image: Image.Image,
    original_size: tuple[int, int],
    size: tuple[int, int],
    crop_rng: np.random.Generator | None = None,
    flip_rng: np.random.Generator | None = None,
) -> dict[str, np.ndarray]:
    """A crop of a resized image, and aMUSEd's micro-conditions of it.

    Args:
      image: at least as large as the crop.
      original_size: width and height of the image before it was resized.
      size: height and width of the crop.
      crop_rng: chooses the place of the crop; None is the centre.
      flip_rng: mirrors half of the crops left to right; None mirrors none.

    Returns:
      `image` uint8 [height, width, 3] and `micro_conds` float32 [5].
    """
    height, width = size
    spare = (image.width - width, image.height - height)
    left, top = (s // 2 if crop_rng is None else int(crop_rng.integers(s + 1)) for s in spare)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.uint8)
    if flip_rng is not None and flip_rng.random() < 0.5:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    conds = np.array([*original_size, top, left, AESTHETIC_SCORE], np.float32)
    return {"image": pixels, "micro_conds": conds}
