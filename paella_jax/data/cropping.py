"""From a decoded image to the square, or the bucket, that is trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from paella_jax.data.sizes import AESTHETIC_SCORE
from paella_jax.images.decode import ImageError
from paella_jax.images.modes import WHITE, parse_colour

CROPS = ("center", "random")
MOST_PIXELS = 2**27  # of an image that is resized to cover a crop


@dataclass(frozen=True)
class Cropping:
    """How images of any size become samples of one.

    Attributes:
      image_size: pixels of the square sample.
      crop: "center" or "random".
      resize: pixels of the short side before the crop; 0 means `image_size`.
      flip: mirror half of the drawn samples left to right.
      background: the colour behind transparent images.
      draft: decode JPEGs of at least four times the needed sides at a fraction of their size.

    Raises:
      ValueError: an unknown crop or colour, or a `resize` below `image_size`.
    """

    image_size: int
    crop: str = "center"
    resize: int = 0
    flip: bool = False
    background: str = WHITE
    draft: bool = False

    def __post_init__(self) -> None:
        check_cropping(self.crop, self.resize, self.image_size)
        check_background(self.background)

    def covering(self, size: tuple[int, int]) -> tuple[int, int]:
        """The height and width that an image must cover before the crop to `size`."""
        enlarge = max(1.0, self.resize / self.image_size)
        return round(size[0] * enlarge), round(size[1] * enlarge)

    def apply(
        self,
        image: Image.Image,
        original_size: tuple[int, int],
        size: tuple[int, int],
        rng: np.random.Generator | None,
    ) -> dict[str, np.ndarray]:
        """The crop of a covering image, by chance where that was asked for and `rng` is given."""
        crop_rng = rng if self.crop == "random" else None
        flip_rng = rng if self.flip else None
        return crop_and_flip(image, original_size, size, crop_rng, flip_rng)


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
    size = covering_size(image.size, height, width)
    if size[0] * size[1] > max(MOST_PIXELS, image.width * image.height):
        raise ImageError(
            f"an image of {image.width}x{image.height} pixels is too narrow: covering "
            f"{width}x{height} it would have {size[0]}x{size[1]}"
        )
    return image.resize(size, Image.Resampling.BICUBIC)


def covering_size(size: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Width and height of an image of a (width, height), resized to just cover a crop."""
    scale = max(width / size[0], height / size[1])
    return max(width, round(size[0] * scale)), max(height, round(size[1] * scale))


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
