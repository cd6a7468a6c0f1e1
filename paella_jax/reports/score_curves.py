"""Scores against sampling steps and guidance: the Paella paper's Figure 5 for any run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from paella_jax.evaluation.estimates import Estimate
from paella_jax.files.atomic import write_atomically
from paella_jax.images.plots import save_curves
from paella_jax.outside import say
from paella_jax.reports.gathered import Gathered, Judges, as_json, gather
from paella_jax.reports.scored_run import Asked, Subject, draw
from paella_jax.reports.scores import Row, distances, of_the_images, of_the_pairs

PANELS = {"fid": "FID", "kid": "KID", "clip_score": "CLIP score", "retrieval_five": "R@5 of 64"}


def draw_curves(
    asked: Asked,
    subject: Subject,
    pipe: Any,
    captions: Sequence[str],
    real: Gathered,
    judges: Judges,
) -> list[Row]:
    """Scores the same captions with other settings; writes curves.json and curves.png.

    An axis that was not asked for stays at the run's own value.

    Args:
      asked: with the axes and their values.
      subject: the run.
      pipe: its pipeline.
      captions: to draw.
      real: the true images, in the captions' order unless other prompts were given.
      judges: the networks.
    """
    steps = asked.steps if "steps" in asked.axes else [None]
    guidance = asked.guidance if "guidance" in asked.axes else [None]
    rows: list[Row] = []
    for weight, count in itertools.product(guidance, steps):
        images = draw(pipe, captions, subject.batch, num_steps=count, guidance_scale=weight)
        drawn = gather(images, judges)
        said = {"steps": count, "guidance": weight}  # None where the run's own setting is kept
        name = ", ".join(f"{what} {value:g}" for what, value in said.items() if value is not None)
        row: Row = {"name": name} | said
        row |= of_the_images(drawn, judges, captions) | distances(drawn, real, not asked.prompts)
        rows.append(row | (of_the_pairs(drawn, real) if not asked.prompts else {}))
        say(f"{row['name']}: FID {row['fid'].show(1)}")
    write_atomically(asked.out / "curves.json", as_json(rows))
    panels = {title: _lines(rows, key, asked.axes) for key, title in PANELS.items()
              if all(key in row for row in rows)}  # fmt: skip
    save_curves(asked.out / "curves.png", panels)
    return rows


def _lines(rows: Sequence[Row], key: str, axes: Sequence[str]) -> dict[str, Any]:
    """{label: (x, y)}: along the steps where they vary, a line for each guidance."""
    along, other = ("steps", "guidance") if "steps" in axes else ("guidance", "steps")
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        label = "own settings" if row[other] is None else f"{other} {row[other]:g}"
        value = row[key].value if isinstance(row[key], Estimate) else row[key]
        x, y = lines.setdefault(label, ([], []))
        x.append(row[along])
        y.append(value)
    return lines
