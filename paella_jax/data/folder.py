"""A folder of images with captions (captions.py) as records."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paella_jax.data.captioned import CaptionedImages
from paella_jax.data.captions import CaptionedFile, list_captioned, list_images
from paella_jax.data.cropping import Cropping
from paella_jax.data.listing import suffixes
from paella_jax.data.records import Record, tell
from paella_jax.data.split import Held, choose


class FolderRecords:
    """The images of a folder that are for training or for validation.

    What belongs to the folder and what was left out is told.

    Args:
      folder: laid out as captions.py describes.
      split: "train", or anything else for the validation images.
      held: which images are held back for validation.
      captions: False reads no captions and needs none; they are then empty.
      caption_lines: every line of a caption's text file is a caption of its own.
      group_column: of the folder's table, that says what images are of; empty for none.

    Raises:
      ValueError: no such folder, or no images or captions in it.
    """

    def __init__(
        self,
        folder: str,
        split: str = "train",
        held: Held | None = None,
        captions: bool = True,
        caption_lines: bool = False,
        group_column: str = "",
    ) -> None:
        root, held, training = Path(folder), held or Held(), split == "train"
        if not folder or not root.is_dir():
            raise ValueError(f"data.folder {folder!r} is not a folder of images with captions")
        self.owner = f"data.folder {folder}"
        left_out: Counter[str] = Counter()

        def read(part: Path) -> list[CaptionedFile]:
            if captions:
                return list_captioned(part, left_out, held.column, caption_lines, group_column)
            return list_images(part, left_out, held.column)

        chosen = choose(root, read, held, training, left_out)
        self.samples = chosen.samples
        if not self.samples:
            raise ValueError(f"data.folder {folder} has no images ({sorted(suffixes())})")
        tell(self.owner, len(self.samples), training, chosen.how, left_out)

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, position: int) -> str:
        """The image's path."""
        return str(self.samples[position].image)

    def missing(self) -> Iterator[tuple[int, str]]:
        """See `records.Records`."""
        for position, sample in enumerate(self.samples):
            reason = _missing(sample)
            if reason is not None:
                yield position, reason

    def read(self, position: int) -> Record:
        """See `records.Records`."""
        sample = self.samples[position]
        return Record(sample.image, sample.read_captions(), sample.group)


class FolderSource(CaptionedImages):
    """The same as a source: what `make_source` makes of a folder, for use from Python.

    Args:
      folder: of images with captions.
      image_size: pixels of the square sample.
      split: "train", or anything else for the validation images.
      held, captions, caption_lines: as in `FolderRecords`.
      **cropping: further fields of `Cropping`.
    """

    def __init__(
        self,
        folder: str,
        image_size: int,
        split: str = "train",
        held: Held | None = None,
        captions: bool = True,
        caption_lines: bool = False,
        **cropping: Any,
    ) -> None:
        checked = Cropping(image_size, **cropping)  # before anything is listed
        self.folder_records = FolderRecords(folder, split, held, captions, caption_lines)
        super().__init__(self.folder_records, checked, caption_lines)

    @property
    def files(self) -> list[Path]:
        """The images of this split."""
        return [sample.image for sample in self.folder_records.samples]


def _missing(sample: CaptionedFile) -> str | None:
    if sample.caption is None:
        return "no caption"
    text = sample.text_file
    wrong = "" if text is None else _wrong_text(text)
    if text is not None and wrong:
        return f"no caption: {text.name} {wrong}"
    return None if sample.image.is_file() else "no such file"


def _wrong_text(file: Path) -> str:
    """What is wrong with a text file that has only line ends, or is none; empty for nothing.

    Longer ones of that kind are found when they are read.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            return "is a folder, pipe or device"
        is_empty = status.st_size <= 4 and not file.read_bytes().strip(b"\xef\xbb\xbf \r\n\t")
    except OSError:
        return ""  # reading it says why
    return "is empty" if is_empty else ""
