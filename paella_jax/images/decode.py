"""Image files -> decoded images, upright: the only place that opens them.

Files come from anywhere. Whatever is wrong with one is an `ImageError` that names it; an image of
more pixels than PIL's limit (`PIL.Image.MAX_IMAGE_PIXELS`, twice) is refused by its header, so that
a small file cannot fill the memory.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from paella_jax.config import UserError
from paella_jax.images.modes import to_eight_bits
from paella_jax.images.notes import Notes

ORIENTATION = 0x0112  # the EXIF tag: how the camera was held
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LYING = (5, 6, 7, 8)  # width and height change places
# Formats that may hold the orientation behind the pixels, or turn the image while decoding it.
DECODED_FIRST = ("PNG", "TIFF")
# Deflate makes 1032 bytes of one, each of 8 pixels at most, and no other format makes more; but for
# those that predict whole images from a few bytes.
PIXELS_PER_BYTE, UNBOUNDED = 10_000, ("WEBP", "AVIF")
# What is read, where this PIL can. Of its others some run programs (EPS), and none is usual.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "PPM", "ICO")
# How PIL stores PNGs of other depths than 8: which bits of a transparent colour count, and the
# factor that its pixels then have and the colour has not.
SCALES = {"L;2": (0x3, 85.0), "L;4": (0xF, 17.0), "RGB;16B": (0xFF00, 1 / 256)}
DRAFTED = ("JPEG", "MPO")  # can be decoded at a fraction of their size


class ImageError(UserError, ValueError):
    """An image or mask cannot be used; the message says what is wrong and what to do."""


class Encoded(NamedTuple):
    """The bytes of an image file that is part of another file, and its name for messages."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name

    def open(self, mode: str = "rb") -> BinaryIO:
        """As `Path.open`, for reading."""
        return io.BytesIO(self.data)


def decode(
    file: Path | Encoded, notes: Notes, deep: bool = False, at_least: tuple[int, int] | None = None
) -> Image.Image:
    """The first image of a file, decoded and turned as its camera says.

    Args:
      file: in one of `FORMATS`.
      notes: is told of files of several images and of unreadable EXIF.
      deep: keep grey of 16 and 32 bits as it is; else it becomes 8 bits (modes.py).
      at_least: width and height that are needed: a larger JPEG is decoded at a half, a quarter or
        an eighth of its size where that is not less.

    Raises:
      ImageError: no such file, not an image, damaged, cut off, or too large.
    """
    with _opened(file) as opened:
        if _has_several(opened):
            notes.add(file, "holds several images: its first one is used")
        if at_least is not None and opened.format in DRAFTED:
            lying = _orientation(opened, file, notes) in LYING
            opened.draft(None, at_least[::-1] if lying else at_least)
        _scale_transparent_colour(opened)
        opened.load()
        image = opened if deep else to_eight_bits(opened, file, notes)
        turn = TURNS.get(_orientation(opened, file, notes))
        return image.copy() if turn is None else image.transpose(turn)


def shown_size(file: Path | Encoded, notes: Notes) -> tuple[int, int]:
    """Width and height of an image as it is shown, from its header where that is enough.

    Raises:
      ImageError: as `decode`.
    """
    with _opened(file) as opened:
        if opened.format in DECODED_FIRST:
            opened.load()
        lying = _orientation(opened, file, notes) in LYING
        return opened.size[::-1] if lying else opened.size


@contextmanager
def _opened(file: Path | Encoded) -> Iterator[Image.Image]:
    """The open image; every error while it is open is an `ImageError`."""
    with readable(file):
        if isinstance(file, Path) and file.exists() and not file.is_file():
            raise OSError("it is a folder, pipe or device")  # opening a pipe would wait for ever
        # Not by its path: PIL maps uncompressed files, and gets the sides of turned TIFFs wrong.
        with file.open("rb") as data, Image.open(data, formats=_formats()) as opened:
            _check_size(opened, data)
            yield opened


@cache
def _formats() -> list[str]:
    """Those of `FORMATS` that this PIL reads."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _scale_transparent_colour(opened: Image.Image) -> None:
    """Gives a PNG's transparent colour the depth that its pixels will have, which PIL does not."""
    key = opened.info.get("transparency")
    stored = opened.tile[0][3] if isinstance(opened, ImageFile) and opened.tile else None
    if opened.format != "PNG" or not isinstance(stored, str) or stored not in SCALES:
        return
    mask, factor = SCALES[stored]
    if isinstance(key, int):
        opened.info["transparency"] = int((key & mask) * factor)
    elif isinstance(key, tuple):
        opened.info["transparency"] = tuple(int((value & mask) * factor) for value in key)


def _check_size(opened: Image.Image, data: BinaryIO) -> None:
    """Refuses a header that promises more pixels than the file's bytes could ever give."""
    place = data.tell()
    size = data.seek(0, io.SEEK_END)
    data.seek(place)
    width, height = opened.size
    if opened.format not in UNBOUNDED and width * height > PIXELS_PER_BYTE * size:
        raise ImageError(
            f"its header promises {width}x{height} pixels, which its {size} bytes cannot hold"
        )


@contextmanager
def readable(name: object) -> Iterator[None]:
    """Turns every error of reading an image into an `ImageError` with the image's name."""
    try:
        yield
    except ImageError as error:
        if str(name) in str(error):
            raise
        raise ImageError(f"{name} is damaged: {error}; copy it again") from error
    except FileNotFoundError:
        raise ImageError(f"there is no image {name}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        size = str(error).partition(", could be")[0]
        raise ImageError(f"{name} is too large: {size}; make it smaller") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not a readable image (of {', '.join(_formats())}); convert it to PNG"
        ) from error
    except Exception as error:  # decoders raise nearly anything at damaged files
        reason = str(error) or type(error).__name__
        raise ImageError(f"{name} is not a readable image: {reason}; convert it to PNG") from error


def _has_several(opened: Image.Image) -> bool:
    try:
        return bool(getattr(opened, "is_animated", False))
    except Exception:  # what follows the first image is damaged, which does not matter
        return False


def _orientation(opened: Image.Image, file: object, notes: Notes) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or it cannot be read."""
    try:
        value = opened.getexif().get(ORIENTATION, 1)
    except Exception:  # readers of EXIF raise nearly anything too
        notes.add(file, "has EXIF data that cannot be read: it is shown as it is stored")
        return 1
    return value if isinstance(value, int) else 1
