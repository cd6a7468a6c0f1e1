"""A folder of images with captions (captions.py), cropped square for training."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from paella_jax.data.captions import SUFFIXES, CaptionedFile, list_captioned, list_images
from paella_jax.data.sizes import AESTHETIC_SCORE

VALIDATION_EVERY = 20  # one image in twenty is kept for validation
MAX_BROKEN_FRACTION = 0.1
CROPS = ("center", "random")
# What PIL raises for damaged files, and what a caption that is no text raises.
UNREADABLE = (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError)


@dataclass
class FolderSource:
    """Images whose short side becomes `resize` pixels, cropped to `image_size` pixels.

    `source[i]` is always cropped at the centre; `source.draw(i, rng)` is what training reads, with
    the random crop and flip that were asked for.

    An unreadable sample is replaced by the next readable one, counted and reported; when more than
    one in ten is broken, the run stops. A missing file or caption counts as broken.

    Attributes:
      folder: see captions.py for its layout.
      image_size: pixels of the square sample.
      split: "train", or anything else for the validation images.
      crop: "center" or "random".
      resize: pixels of the short side before the crop; 0 means `image_size`.
      flip: mirror half of the drawn samples left to right.
      captions: False reads no captions and needs none; they are then empty.
      broken: positions of the samples found broken so far.

    Raises:
      ValueError: no such folder, no images or captions in it, too many missing files, an unknown
        crop, or a `resize` below `image_size`.
    """

    folder: str
    image_size: int
    split: str = "train"
    crop: str = "center"
    resize: int = 0
    flip: bool = False
    captions: bool = True
    broken: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        root = Path(self.folder)
        if not self.folder or not root.is_dir():
            raise ValueError(f"data.folder {self.folder!r} is not a folder of images with captions")
        check_cropping(self.crop, self.resize, self.image_size)
        found = list_captioned(root) if self.captions else list_images(root)
        if not found:
            raise ValueError(f"data.folder {self.folder} has no images ({sorted(SUFFIXES)})")
        held = lambda i: i % VALIDATION_EVERY == VALIDATION_EVERY - 1
        chosen = [s for i, s in enumerate(found) if held(i) == (self.split != "train")]
        self.samples = chosen or found
        self._find_missing()

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

    def _too_many(self) -> bool:
        limit = max(MAX_BROKEN_FRACTION * len(self.samples), 3)
        return len(self.broken) > limit or len(self.broken) == len(self.samples)

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
                caption = sample.read_caption()
                original = open_upright(sample.image)
            except UNREADABLE as error:
                self._skip(position, error)
                continue
            image = cover(original, round(height * enlarge), round(width * enlarge))
            crop_rng = rng if self.crop == "random" else None
            flip_rng = rng if self.flip else None
            cropped = crop_and_flip(image, original.size, (height, width), crop_rng, flip_rng)
            return {"caption": caption, "index": index} | cropped
        raise RuntimeError(f"no readable sample in {self.folder}")

    def _skip(self, position: int, error: Exception) -> None:
        self.broken.add(position)
        file = self.samples[position].image
        print(f"skipping broken sample {file}: {error}", flush=True)
        if self._too_many():
            raise RuntimeError(
                f"{len(self.broken)} of {len(self.samples)} samples in {self.folder} are "
                f"broken, the last: {file} ({error}); clean the folder"
            ) from error


def _missing(sample: CaptionedFile) -> str | None:
    if sample.caption is None:
        return "no caption"
    return None if sample.image.is_file() else "no such file"


def open_upright(file: Path) -> Image.Image:
    """RGB in the file's own size, turned as its camera says."""
    with Image.open(file) as opened:
        return ImageOps.exif_transpose(opened).convert("RGB")


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resized (bicubic, antialiased) to just cover height x width pixels."""
    scale = max(width / image.width, height / image.height)
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
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
