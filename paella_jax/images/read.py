"""Images and masks as users give them -> arrays, checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from paella_jax.config import UserError

ImageLike = str | Path | Image.Image | np.ndarray


class ImageError(UserError, ValueError):
    """An image or mask cannot be used; the message says what is wrong and what to do."""


def read_image(image: ImageLike) -> np.ndarray:
    """A file, a PIL image or an array -> float32 [height, width, 3] in [0, 1].

    Raises:
      ImageError: not an image, or an array of another shape or range.
    """
    if isinstance(image, str | Path):
        image = _open(Path(image))
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"), np.float32) / 255.0
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3:
        raise ImageError(f"an image array has shape {array.shape}; give [height, width, 3]")
    return unit_range(array)


def read_images(images: np.ndarray) -> np.ndarray:
    """An array [count, height, width, 3], uint8 or in [0, 1] -> float32 in [0, 1].

    Raises:
      ImageError: an array of another shape or range.
    """
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[-1] != 3:
        raise ImageError(f"images have shape {array.shape}; give [count, height, width, 3]")
    return unit_range(array)


def unit_range(array: np.ndarray) -> np.ndarray:
    """uint8, or float in [0, 1] -> float32 in [0, 1]. Raises ImageError for other values."""
    if array.dtype == np.uint8:
        return array.astype(np.float32) / 255.0
    array = array.astype(np.float32)
    if not np.isfinite(array).all() or array.min() < 0.0 or array.max() > 1.0:
        raise ImageError(
            f"an image array has values from {array.min()} to {array.max()}; give uint8, or float "
            "in [0, 1]"
        )
    return array


def read_mask(mask: ImageLike) -> np.ndarray:
    """A file, a PIL image or an array -> bool [height, width]; white or True is drawn anew."""
    if isinstance(mask, str | Path):
        mask = _open(Path(mask))
    if isinstance(mask, Image.Image):
        return np.asarray(mask.convert("L")) >= 128
    array = np.asarray(mask)
    if array.ndim != 2:
        raise ImageError(f"a mask array has shape {array.shape}; give [height, width]")
    return array if array.dtype == bool else array > array.max() / 2


def _open(file: Path) -> Image.Image:
    """The image as it is shown: turned as its camera says."""
    try:
        with Image.open(file) as opened:
            return ImageOps.exif_transpose(opened)
    except FileNotFoundError:
        raise ImageError(f"there is no image {file}") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"{file} is not a readable image: {error}; convert it to PNG") from error
