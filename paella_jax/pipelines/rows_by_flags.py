"""Text-to-image as the flags of `python -m paella_jax.sample` ask for it: rows -> files.

A folder gets one image per file and can be gone on with; a grid or a movie holds all images.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from paella_jax.encoders.byte_tokenizer import PromptError
from paella_jax.encoders.clip_judge import load_clip_judge
from paella_jax.images.png import save_png, tiled
from paella_jax.images.write import pad_to_same_size, save_images
from paella_jax.outside import say
from paella_jax.pipelines.flag_checks import MOST_IN_ONE_FILE, is_one_file
from paella_jax.pipelines.gallery import Gallery, png_texts
from paella_jax.pipelines.prompt_file import (
    SETTINGS,
    Defaults,
    Row,
    check_prompt_file,
    given_settings,
    ignored_columns,
    read_prompt_file,
)
from paella_jax.pipelines.run_digests import content_digest, run_digest
from paella_jax.pipelines.stream import Drawing, Drawn, draw_rows, sampler_of

# Flags that an image is of as well, beside the runs that draw; of files and folders their names
# and what is in them.
RECORDED = ("sampler", "stepper", "label", "emphasis", "best_of")
RECORDED_FILES = ("segmentation", "prior", "score_with")


def defaults_of(flags: Any) -> Defaults:
    """What the flags say of rows that say nothing themselves."""
    settings = {name: getattr(flags, name) for name in SETTINGS}
    return Defaults(flags.negative_prompt, flags.seed, settings)


def rows_of(flags: Any) -> Iterator[Row]:
    """The rows of --prompt, all with --seed, or of --prompts, with a seed each."""
    defaults = defaults_of(flags)
    if flags.prompts:
        yield from read_prompt_file(Path(flags.prompts), defaults)
        return
    settings = given_settings(defaults.settings)
    for number, prompt in enumerate(flags.prompt or [""]):  # "": other conditions alone
        where, file = f"prompt {number}", f"{number:05d}.png"
        yield Row(where, prompt, flags.negative_prompt, flags.seed, file, settings)


def check_rows(flags: Any) -> int:
    """Reads all rows once, before anything is loaded, and returns their number.

    Raises:
      PromptError, ValueError: a row is wrong, or they are too many for --out.
    """
    count = max(1, len(flags.prompt))
    if flags.prompts:
        file = Path(flags.prompts)
        count, own = check_prompt_file(file, defaults_of(flags))
        ignored = ignored_columns(file)
        if ignored:
            say(f"{file}: columns without effect: {', '.join(ignored)}", sys.stderr)
        if own and flags.strip:
            raise ValueError(f"{file} has settings of its own, which --strip cannot draw")
    images = count * flags.num_images_per_prompt
    if is_one_file(flags.out) and images > MOST_IN_ONE_FILE:
        raise ValueError(
            f"--out {flags.out} cannot hold {images} images, at most {MOST_IN_ONE_FILE}; give a "
            "folder"
        )
    return count


Conditions = Callable[[Any, Sequence[Row]], Any]


def draw_by_flags(pipe: Any, flags: Any, count: int, conditions: Conditions) -> int:
    """Draws all rows and writes them to --out; returns the number of images that are new.

    Args:
      pipe: from `paella_jax.load`.
      flags: of the command.
      count: of rows (`check_rows`).
      conditions: (pipe, rows) -> what is drawn for them.

    Raises:
      PromptError, ValueError, GalleryError: before anything is drawn.
    """
    copies = flags.best_of or flags.num_images_per_prompt
    options = {n: getattr(flags, n) for n in ("sampler", "stepper") if getattr(flags, n)}
    drawing = Drawing(
        batch_size=min(flags.batch_size, count * copies),
        copies=copies,
        score=load_clip_judge(flags.score_with).score if flags.best_of else None,
        options=options,
        conditions=lambda rows: conditions(pipe, rows),
    )
    check_rows_of(pipe, rows_of(flags), flags.cut_long_prompts, options)
    cut = (lambda row: cut_row(pipe, row)) if flags.cut_long_prompts else (lambda row: row)
    rows = lambda: map(cut, rows_of(flags))
    record = Recorder(pipe, flags)
    if is_one_file(flags.out):
        return write_one_file(flags, list(draw_rows(pipe, rows(), drawing)), record)
    with Gallery(Path(flags.out), record.run) as gallery:
        return fill_gallery(pipe, gallery, rows, count, drawing, record)


def check_rows_of(
    pipe: Any, rows: Iterator[Row], cut: bool, options: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Looks at all rows, keeping none, before any is drawn.

    With `cut` it says how many texts are too long, and raises only where one cannot be cut.

    Args:
      pipe: what draws.
      rows: all of them.
      cut: whether long texts are cut.
      options: settings of all rows.

    Raises:
      PromptError: texts are too long for this run, or it cannot draw a row's size or settings.
    """
    first, long = "", 0
    for row in rows:
        try:
            pipe.check_settings(**dict(row.settings), **options)
        except ValueError as error:
            raise PromptError(f"{row.where}: {error}") from None
        wrong = too_long(pipe, row)
        long += bool(wrong)
        first = first or wrong
        if wrong and cut and (wrong := too_long(pipe, cut_row(pipe, row))):
            raise PromptError(wrong)
    if long and not cut:
        more = f" (and {long - 1} more)" if long > 1 else ""
        raise PromptError(f"{first}{more}, or give --cut_long_prompts")
    if long:
        say(f"{long} prompts are longer than this run reads and were cut", sys.stderr)


