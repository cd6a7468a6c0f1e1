"""Writes a comparison of token predictors as JSON, as a page of tables, and as curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paella_jax.comparison.curves import draw_comparison
from paella_jax.comparison.intervals import SPLITS, interval
from paella_jax.comparison.rows import (
    STEP_METRICS,
    Row,
    at_level,
    best_steps,
    by_cell,
    by_training,
    cells_alone,
    check_rows,
    over_seeds,
    reference_steps,
)
from paella_jax.comparison.verdict import verdict
from paella_jax.files.atomic import write_atomically

READING = (
    "Every number is a mean over seeds ± the standard deviation over seeds; without ± there was "
    "one seed. Attributes are the mean of color, shape, size and position. Guidance is chosen for "
    "each cell by itself. Diversity is the mean feature distance between samples of one caption: "
    "where a caption determines the image it comes from mistakes. The cross-entropy is on "
    "corrupted tokens only; it does not compare across corruptions, because a mask shows which "
    "tokens are missing and a random code does not."
)


def write_report(
    rows: Sequence[Mapping[str, Any]],
    out: Path,
    notes: Sequence[str] = (),
    main_steps: int | None = None,
) -> dict[str, Any]:
    """Writes comparison.json, comparison.md and comparison.png.

    Args:
      rows: one per cell and seed, as comparison/rows.py describes them.
      out: folder, created where missing; each file appears whole or not at all.
      notes: lines for the top of the page, such as the budget all cells had.
      main_steps: step count at which cells are compared; None leaves it to `reference_steps`.

    Returns:
      What comparison.json holds: `rows`, `notes` and `verdict`.

    Raises:
      ValueError: as `check_rows`, before anything is written.
    """
    clean = check_rows(rows)
    result = {"notes": list(notes), "verdict": verdict(clean, main_steps), "rows": clean}
    page = markdown(clean, notes, main_steps)
    out.mkdir(parents=True, exist_ok=True)
    draw_comparison(out / "comparison.png", clean)
    write_atomically(out / "comparison.md", page)
    write_atomically(out / "comparison.json", json.dumps(result, indent=2, allow_nan=False))
    return result


def markdown(
    rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = (), main_steps: int | None = None
) -> str:
    """The page: cells at equal steps and at their best, cross-entropies, and the verdict."""
    clean = check_rows(rows)
    steps = reference_steps(clean, main_steps)
    cells = by_cell(cells_alone(clean))
    variants = {name: own for name, own in by_cell(clean).items() if own[0]["variant"]}
    parts = [
        "# Comparison of token predictors",
        "\n".join(f"- {note}" for note in notes),
        READING,
        "![curves](comparison.png)",
        "## Verdict",
        "\n".join(f"- {sentence}" for sentence in verdict(clean, main_steps)),
        f"## Every cell at {steps} steps",
        _table(_score_columns(), {n: _scores(own, steps) for n, own in cells.items()}),
        _intervals(cells, steps),
        variants and f"## Variants at {steps} steps: ablations and larger budgets",
        variants
        and _table(_score_columns(), {n: _scores(own, steps) for n, own in variants.items()}),
        "## Every cell at its best number of steps (by seen exact match)",
        _table(
            ["steps", *_score_columns()],
            {n: [best_steps(own), *_scores(own, best_steps(own))] for n, own in cells.items()},
        ),
        "## What each cell cost",
        _table(
            ["seeds", "parameters", "MFLOP per forward", "images trained", "train seconds",
             "guidance"],
            {name: _costs(own) for name, own in by_cell(clean).items()},
        ),
        "## Cross-entropy of corrupted tokens in nats (accuracy), by share corrupted",
        _table(
            [f"{level} %" for level in clean[0]["cross_entropy"]],
            {name: _predictions(own) for name, own in by_training(clean).items()},
        ),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _intervals(cells: Mapping[str, Sequence[Row]], steps: str) -> str:
    """95 % intervals of the exact matches; empty where images were not scored one by one."""
    found = {name: [interval(own, metric) for metric in SPLITS] for name, own in cells.items()}
    if any(None in own for own in found.values()):
        return ""
    shown = {name: [one.show() for one in own if one is not None] for name, own in found.items()}
    columns = [STEP_METRICS[metric].title for metric in SPLITS]
    title = f"### 95 % intervals at {steps} steps, resampling captions and seeds"
    return f"{title}\n\n{_table(columns, shown)}"


def _score_columns() -> list[str]:
    return [metric.title for metric in STEP_METRICS.values()]


def _scores(rows: Sequence[Row], steps: str) -> list[str]:
    return [over_seeds(rows, n, steps).show(m.digits) for n, m in STEP_METRICS.items()]


def _costs(rows: Sequence[Row]) -> list[str]:
    mean = {name: over_seeds(rows, name).mean for name in ("parameters", "flops", "images_trained")}
    weights = sorted({row["guidance"] for row in rows if row["guidance"] is not None})
    return [
        str(len(rows)),
        f"{mean['parameters']:,.0f}",
        f"{mean['flops'] / 1e6:,.1f}",
        f"{mean['images_trained']:,.0f}",
        over_seeds(rows, "train_seconds").show(0),
        ", ".join(f"{weight:g}" for weight in weights) or "-",  # one per seed where they differ
    ]


def _predictions(rows: Sequence[Row]) -> list[str]:
    """Cross-entropy with spread, and the mean accuracy in brackets, at every level."""
    shown = []
    for level in rows[0]["cross_entropy"]:
        loss = at_level(rows, "cross_entropy", level)
        accuracy = at_level(rows, "token_accuracy", level)
        shown.append(f"{loss.show(3)} ({accuracy.mean:.3f})" if accuracy.seeds else loss.show(3))
    return shown


def _table(columns: Sequence[str], lines: Mapping[str, Sequence[str]]) -> str:
    header = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join([*header, *(f"| {name} | {' | '.join(own)} |" for name, own in lines.items())])
