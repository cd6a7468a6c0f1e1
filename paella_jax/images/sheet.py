"""A sheet of rows of images: a heading, then panels side by side at one scale, none padded."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from paella_jax.images.png import save_png
from paella_jax.images.write import to_uint8

GAP, LINE = 8, 13
LETTER = 6  # pixels, about, of a letter of the titles


class Panel(NamedTuple):
    """An image float [height, width, 3] in [0, 1], and what it is."""

    image: np.ndarray
    title: str


class SheetRow(NamedTuple):
    """Panels of one height, and what they show."""

    heading: str
    panels: Sequence[Panel]


def save_sheet(file: str | Path, rows: Sequence[SheetRow], zoom: int = 3) -> None:
    """Writes rows of panels as one PNG; a panel is as wide as its image.

    Args:
      file: where to.
      rows: from the top; the sheet is as wide as the widest.
      zoom: how often a pixel is repeated, for all of them.

    Raises:
      ValueError: no rows, a row without panels, or panels of several heights in a row.
    """
    if not rows:
        raise ValueError("a sheet needs at least one row")
    drawn = [_Row(row, zoom) for row in rows]
    width = max(row.width for row in drawn)
    headings = [textwrap.wrap(row.heading, max(width // LETTER, 1)) for row in rows]
    heights = [
        row.height + LINE * len(lines) + GAP for row, lines in zip(drawn, headings, strict=True)
    ]
    canvas = Image.new("RGB", (width + 2 * GAP, sum(heights) + GAP), "white")
    top = GAP
    for row, lines, height in zip(drawn, headings, heights, strict=True):
        _write(canvas, lines, (GAP, top))
        row.paste(canvas, (GAP, top + LINE * len(lines) + 2))
        top += height
    save_png(file, np.asarray(canvas))


class _Row:
    """One row in pixels of the sheet."""

    def __init__(self, row: SheetRow, zoom: int) -> None:
        sides = {panel.image.shape[0] for panel in row.panels}
        if len(sides) != 1:
            raise ValueError(f"the panels of {row.heading!r} have heights {sorted(sides)}")
        self.images = [
            Image.fromarray(np.kron(to_uint8(panel.image), np.ones((zoom, zoom, 1), np.uint8)))
            for panel in row.panels
        ]
        self.titles = [
            textwrap.wrap(panel.title, max((image.width + GAP) // LETTER, 1))
            for panel, image in zip(row.panels, self.images, strict=True)
        ]
        self.width = sum(image.width + GAP for image in self.images) - GAP
        lines = max(map(len, self.titles))
        self.height = self.images[0].height + LINE * lines + 4

    def paste(self, canvas: Image.Image, place: tuple[int, int]) -> None:
        """Puts the panels at (left, top), each in a thin frame with its title below."""
        from PIL import ImageDraw

        draw, (left, top) = ImageDraw.Draw(canvas), place
        for image, lines in zip(self.images, self.titles, strict=True):
            canvas.paste(image, (left, top))
            frame = (left - 1, top - 1, left + image.width, top + image.height)
            draw.rectangle(frame, outline="#888")
            _write(canvas, lines, (left, top + image.height + 2))
            left += image.width + GAP


def _write(canvas: Image.Image, lines: Sequence[str], place: tuple[int, int]) -> None:
    from PIL import ImageDraw, ImageFont

    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=10)
    for number, text in enumerate(lines):
        draw.text((place[0], place[1] + number * LINE), text, fill="black", font=font)
