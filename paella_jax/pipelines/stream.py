"""Rows of prompts -> images, one batch at a time: 30 000 rows take the memory of one batch.

Rows of equal settings are drawn together, in batches of one size, so that one program serves them
all. An image depends on its row alone: not on its neighbours, nor on the batch's size.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from paella_jax.config import flatten_config
from paella_jax.images.write import to_uint8
from paella_jax.pipelines.base import Pipeline
from paella_jax.pipelines.best_of import Score, best
from paella_jax.pipelines.prompt_file import Row

BASE = "base"  # name of a two-scale pipeline's part that draws the small images
MOST_WAITING = 8  # batches' worth of rows that wait for others like them


class Drawn(NamedTuple):
    """An image of a row.

    Attributes:
      row: what it was drawn for.
      number: among the images of its row; part of its key.
      image: uint8 [height, width, 3].
      score: of the best of several; None without a score.
    """

    row: Row
    number: int
    image: np.ndarray
    score: float | None = None


@dataclass(frozen=True)
class Drawing:
    """How rows are drawn.

    Attributes:
      batch_size: images per program.
      copies: images drawn per row.
      score: keeps the best of a row's images; None keeps all.
      options: further arguments of `generate`, of all rows.
      conditions: a batch's rows -> what `generate` takes as its prompts.
    """

    batch_size: int = 64
    copies: int = 1
    score: Score | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    conditions: Callable[[Sequence[Row]], Any] = lambda rows: [row.prompt for row in rows]

    @property
    def rows_at_once(self) -> int:
        """Rows of a batch."""
        return max(1, self.batch_size // self.copies)


def draw_rows(pipe: Pipeline, rows: Iterable[Row], drawing: Drawing) -> Iterator[Drawn]:
    """Draws rows as they come; no more than a few batches of them are held.

    Args:
      pipe: any pipeline that draws from text.
      rows: read only as far as they are drawn.
      drawing: how.

    Raises:
      PromptError, ValueError: of `generate`, and of a score.
    """
    size = drawing.rows_at_once
    alike = lambda row: (row.settings, pipe.text_lengths([row.prompt, row.negative_prompt]))
    for batch in batches(rows, size, alike):
        padded = [*batch, *[batch[-1]] * (size - len(batch))]
        generation = pipe.generate(
            drawing.conditions(padded),
            negative_prompt=[row.negative_prompt for row in padded],
            seed=[row.seed for row in padded],
            num_images_per_prompt=drawing.copies,
            batch_size=drawing.batch_size,
            **dict(batch[0].settings),
            **drawing.options,
        )
        images = to_uint8(generation.images)
        for place, row in enumerate(batch):
            own = images[place * drawing.copies : (place + 1) * drawing.copies]
            if drawing.score is None:
                yield from (Drawn(row, number, image) for number, image in enumerate(own))
            else:
                number, score = best(drawing.score, own, [row.prompt] * len(own))
                yield Drawn(row, number, own[number], score)


def batches(
    rows: Iterable[Row], size: int, alike: Callable[[Row], Hashable]
) -> Iterator[list[Row]]:
    """Rows with equal `alike`, `size` at a time; what is left at the end in smaller lists.

    Where there are many kinds, those that came first are given out before they are full.
    """
    waiting: dict[Hashable, list[Row]] = {}
    held = 0
    for row in rows:
        kind = alike(row)
        waiting.setdefault(kind, []).append(row)
        held += 1
        if len(waiting[kind]) < size:
            if held < MOST_WAITING * size:
                continue
            kind = next(iter(waiting))
        batch = waiting.pop(kind)
        held -= len(batch)
        yield batch
    yield from waiting.values()


def sampler_of(pipe: Pipeline) -> dict[str, Any]:
    """The run's own sampler settings, which a call may replace; of several parts with their names.

    `{"num_steps": 12, ...}`, or `{"stage_b.num_steps": 12, ...}`. Of two scales they are the
    pipeline's defaults: a call's num_steps are the base's, the part without a name enlarges.
    """
    own: dict[str, Any] = {}
    parts = pipe.parts()
    if BASE in parts:
        return dict(pipe.defaults)
    for name, (config, _) in parts.items():
        prefix = f"{name}." if name else ""
        flat = flatten_config(config.get("sampler", {}))
        own |= {f"{prefix}{key}": value for key, value in flat.items()}
    return own