def too_long(pipe: Any, row: Row) -> str:
    """What is too long about a row, or nothing."""
    for name in ("prompt", "negative_prompt"):
        try:
            pipe.text_lengths([getattr(row, name)])
        except PromptError as error:
            return f"{row.where}: {str(error).replace('prompt 0', name)}"
    return ""


def cut_row(pipe: Any, row: Row) -> Row:
    """A row with texts that are not too long."""
    texts = (pipe.cut_text(row.prompt), pipe.cut_text(row.negative_prompt))
    return row._replace(prompt=texts[0], negative_prompt=texts[1])


class Recorder:
    """Says of each image what it was asked to be."""

    def __init__(self, pipe: Any, flags: Any) -> None:
        """Looks at the run's weights and settings once."""
        self.run = run_digest(pipe.parts())
        given = {name: getattr(flags, name) for name in RECORDED}
        for name in RECORDED_FILES:
            if path := getattr(flags, name):
                given[name] = f"{Path(path).name} {content_digest(path)}"
        self._own = sampler_of(pipe)
        self._flags = {name: x for name, x in given.items() if x not in (None, "", [])}
        self.copies = flags.num_images_per_prompt

    def of(self, row: Row, number: int = 0, score: float | None = None) -> dict[str, Any]:
        """The record of a row's image with this number."""
        record = {
            "file": self._file(row, number),
            "prompt": row.prompt,
            "negative_prompt": row.negative_prompt,
            "seed": row.seed,
            "number": number,
            "run": self.run,
            "settings": self._own | self._given(row) | self._flags,
        }
        return record if score is None else record | {"score": round(score, 4)}

    def _given(self, row: Row) -> dict[str, Any]:
        """A row's own settings; one number for a ramp is one for its both ends."""
        pair = lambda name, x: (x, x) if isinstance(self._own.get(name), tuple) else x
        return {name: pair(name, x) for name, x in row.settings}

    def _file(self, row: Row, number: int) -> str:
        return row.file if self.copies == 1 else f"{Path(row.file).stem}_{number}.png"


def fill_gallery(
    pipe: Any, gallery: Gallery, rows: Callable[[], Iterator[Row]], count: int,
    drawing: Drawing, record: Recorder,
) -> int:  # fmt: skip
    """Draws what a folder lacks; returns the number of new images."""
    missing = lambda row: not all(gallery.has(record.of(row, n)) for n in range(record.copies))
    lacking = sum(missing(row) for row in rows())  # refuses a folder of something else at once
    if lacking < count:
        say(f"{count - lacking} of {count} prompts are drawn already", sys.stderr)
    if not lacking:
        return 0
    new, seldom = 0, 1.0 if sys.stderr.isatty() else 30.0
    with tqdm(total=lacking * record.copies, unit="image", mininterval=seldom) as progress:
        for drawn in draw_rows(pipe, filter(missing, rows()), drawing):
            known = record.of(drawn.row, drawn.number if record.copies > 1 else 0)
            if not gallery.has(known):
                gallery.add(drawn.image, record.of(drawn.row, drawn.number, drawn.score))
                new += 1
            progress.update()
    return new


def write_one_file(flags: Any, drawn: Sequence[Drawn], record: Recorder) -> int:
    """Writes all images as one PNG or movie; returns their number."""
    out = Path(flags.out)
    records = [record.of(d.row, d.number, d.score) | {"file": out.name} for d in drawn]
    texts = png_texts(records[0])
    if len(records) > 1:
        own = lambda name: dict.fromkeys(str(record[name]) for record in records)
        texts = png_texts({"prompt": "\n".join(own("prompt")), "seed": ", ".join(own("seed")),
                           "negative_prompt": "\n".join(own("negative_prompt")),
                           "images": records})  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix.lower() == ".png" and not flags.captions:
        save_png(out, tiled([d.image for d in drawn]), texts)
    else:
        images = pad_to_same_size([d.image.astype(np.float32) / 255.0 for d in drawn])
        titles = [d.row.prompt for d in drawn]
        save_images(out, images, titles, captions=flags.captions, texts=texts)
    return len(drawn)
