"""Images out: grids, movies, folders; each file appears whole or not at all."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from paella_jax.files.atomic import atomic_path
from paella_jax.images.png import save_png, tiled
from paella_jax.outside import expanded

MIN_SIDE = 96  # small images are enlarged to at least this many pixels


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float images in [0, 1] (clipped) -> uint8."""
    return np.round(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)


def save_grid(
    file: str | Path,
    images: np.ndarray,
    titles: Sequence[str] | None = None,
    correct: Sequence[bool] | None = None,
    columns: int | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Writes images [count, H, W, 3] as one PNG, each with its title below.

    Args:
      file: where to.
      images: float in [0, 1].
      titles: one per image, wrapped to the image's width.
      correct: adds a tick or a cross before each title.
      columns: default about as many as rows.
      texts: what the file says of itself, by keyword.
    """
    from PIL import ImageDraw, ImageFont

    count, height, width, _ = images.shape
    zoom = max(1, -(-MIN_SIDE // height))
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    gap, line = 8, 12
    tile_width = max(width * zoom, 132 if titles else 0)
    lines = [textwrap.wrap(t, tile_width // 6)[:6] for t in titles] if titles else [[]] * count
    text_height = line * max(len(rows_of_text) for rows_of_text in lines)
    tile_height = height * zoom + text_height
    canvas = Image.new(
        "RGB", (gap + columns * (tile_width + gap), gap + rows * (tile_height + gap)), "white"
    )
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=10)
    for index, image in enumerate(to_uint8(images)):
        left = gap + (index % columns) * (tile_width + gap)
        top = gap + (index // columns) * (tile_height + gap)
        _paste(canvas, image, (left, top), zoom, None if correct is None else bool(correct[index]))
        for row, text in enumerate(lines[index]):
            draw.text((left, top + height * zoom + row * line), text, fill="black", font=font)
    save_png(file, np.asarray(canvas), texts)


def save_table(
    file: str | Path,
    images: np.ndarray,
    column_titles: Sequence[str],
    row_titles: Sequence[str],
    correct: Sequence[Sequence[bool | None]] | None = None,
) -> None:
    """Writes images [rows, columns, H, W, 3] as one PNG with titles above and on the left.

    Args:
      file: where to.
      images: float in [0, 1].
      column_titles: one per column; lines are kept, and wrapped to the column's width.
      row_titles: one per row, likewise.
      correct: per row and column, a tick, a cross, or nothing for None.
    """
    from PIL import ImageDraw, ImageFont

    rows, columns, height, width, _ = images.shape
    zoom = max(1, -(-MIN_SIDE // height))
    gap, line, left_side = 6, 15, 176
    step_x, step_y = width * zoom + gap, height * zoom + gap
    wrap = lambda text, pixels: [
        part for own in text.split("\n") for part in textwrap.wrap(own, pixels // 7)
    ]
    heads = [wrap(title, step_x) for title in column_titles]
    top_side = gap + line * max(map(len, heads)) + gap
    size = (left_side + columns * step_x, top_side + rows * step_y)
    canvas = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=12)
    places = [(left_side + column * step_x, gap) for column in range(columns)]
    places += [(gap, top_side + row * step_y) for row in range(rows)]
    sides = [wrap(title, left_side)[: step_y // line] for title in row_titles]
    for (left, top), lines in zip(places, heads + sides, strict=True):
        for number, text in enumerate(lines):
            draw.text((left, top + number * line), text, fill="black", font=font)
    for row, column in np.ndindex(rows, columns):
        place = (left_side + column * step_x, top_side + row * step_y)
        mark = None if correct is None else correct[row][column]
        _paste(canvas, to_uint8(images[row, column]), place, zoom, mark)
    with atomic_path(expanded(file), durable=False) as part:
        canvas.save(part, format="PNG")


def _paste(
    canvas: Image.Image,
    image: np.ndarray,
    place: tuple[int, int],
    zoom: int,
    correct: bool | None,
) -> None:
    """Puts an enlarged uint8 image with a frame at (left, top), marked where that is known."""
    from PIL import ImageDraw

    (left, top), draw = place, ImageDraw.Draw(canvas)
    width, height = image.shape[1] * zoom, image.shape[0] * zoom
    tile = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
    canvas.paste(tile, place)
    draw.rectangle((left - 1, top - 1, left + width, top + height), outline="#888")
    if correct is not None:
        _mark(draw, left + width - 14, top + 3, correct)


def pad_to_same_size(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images [H, W, 3] of several sizes -> [count, H, W, 3], white below and to the right."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    padded = np.ones((len(images), height, width, 3), np.float32)
    for place, image in zip(padded, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return padded


def save_gif(file: str | Path, images: np.ndarray, milliseconds: int = 120) -> None:
    """Writes images [count, H, W, 3] in [0, 1] as an endless movie, forth and back."""
    zoom = max(1, -(-MIN_SIDE // images.shape[1]))
    size = (images.shape[2] * zoom, images.shape[1] * zoom)
    frames = [Image.fromarray(i).resize(size, Image.Resampling.NEAREST) for i in to_uint8(images)]
    frames += frames[-2:0:-1]
    options: dict[str, Any] = {"append_images": frames[1:], "duration": milliseconds, "loop": 0}
    with atomic_path(expanded(file), durable=False) as part:
        frames[0].save(part, format="GIF", save_all=True, **options)


def save_images(
    out: Path,
    images: np.ndarray,
    titles: list[str],
    columns: int | None = None,
    captions: bool = False,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Writes images [count, H, W, 3] in [0, 1] as one PNG, a movie (.gif) or a folder.

    A PNG of one image is that image; several are put side by side.

    Args:
      out: where to; its folder is made.
      images: float in [0, 1].
      titles: one per image.
      columns: of a grid; default about as many as rows.
      captions: frames the images of a PNG, enlarges small ones and puts the titles below.
      texts: what each PNG says of itself, by keyword.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix.lower() == ".gif":
        save_gif(out, images)
    elif out.suffix.lower() == ".png" and captions:
        save_grid(out, images, titles, columns=columns, texts=texts)
    elif out.suffix.lower() == ".png":
        save_png(out, tiled(list(to_uint8(images)), columns), texts)
    else:
        out.mkdir(exist_ok=True)
        for index, image in enumerate(to_uint8(images)):
            save_png(out / f"{index:05d}.png", image, texts)
        (out / "prompts.txt").write_text("\n".join(titles) + "\n", encoding="utf-8")


def save_strip(
    out: Path,
    strip: np.ndarray,
    titles: list[str],
    captions: bool = False,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Writes images [steps, count, H, W, 3]: a row of steps each, or all of them in a movie."""
    steps = strip.shape[0]
    by_image = strip.swapaxes(0, 1)
    if out.suffix.lower() == ".gif":
        save_images(out, np.concatenate(list(by_image), axis=2), titles)
        return
    names = [f"{title} ({step})" for title in titles for step in range(1, steps + 1)]
    flat = by_image.reshape(-1, *strip.shape[2:])
    save_images(out, flat, names, columns=steps, captions=captions, texts=texts)


def _mark(draw: Any, x: int, y: int, correct: bool) -> None:
    """A green tick or a red cross on a white square."""
    draw.rectangle((x - 1, y - 1, x + 12, y + 12), fill="white", outline="#888")
    if correct:
        draw.line((x + 1, y + 6, x + 4, y + 10, x + 10, y + 2), fill="#0a0", width=2)
    else:
        draw.line((x + 2, y + 2, x + 10, y + 10), fill="#c00", width=2)
        draw.line((x + 10, y + 2, x + 2, y + 10), fill="#c00", width=2)
