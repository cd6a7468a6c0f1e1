"""Images that visitors give: uploaded files, and what is painted over them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from paella_jax.images.decode import ImageError, shown_size
from paella_jax.images.notes import Notes
from paella_jax.images.png import save_png
from paella_jax.images.read import read_mask, read_rgb
from paella_jax.serving.limits import Limits

LARGEST = 1536  # pixels of a side that are kept; no run draws more
LEAST_SHOWN = 448  # small images are enlarged to be painted on


def bound_decoding(limits: Limits) -> None:
    """Has PIL refuse larger images than a visitor may give, by their headers, in this process.

    The page's library decodes what the editor sends before any check of ours is asked. PIL warns
    above its limit and refuses above twice of it.
    """
    Image.MAX_IMAGE_PIXELS = limits.pixels // 2
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def read_upload(file: str | Path, limits: Limits) -> Image.Image:
    """An uploaded file, checked and read as every image of the project, in RGB.

    Raises:
      ImageError: not an image, damaged, or over the limits.
    """
    path, notes = Path(file), Notes()
    if path.stat().st_size > limits.megabytes * 2**20:
        raise ImageError(f"the file is larger than {limits.megabytes} MB; make it smaller")
    try:
        width, height = shown_size(path, notes)
        if width * height > limits.pixels:
            most = limits.pixels / 1e6
            raise ImageError(f"the image is {width}x{height}; give at most {most:.0f} megapixels")
        image = read_rgb(path, notes=notes)
    except ImageError as error:  # visitors need not know where the server keeps their file
        raise ImageError(str(error).replace(str(path), "the uploaded file")) from None
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return image


def kept_file(image: Image.Image, folder: Path) -> str:
    """A PNG of an image, written once however often it is shown; its name says nothing of it.

    Args:
      image: in RGB.
      folder: where to.
    """
    pixels = np.asarray(image)
    name = hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()
    file = folder / f"{name}.png"
    if not file.exists():
        save_png(file, pixels)
    return str(file)


def for_editor(image: Image.Image) -> dict[str, Any]:
    """What the page's editor shows of an image, without any paint on it."""
    zoom = -(-LEAST_SHOWN // max(image.size))
    size = (image.width * zoom, image.height * zoom)
    shown = image if zoom == 1 else image.resize(size, Image.Resampling.NEAREST)
    return {"background": shown, "layers": [], "composite": None}


def mask_of(painted: Mapping[str, Any] | None, size: tuple[int, int]) -> Image.Image | None:
    """What was painted in the editor -> a mask of the image's size (width, height).

    Args:
      painted: the editor's value; layers are RGBA.
      size: of the image.

    Returns:
      White where a pixel has any paint, black elsewhere; None without paint.
    """
    mask = None
    for layer in (painted or {}).get("layers") or []:
        marked = Image.fromarray(read_mask(layer.getchannel("A"))).convert("L")
        fitted = marked.resize(size, Image.Resampling.BOX).point(lambda value: 255 * (value > 0))
        mask = fitted if mask is None else Image.composite(fitted, mask, fitted)
    return mask
