"""Line plots as PNG files, drawn without matplotlib's global state: a notebook keeps its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paella_jax.config import ConfigError
from paella_jax.files.atomic import atomic_path
from paella_jax.outside import expanded


def check_plots() -> None:
    """Whether plots can be drawn, before the work that they are to show.

    Raises:
      ConfigError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("the plots need matplotlib: pip install 'paella_jax[eval]'")


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure of `size` inches (width, height) and its axes [rows, columns]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_curves(
    file: str | Path, panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]
) -> None:
    """Writes line plots side by side: {panel title: {label: (x, y)}}."""
    figure, axes = new_figure(1, len(panels), (5 * len(panels), 4))
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for label, (x, y) in curves.items():
            axis.plot(x, y, label=label, marker="." if len(x) < 30 else None)
        axis.set_title(title)
        axis.grid(alpha=0.3)
        if curves:
            axis.legend()
    figure.tight_layout()
    save_figure(file, figure)


def save_figure(file: str | Path, figure: Any) -> None:
    """Writes a matplotlib figure as PNG."""
    with atomic_path(expanded(file), durable=False) as part:
        figure.savefig(part, format="png", dpi=110)
