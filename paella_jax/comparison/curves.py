"""The curves of a comparison: color is the network, line the corruption, marker the sampler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from paella_jax.comparison.intervals import SPLITS, Interval, at_steps, interval
from paella_jax.comparison.rows import (
    FACTORS,
    Estimate,
    Row,
    at_level,
    by_cell,
    by_training,
    cells_alone,
    metric,
    over_seeds,
)
from paella_jax.images.plots import new_figure, save_figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito
LINES = ("-", (0, (4, 2)), ":", "-.")
MARKERS = ("o", "^", "s", "D", "v", "P")
DODGE = 0.01  # of the axis, between neighbouring cells, so that error bars stay apart
PANELS = ("seen_exact", "heldout_exact", "heldout_attributes", "frechet")
Style = dict[str, Any]


def draw_comparison(file: str | Path, rows: Sequence[Row], main_steps: str) -> str:
    """Writes checked rows as six panels with one legend, and returns the caption.

    Args:
      file: PNG.
      rows: of the comparison.
      main_steps: step count of the panel that sets the cells side by side.
    """
    rows = cells_alone(rows)
    figure, axes = new_figure(3, 2, (12, 15))
    cells, styles, sure = by_cell(rows), styles_of(rows), _intervals(rows, main_steps)
    steps = list(rows[0]["by_steps"])
    for axis, name in zip(axes.flat, PANELS, strict=False):
        title, higher_is_better, _ = metric(name, rows)
        for place, (cell, own) in enumerate(cells.items()):
            points = [over_seeds(own, name, count) for count in steps]
            offset = place - (len(cells) - 1) / 2
            bars = [sure.get((name, cell, count)) for count in steps]
            line(axis, [float(s) for s in steps], points, offset, style_of(own[0], styles), bars)
        title += "" if higher_is_better else " (lower is better)"
        axis.set(title=title, xlabel="sampling steps", xticks=[float(s) for s in steps])
    _draw_cross_entropy(axes.flat[-2], rows, styles)
    _draw_cells(axes.flat[-1], cells, styles, sure, main_steps)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    legend(figure, styles)
    save_figure(file, figure)
    return _caption(sure)


def legend(figure: Any, styles: Mapping[str, Style]) -> None:
    """A column per factor below all panels."""
    entries = [_entries(styles, factor) for factor in FACTORS]
    longest = max(map(len, entries))
    padded = [one for own in entries for one in own + [_empty()] * (longest - len(own))]
    figure.legend(handles=padded, loc="lower center", frameon=False, fontsize=11, ncols=3)
    lines = 0.33 * longest  # inches
    figure.tight_layout(rect=(0, lines / figure.get_figheight(), 1, 1))


def _intervals(rows: Sequence[Row], main_steps: str) -> dict[tuple[str, str, str], Interval]:
    """(metric, cell, steps) -> its interval, where images were scored one by one."""
    found = {}
    for name, (cell, own), steps in product(SPLITS, by_cell(rows).items(), rows[0]["by_steps"]):
        kept = own if steps == main_steps else [at_steps(row, steps) for row in own]
        one = interval(kept, name)
        if one is not None:
            found[name, cell, steps] = one
    return found


def _caption(sure: Mapping[tuple[str, str, str], Interval]) -> str:
    spread = "one standard deviation over seeds, none where there was one seed"
    apart = "Cells stand a little apart so that their bars can be told from each other."
    if not sure:
        return f"Bars: {spread}. {apart}"
    steps = sorted({count for _, _, count in sure}, key=int)
    return (
        f"Thick bars (images right or not, at {', '.join(steps)} steps): 95 % interval "
        f"over captions and seeds. Thin bars with caps (all else): {spread}. {apart}"
    )


def _draw_cells(
    axis: Any,
    cells: Mapping[str, Sequence[Row]],
    styles: Mapping[str, Style],
    sure: Mapping[tuple[str, str, str], Interval],
    steps: str,
) -> None:
    """A line per cell: its exact matches at these steps, of seen (filled) and held-out captions."""
    title = metric("seen_exact", next(iter(cells.values()))).title
    for place, (cell, own) in enumerate(cells.items()):
        for name in SPLITS:
            look = style_of(own[0], styles) | {"linestyle": ""}
            if name == "heldout_exact":
                look["markerfacecolor"] = "white"
            point, one = over_seeds(own, name, steps), sure.get((name, cell, steps))
            ends = (one.low, one.high) if one else _around(point)
            axis.hlines(-place, *ends, color=look["color"], linewidth=2 if one else 0.9)
            axis.plot([point.mean], [-place], markersize=6, **look)
    axis.set(
        title=f"{title} at {steps} steps, held-out hollow",
        yticks=[-place for place in range(len(cells))],
    )
    axis.set_yticklabels(list(cells), fontsize=8)


def _around(point: Estimate) -> tuple[float, float]:
    spread = 0.0 if math.isnan(point.spread) else point.spread
    return point.mean - spread, point.mean + spread


def _draw_cross_entropy(axis: Any, rows: Sequence[Row], styles: Mapping[str, Style]) -> None:
    """One line per trained network: the sampler has no part in it, hence no marker of its own."""
    levels, trained = list(rows[0]["cross_entropy"]), by_training(rows)
    for place, own in enumerate(trained.values()):
        points = [at_level(own, "cross_entropy", level) for level in levels]
        style = style_of(own[0], styles) | {"marker": "."}
        offset = place - (len(trained) - 1) / 2
        line(axis, [float(level) for level in levels], points, offset, style)
    axis.set(
        title="cross-entropy of corrupted tokens (compare within a corruption)",
        xlabel="corrupted tokens, %",
        ylabel="nats",
        xticks=[float(level) for level in levels],
    )


def line(
    axis: Any,
    x: Sequence[float],
    points: Sequence[Estimate],
    offset: float,
    style: Style,
    bars: Sequence[Interval | None] = (),
) -> None:
    """A curve; thick bars where there are intervals, elsewhere thin ones of the spread."""
    shift = offset * DODGE * (max(x) - min(x)) if x else 0.0
    sure = list(bars) or [None] * len(points)
    known = [(place + shift, p, one) for place, p, one in zip(x, points, sure, strict=True)
             if p.seeds]  # fmt: skip
    if not known:
        return
    axis.errorbar(
        [place for place, _, _ in known],
        [p.mean for _, p, _ in known],
        yerr=[0.0 if one or math.isnan(p.spread) else p.spread for _, p, one in known],
        elinewidth=0.9,
        capsize=0 if all(one for _, _, one in known) else 2,
        linewidth=1.4,
        markersize=5,
        **style,
    )
    for place, _, one in known:
        if one is not None:  # by its ends: the mean need not be in the middle
            axis.vlines(place, one.low, one.high, linewidth=2, color=style["color"], alpha=0.8)


def styles_of(rows: Sequence[Row]) -> dict[str, Style]:
    """factor=value -> what shows it, in the order of the rows; colors repeat after six."""
    looks = {"network": ("color", COLORS), "corruption": ("linestyle", LINES)}
    looks["sampler"] = ("marker", MARKERS)
    styles: dict[str, Style] = {}
    for factor, (key, choices) in looks.items():
        for place, value in enumerate(dict.fromkeys(row[factor] for row in rows)):
            styles[f"{factor}={value}"] = {key: choices[place % len(choices)]}
    return styles


def style_of(row: Row, styles: Mapping[str, Style]) -> Style:
    """What a row is drawn with: the looks of its three factors."""
    style: Style = {}
    for factor in FACTORS:
        style |= styles[f"{factor}={row[factor]}"]
    return style


def _entries(styles: Mapping[str, Style], factor: str) -> list[Any]:
    """The factor's name and an entry per value: seven entries explain twelve cells."""
    from matplotlib.lines import Line2D

    entries = [Line2D([], [], linestyle="", label=factor.upper())]
    for name, style in styles.items():
        own, value = name.split("=", 1)
        line = "" if "marker" in style else "-"
        plain: Style = {"color": "#333", "linestyle": line, "linewidth": 2}
        if own == factor:
            entries.append(Line2D([], [], label=value, **(plain | style)))
    return entries


def _empty() -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", label=" ")
