"""One image with its caption, again and again: what a style is tuned from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from paella_jax.data.cropping import check_background, check_cropping, cover, crop_and_flip
from paella_jax.data.records import UNREADABLE
from paella_jax.images.modes import WHITE
from paella_jax.images.notes import Notes
from paella_jax.images.read import read_rgb


@dataclass
class OneImageSource:
    """The same captioned image at every index (docs/models/muse.md 2.8, style from one image).

    The image is read once: upright, its short side resized to `resize` pixels. `source[i]` is the
    centre; `source.draw(i, rng)` is what training reads, with the random crop and flip that were
    asked for.

    Attributes:
      file: the image's path.
      caption: its text; surrounding blanks are removed.
      image_size: pixels of the square sample.
      crop: "center" or "random".
      resize: pixels of the short side before the crop; 0 means `image_size`.
      flip: mirror half of the drawn samples left to right.
      background: the colour behind a transparent image.

    Raises:
      ValueError: no such file, no readable image, one that would have to be enlarged, an empty
        caption, an unknown crop or colour, or a `resize` below `image_size`.
    """

    file: str
    caption: str
    image_size: int
    crop: str = "center"
    resize: int = 0
    flip: bool = False
    background: str = WHITE

    def __post_init__(self) -> None:
        self.caption = self.caption.strip()
        if not self.file or not Path(self.file).is_file():
            raise ValueError(f"data.image_file {self.file!r} is no file; give the image to learn")
        if not self.caption:
            raise ValueError(
                f"data.caption is empty; say what {self.file} shows and name its style, as in "
                '--config.data.caption="a fox in the style of [V]"'
            )
        check_cropping(self.crop, self.resize, self.image_size)
        check_background(self.background)
        self.some_captions = [self.caption]
        original, self.image = self._read(self.resize or self.image_size)
        self.original_size = original.size

    def _read(self, short_side: int) -> tuple[Image.Image, Image.Image]:
        """The upright image, and the same resized."""
        try:
            original = read_rgb(self.file, self.background, Notes())
            width, height = original.size
            if min(width, height) < short_side:
                raise ValueError(
                    f"it has {width}x{height} pixels, data.resize or data.image_size asks for "
                    f"{short_side}; give a larger image"
                )
            return original, cover(original, short_side, short_side)
        except UNREADABLE as error:
            raise ValueError(f"data.image_file {self.file} cannot be used: {error}") from error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Sample: `image` uint8 [image_size, image_size, 3], `caption` str, `index` int, and
        `micro_conds` float32 [5] as `FolderSource` gives them."""
        return self._sample(int(index), None)

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The sample of `source[index]`, cropped and flipped by `rng` where that was asked for."""
        return self._sample(int(index), rng)

    def _sample(self, index: int, rng: np.random.Generator | None) -> dict[str, Any]:
        crop_rng = rng if self.crop == "random" else None
        flip_rng = rng if self.flip else None
        size = (self.image_size, self.image_size)
        cropped = crop_and_flip(self.image, self.original_size, size, crop_rng, flip_rng)
        return {"caption": self.caption, "index": index} | cropped
