"""What larger budgets give: each trained network's scores against how much it was trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from paella_jax.comparison.curves import legend, line, style_of, styles_of
from paella_jax.comparison.intervals import SPLITS, interval
from paella_jax.comparison.rows import Row, metric, over_seeds
from paella_jax.images.plots import new_figure, save_figure

LARGER = re.compile(r"([0-9.e+-]+)x")  # how variants.py names a larger budget
Series = dict[tuple[str, str], dict[float, list[Row]]]


def by_budget(rows: Sequence[Row]) -> Series:
    """(network, corruption) -> multiple of the budget -> rows of one sampler, over seeds.

    Only networks that have larger budgets; the sampler is the one those were drawn with.
    """
    found: Series = {}
    samplers: dict[tuple[str, str], str] = {}
    for row in rows:
        if size := LARGER.fullmatch(row["variant"] or ""):
            pair = (row["network"], row["corruption"])
            samplers[pair] = row["sampler"]
            found.setdefault(pair, {}).setdefault(float(size[1]), []).append(row)
    for row in rows:
        pair = (row["network"], row["corruption"])
        if not row["variant"] and samplers.get(pair) == row["sampler"]:
            found[pair].setdefault(1.0, []).append(row)
    return {pair: dict(sorted(own.items())) for pair, own in found.items()}


def draw_budgets(file: str | Path, rows: Sequence[Row], main_steps: str) -> str:
    """Writes exact matches of seen and held-out captions by budget, and returns the caption.

    Args:
      file: PNG.
      rows: checked rows, of which some are of larger budgets.
      main_steps: step count that all were drawn with.
    """
    series = by_budget(rows)
    figure, axes = new_figure(1, len(SPLITS), (12, 5.5))
    styles = styles_of([row for own in series.values() for some in own.values() for row in some])
    for axis, name in zip(axes.flat, SPLITS, strict=True):
        for place, own in enumerate(series.values()):
            points = [over_seeds(some, name, main_steps) for some in own.values()]
            bars = [interval(some, name) for some in own.values()]
            style, offset = style_of(own[1.0][0], styles), place - (len(series) - 1) / 2
            line(axis, list(own), points, offset, style, bars)
        budgets = sorted({budget for own in series.values() for budget in own})
        axis.set(title=metric(name, rows).title, xlabel="budget", xticks=budgets)
        axis.set_xticklabels([f"{budget:g}x" for budget in budgets])
        axis.grid(alpha=0.3)
    legend(figure, styles)
    save_figure(file, figure)
    return (
        f"Each network with the sampler that larger budgets were drawn with, {main_steps} steps, "
        "each point with its own tuned settings. Bars: 95 % interval over captions and seeds, "
        "or one standard deviation over seeds where images were not scored one by one."
    )
