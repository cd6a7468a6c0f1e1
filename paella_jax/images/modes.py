"""Decoded images of every mode -> RGB of 8 bits, or a mask.

| mode | becomes |
|---|---|
| RGB, L, 1, P, YCbCr, HSV, CMYK | PIL's `convert("RGB")`; of CMYK that is the plain formula |
| RGBA, LA, PA, RGBa, La | composed on the background |
| P, RGB, L, 1, I;16 with a transparent colour | composed on the background |
| I;16 (16-bit grey) | 0 is black, 65535 is white |
| I (32-bit integers) | smallest value black, largest white; in PNG and PPM as 16 bits |
| F (32-bit floats) | 0 black and 1 white where all lie between; else smallest and largest |
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageColor

from paella_jax.images.notes import Notes

WHITE = "white"
SIXTEEN_BITS = 65535
# Formats whose deep images PIL versions hold as 32-bit integers though they have 16 bits.
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")

Colour = tuple[int, int, int]


def parse_colour(background: str) -> Colour:
    """A colour's name or "#rrggbb" -> red, green and blue. Raises ValueError for others."""
    wrong = f"background {background!r} is no colour; give a name such as white, or #rrggbb"
    try:
        red, green, blue, *alpha = ImageColor.getrgb(background)
    except (ValueError, AttributeError):
        raise ValueError(wrong) from None
    if alpha:
        raise ValueError(wrong)
    return red, green, blue


def to_rgb(image: Image.Image, background: Colour, name: object, notes: Notes) -> Image.Image:
    """An image of any mode in RGB, as the table above has it.

    Raises:
      ValueError: a mode without a rule, or values that are not finite.
    """
    image = to_eight_bits(image, name, notes)
    if image.mode == "CMYK":
        notes.add(name, "has CMYK colours: converted by the plain formula, without its profile")
    if not image.has_transparency_data:
        image.load()  # else a damaged file would be found where nobody expects it
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = _with_alpha(image)
    alpha = rgba.getchannel("A")
    colours = rgba.convert("RGB")
    if alpha.getextrema()[0] == 255:
        return colours
    notes.add(name, f"is transparent: composed on the background {background}")
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(colours, mask=alpha)
    return canvas


def to_marked(image: Image.Image) -> np.ndarray:
    """A mask of any mode -> bool [height, width]: which pixels it marks.

    Grey: white is marked, from the middle upwards; of 16 and 32 bits, what is above half of the
    largest value. With transparent pixels, those are not marked; of the others the white ones are,
    or all where none is white (a mask that was painted in a dark colour).
    """
    if is_deep(image):
        values = np.asarray(image.convert("I") if image.mode.startswith("I;") else image)
        return values > values.max() / 2
    if not image.has_transparency_data:
        return np.asarray(image.convert("L")) >= 128
    rgba = _with_alpha(image)
    opaque = np.asarray(rgba.getchannel("A")) >= 128
    white = np.asarray(rgba.convert("RGB").convert("L")) >= 128
    if opaque.all():
        return white
    return opaque & white if (opaque & white).any() else opaque


def is_deep(image: Image.Image) -> bool:
    """Whether it is grey of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def to_eight_bits(image: Image.Image, name: object, notes: Notes) -> Image.Image:
    """Grey of 16 and 32 bits -> L (LA with a transparent colour); others as they are.

    Raises:
      ValueError: values that are not finite.
    """
    if not is_deep(image):
        return image
    short = image.mode.startswith("I;")
    values: np.ndarray = np.asarray(image.convert("I") if short else image)
    if short or (image.mode == "I" and image.format in SIXTEEN_BIT_FORMATS):
        low, high, rule = 0.0, float(SIXTEEN_BITS), "is 16-bit grey: 65535 is white"
    else:
        low, high, rule = _range_of(values, image.mode)
    notes.add(name, rule)
    # The largest images come here too: float32 holds 16 bits exactly and half of float64's bytes.
    scale = 255.0 / (high - low) if high > low else 0.0
    values_as_floats: np.ndarray = values.astype(np.float32 if short else np.float64)
    scaled = (values_as_floats - low) * scale
    grey = Image.fromarray(np.rint(scaled).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _range_of(values: np.ndarray, mode: str) -> tuple[float, float, str]:
    """What is black and what is white in an image of 32 bits, in words too."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("it holds values that are not finite")
    if mode == "F" and low >= 0.0 and high <= 1.0:
        return 0.0, 1.0, "is grey of 32-bit floats: 1 is white"
    return low, high, "is 32-bit grey: its smallest value is black, its largest white"


def _with_alpha(image: Image.Image) -> Image.Image:
    """RGBA of an image with transparency of any kind."""
    if image.mode == "La":
        image = image.convert("LA")
    return image if image.mode == "RGBA" else image.convert("RGBA")
