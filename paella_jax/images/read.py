"""Images, masks and maps as users give them -> arrays, checked.

Every image of the project is read by `read_rgb`: training, previews, prompts, image tasks and
evaluation. `modes.py` says what becomes of each mode, `decode.py` what is refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from paella_jax.files.arrays import read_npy
from paella_jax.files.finite import is_finite
from paella_jax.images.decode import Encoded, ImageError, decode, readable
from paella_jax.images.modes import WHITE, parse_colour, to_marked, to_rgb
from paella_jax.images.notes import SINGLE, Notes
from paella_jax.outside import expanded

ImageLike = str | Path | Image.Image | np.ndarray
GIVEN = "an image given"  # one without a name, in messages


def read_rgb(
    image: str | Path | Encoded | Image.Image,
    background: str = WHITE,
    notes: Notes = SINGLE,
    at_least: tuple[int, int] | None = None,
) -> Image.Image:
    """A file or a PIL image of any mode -> an upright RGB image of its own size.

    Args:
      image: of a file that holds several images, the first is taken.
      background: the colour behind transparent images; a name, or "#rrggbb".
      notes: is told of the first image of each kind that is not plain.
      at_least: width and height that are enough: a larger JPEG may become smaller (`decode`).

    Raises:
      ImageError: no such file, not an image, damaged, cut off, or too large.
      ValueError: no such colour.
    """
    colour, name = parse_colour(background), GIVEN
    if isinstance(image, str | Path):
        image = expanded(image)
    if isinstance(image, Path | Encoded):
        name = str(image)
        image = decode(image, notes, at_least=at_least)
    with readable(name):
        return to_rgb(image, colour, name, notes)


def read_image(image: ImageLike, background: str = WHITE) -> np.ndarray:
    """A file, a PIL image or an array -> float32 [height, width, 3] in [0, 1].

    Raises:
      ImageError: as `read_rgb`, or an array of another shape or range.
    """
    if isinstance(image, str | Path | Image.Image):
        return unit_range(np.asarray(read_rgb(image, background)))
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
        scaled = array.astype(np.float32)
        scaled /= 255.0  # in place: images may be large
        return scaled
    array = array.astype(np.float32)
    if not np.isfinite(array).all() or array.min() < 0.0 or array.max() > 1.0:
        raise ImageError(
            f"an image array has values from {array.min()} to {array.max()}; give uint8, or float "
            "in [0, 1]"
        )
    return array


def read_mask(mask: ImageLike) -> np.ndarray:
    """A file, a PIL image or an array -> bool [height, width]; what is True is drawn anew.

    Of images that is what `modes.to_marked` says: white, or opaque paint on a transparent layer.

    Raises:
      ImageError: as `read_rgb`, or an array of another shape or without finite values.
    """
    if isinstance(mask, str | Path):
        mask = decode(expanded(mask), SINGLE, deep=True)
    if isinstance(mask, Image.Image):
        with readable(GIVEN):
            return to_marked(mask)
    array = np.asarray(mask)
    if array.ndim != 2:
        raise ImageError(f"a mask array has shape {array.shape}; give [height, width]")
    if not array.size or not is_finite(array):
        raise ImageError(
            "a mask array is empty, or holds NaN or infinity; give True where to draw anew"
        )
    return array if array.dtype == bool else array > array.max() / 2


def read_classes(file: str | Path) -> np.ndarray:
    """A segmentation map -> whole numbers [height, width], one class for each pixel or token.

    Args:
      file: an array that numpy saved (.npy), or an image: grey whose values are the classes, or
        one with a palette, whose entries' numbers are.

    Raises:
      ImageError: no such file, damaged, or neither of the two.
    """
    file = expanded(file)
    if file.suffix.lower() == ".npy" or _starts_as_array(file):
        return _read_array(file)
    image = decode(file, SINGLE, deep=True)
    if image.mode.startswith("I;"):
        image = image.convert("I")
    if image.mode not in ("1", "L", "P", "I"):
        raise ImageError(
            f"{file} is a map in mode {image.mode}; save it in grey or with a palette, so that "
            "every pixel holds the number of a class"
        )
    return np.asarray(image).astype(np.int32)


def _starts_as_array(file: Path) -> bool:
    try:
        if not file.is_file():
            return False  # opening a pipe would wait for ever
        with file.open("rb") as opened:
            return opened.read(6) == b"\x93NUMPY"
    except OSError:
        return False  # the reader of images says why


def _read_array(file: Path) -> np.ndarray:
    """Whole numbers that numpy saved. Raises ImageError; nothing in the file is run."""
    advice = "write it with numpy.save, whole numbers [height, width]"
    try:
        array = read_npy(file)
    except OSError as error:
        raise ImageError(f"the map {file} cannot be read: {error}") from None
    except ValueError as error:
        raise ImageError(f"{file} is no array of numbers: {error}; {advice}") from None
    if array.dtype.kind not in "biuf" or array.ndim != 2:
        raise ImageError(f"{file} is no array of numbers in two directions; {advice}")
    return array
