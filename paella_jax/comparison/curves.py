"""The curves of a comparison: color is the network, line the corruption, marker the sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paella_jax.comparison.rows import (
    FACTORS,
    Estimate,
    Row,
    at_level,
    by_cell,
    by_training,
    cells_alone,
    over_seeds,
)
from paella_jax.images.write import save_figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito
LINES = ("-", (0, (4, 2)), ":", "-.")
MARKERS = ("o", "^", "s", "D", "v", "P")
DODGE = 0.004  # of the axis, between neighbouring cells, so that error bars stay apart
PANELS = {
    "seen_exact": "seen captions: exact match",
    "heldout_attributes": "held-out captions: attributes right",
    "frechet": "Fréchet distance (lower is better)",
}
Style = dict[str, Any]


def draw_comparison(file: str | Path, rows: Sequence[Row]) -> None:
    """Writes checked rows as four panels with one legend; bars are one spread over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = cells_alone(rows)
    figure, axes = pyplot.subplots(2, 2, figsize=(13.5, 9))
    cells, styles = by_cell(rows), _styles(rows)
    for axis, (name, title) in zip(axes.flat, PANELS.items(), strict=False):
        steps = list(rows[0]["by_steps"])
        for place, own in enumerate(cells.values()):
            points = [over_seeds(own, name, count) for count in steps]
            offset = place - (len(cells) - 1) / 2
            _line(axis, [float(s) for s in steps], points, offset, _style(own[0], styles))
        axis.set(title=title, xlabel="sampling steps", xticks=[float(s) for s in steps])
    _draw_cross_entropy(axes.flat[-1], rows, styles)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.legend(handles=_legend(styles), loc="center right", frameon=False, fontsize=11)
    figure.tight_layout(rect=(0, 0, 0.86, 1))
    save_figure(file, figure)


def _draw_cross_entropy(axis: Any, rows: Sequence[Row], styles: Mapping[str, Style]) -> None:
    """One line per trained network: the sampler has no part in it, hence no marker of its own."""
    levels, trained = list(rows[0]["cross_entropy"]), by_training(rows)
    for place, own in enumerate(trained.values()):
        points = [at_level(own, "cross_entropy", level) for level in levels]
        style = _style(own[0], styles) | {"marker": "."}
        offset = place - (len(trained) - 1) / 2
        _line(axis, [float(level) for level in levels], points, offset, style)
    axis.set(
        title="cross-entropy of corrupted tokens (compare within a corruption)",
        xlabel="corrupted tokens, %",
        ylabel="nats",
        xticks=[float(level) for level in levels],
    )


def _line(
    axis: Any, x: Sequence[float], points: Sequence[Estimate], offset: float, style: Style
) -> None:
    shift = offset * DODGE * (max(x) - min(x)) if x else 0.0
    known = [(place + shift, p) for place, p in zip(x, points, strict=True) if p.seeds]
    if not known:
        return
    axis.errorbar(
        [place for place, _ in known],
        [p.mean for _, p in known],
        yerr=[0.0 if p.spread != p.spread else p.spread for _, p in known],
        elinewidth=0.9,
        capsize=2,
        linewidth=1.6,
        markersize=6,
        **style,
    )


def _styles(rows: Sequence[Row]) -> dict[str, Style]:
    """factor=value -> what shows it, in the order of the rows; colors repeat after six."""
    looks = {"network": ("color", COLORS), "corruption": ("linestyle", LINES)}
    looks["sampler"] = ("marker", MARKERS)
    styles: dict[str, Style] = {}
    for factor, (key, choices) in looks.items():
        for place, value in enumerate(dict.fromkeys(row[factor] for row in rows)):
            styles[f"{factor}={value}"] = {key: choices[place % len(choices)]}
    return styles


def _style(row: Row, styles: Mapping[str, Style]) -> Style:
    style: Style = {}
    for factor in FACTORS:
        style |= styles[f"{factor}={row[factor]}"]
    return style


def _legend(styles: Mapping[str, Style]) -> list[Any]:
    """One entry per value of a factor, below the factor's name: 7 entries explain 12 cells."""
    from matplotlib.lines import Line2D

    entries, heading = [], ""
    for name, style in styles.items():
        factor, value = name.split("=", 1)
        if factor != heading:
            if heading:
                entries.append(Line2D([], [], linestyle="", label=" "))
            entries.append(Line2D([], [], linestyle="", label=factor.upper()))
            heading = factor
        plain: Style = {
            "color": "#333",
            "linestyle": "" if "marker" in style else "-",
            "linewidth": 2,
        }
        entries.append(Line2D([], [], label=value, **(plain | style)))
    return entries
