"""PNG files that say what they show: pixels as they were drawn, and text beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from paella_jax.files.atomic import atomic_path
from paella_jax.outside import expanded


def save_png(file: str | Path, image: np.ndarray, texts: Mapping[str, str] | None = None) -> None:
    """Writes one image as it is; the file appears whole or not at all.

    Args:
      file: where to; its folder exists.
      image: uint8 [height, width, 3].
      texts: keyword -> text, any Unicode; `read_png_texts` reads them again, as do other programs.
    """
    info = PngInfo()
    for keyword, text in (texts or {}).items():
        info.add_itxt(keyword, text)
    with atomic_path(expanded(file), durable=False) as part:
        Image.fromarray(image).save(part, format="PNG", pnginfo=info)


def read_png_texts(file: str | Path) -> dict[str, str]:
    """The texts in a PNG file by their keywords; empty for a file that is no whole PNG."""
    file = expanded(file)
    if not file.is_file():
        return {}  # opening a pipe would wait for ever
    try:
        with Image.open(file, formats=["PNG"]) as image:
            image.load()  # texts may come behind the pixels
            return {str(keyword): str(text) for keyword, text in getattr(image, "text", {}).items()}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return {}


def tiled(images: Sequence[np.ndarray], columns: int | None = None) -> np.ndarray:
    """Images side by side without frames or gaps, the rest of the last row white.

    Args:
      images: uint8 [height, width, 3], all of one size.
      columns: default about as many as rows.

    Returns:
      uint8 [rows * height, columns * width, 3].

    Raises:
      ValueError: images of several sizes.
    """
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) > 1:
        raise ValueError(
            f"a grid needs images of one size, got {' and '.join(f'{h}x{w}' for h, w in sizes)}; "
            "give a folder as --out"
        )
    (height, width), count = sizes[0], len(images)
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    canvas = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * height, index % columns * width
        canvas[top : top + height, left : left + width] = image
    return canvas
