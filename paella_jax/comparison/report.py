"""Writes a comparison of token predictors: numbers as JSON, a page as HTML and Markdown, PNGs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paella_jax.comparison.budgets import by_budget, draw_budgets
from paella_jax.comparison.curves import draw_comparison
from paella_jax.comparison.grids import draw_samples, draw_steps
from paella_jax.comparison.intervals import SPLITS, interval
from paella_jax.comparison.literature import literature
from paella_jax.comparison.pictures import read_drawn
from paella_jax.comparison.rows import (
    STEP_METRICS,
    Row,
    at_level,
    best_steps,
    by_cell,
    by_training,
    cells_alone,
    check_rows,
    metric,
    over_seeds,
    reference_steps,
)
from paella_jax.comparison.verdict import verdict
from paella_jax.files.atomic import write_atomically
from paella_jax.reports.page import (
    Block,
    Bullets,
    Figure,
    Heading,
    Table,
    Text,
    as_html,
    as_markdown,
)

MARKS = {
    "oracle": "Attributes are the mean of color, shape, size and position. Clean images are exact "
    "and look it, which garbled ones that happen to read right do not.",
    "retrieval": "R@1 and R@5: how often a caption's own true image is the nearest, or among the "
    "five nearest, of those of 64 captions, by features; chance is 0.016 and 0.078. Seen captions "
    "are of training images, held-out ones of images that were held back.",
}
READING = (
    "Every number is a mean over seeds ± the standard deviation over seeds; without ± there was "
    "one seed. {marks} Guidance is chosen for each cell by itself. In 95 % intervals captions are "
    "resampled and seeds follow Student's t distribution, so that three seeds decide little. "
    "Diversity is the mean feature distance between samples of one caption: where a caption "
    "determines the image it comes from mistakes. The cross-entropy is on corrupted tokens only; "
    "it does not compare across corruptions, because a mask shows which tokens are missing and a "
    "random code does not."
)


CURVES_FILE, BUDGETS_FILE = "comparison.png", "comparison_budgets.png"
DRAWINGS = {"comparison_samples.png": draw_samples, "comparison_steps.png": draw_steps}
HEADINGS = {
    CURVES_FILE: "Curves",
    BUDGETS_FILE: "Larger budgets",
    "comparison_samples.png": "The same prompts and seeds in every cell",
    "comparison_steps.png": "Step by step",
}


def write_report(
    rows: Sequence[Mapping[str, Any]],
    out: Path,
    notes: Sequence[str] = (),
    main_steps: int | None = None,
) -> dict[str, Any]:
    """Writes comparison.json, .md, .html and PNGs: curves, larger budgets, grids of kept images.

    Args:
      rows: one per cell and seed, as comparison/rows.py describes them.
      out: folder, created where missing; each file appears whole or not at all. What cells drew is
        read from `measured/` in it (pictures.py).
      notes: lines for the top of the page, such as the budget all cells had.
      main_steps: step count at which cells are compared; None leaves it to `reference_steps`.

    Returns:
      What comparison.json holds: `rows`, `notes`, `verdict` and `literature`.

    Raises:
      ValueError: as `check_rows`, or for damaged images, before anything is written.
    """
    clean = check_rows(rows)
    result = {
        "notes": list(notes),
        "verdict": verdict(clean, main_steps),
        "literature": literature(clean, main_steps),
        "rows": clean,
    }
    cells = list(by_cell(cells_alone(clean)))
    drawn = read_drawn(out, cells)
    out.mkdir(parents=True, exist_ok=True)
    steps = reference_steps(clean, main_steps)
    figures = {CURVES_FILE: draw_comparison(out / CURVES_FILE, clean, steps)}
    if by_budget(clean):
        figures[BUDGETS_FILE] = draw_budgets(out / BUDGETS_FILE, clean, steps)
    if drawn:
        lacking = [cell for cell in cells if cell not in drawn]
        more = f" No images were kept of {', '.join(lacking)}." if lacking else ""
        for name, draw in DRAWINGS.items():
            figures[name] = draw(out / name, drawn, clean) + more
    blocks = page(clean, notes, main_steps, figures)
    write_atomically(out / "comparison.md", as_markdown(blocks))
    write_atomically(out / "comparison.html", as_html(blocks, out))
    write_atomically(out / "comparison.json", json.dumps(result, indent=2, allow_nan=False))
    return result


def page(
    rows: Sequence[Mapping[str, Any]],
    notes: Sequence[str] = (),
    main_steps: int | None = None,
    figures: Mapping[str, str] | None = None,
) -> list[Block]:
    """What comparison.md and comparison.html hold: verdict, claims, images and tables.

    Args:
      rows: as `write_report`.
      notes: likewise.
      main_steps: likewise.
      figures: PNG file -> caption, of `HEADINGS`.
    """
    clean = check_rows(rows)
    steps = reference_steps(clean, main_steps)
    blocks: list[Block] = [
        Heading("Comparison of token predictors", 1),
        Bullets(notes),
        Heading("Verdict"),
        Bullets(verdict(clean, main_steps)),
        Heading("What the literature claims"),
        Bullets(literature(clean, main_steps)),
    ]
    reading = READING.format(marks=MARKS[clean[0]["marked_by"]])
    for file, caption in (figures or {}).items():
        blocks += [Heading(HEADINGS[file]), Figure(file, caption)]
    return [*blocks, Heading("Tables"), Text(reading), *_tables(clean, steps)]


def markdown(
    rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = (), main_steps: int | None = None
) -> str:
    """The page without its images, as text."""
    return as_markdown(page(rows, notes, main_steps))


def _tables(rows: Sequence[Row], steps: str) -> list[Block]:
    cells = by_cell(cells_alone(rows))
    variants = {name: own for name, own in by_cell(rows).items() if own[0]["variant"]}
    changed: list[Block] = []
    if variants:
        table = Table(_score_columns(rows), {n: _scores(own, steps) for n, own in variants.items()})
        changed = [Heading(f"Variants at {steps} steps: ablations and larger budgets", 3), table]
    best_by = metric("seen_exact", rows).title
    costs = ["seeds", "parameters", "MFLOP per forward", "images trained", "train seconds"]
    levels = [f"{level} %" for level in rows[0]["cross_entropy"]]
    best = {n: [best_steps(own), *_scores(own, best_steps(own))] for n, own in cells.items()}
    return [
        Heading(f"Every cell at {steps} steps", 3),
        Table(_score_columns(rows), {n: _scores(own, steps) for n, own in cells.items()}),
        *_intervals(cells, steps),
        *changed,
        Heading(f"Every cell at its best number of steps (by the measured {best_by}: lucky)", 3),
        Table(["steps", *_score_columns(rows)], best),
        Heading("What each cell cost", 3),
        Table([*costs, "guidance"], {n: _costs(own) for n, own in by_cell(rows).items()}),
        Heading("Cross-entropy of corrupted tokens in nats (accuracy), by share corrupted", 3),
        Table(levels, {name: _predictions(own) for name, own in by_training(rows).items()}),
    ]


def _intervals(cells: Mapping[str, Sequence[Row]], steps: str) -> list[Block]:
    """95 % intervals of the exact matches; nothing where images were not scored one by one."""
    found = {name: [interval(own, n) for n in SPLITS] for name, own in cells.items()}
    if any(None in own for own in found.values()):
        return []
    shown = {name: [one.show() for one in own if one is not None] for name, own in found.items()}
    title = f"95 % intervals at {steps} steps, over captions and seeds"
    return [
        Heading(title, 3),
        Table([metric(n, next(iter(cells.values()))).title for n in SPLITS], shown),
    ]


def _score_columns(rows: Sequence[Row]) -> list[str]:
    return [metric(name, rows).title for name in STEP_METRICS]


def _scores(rows: Sequence[Row], steps: str) -> list[str]:
    return [over_seeds(rows, n, steps).show(m.digits) for n, m in STEP_METRICS.items()]


def _costs(rows: Sequence[Row]) -> list[str]:
    mean = {name: over_seeds(rows, name).mean for name in ("parameters", "flops", "images_trained")}
    weights = dict.fromkeys(_guidance(row) for row in rows if row["guidance"] is not None)
    return [
        str(len(rows)),
        f"{mean['parameters']:,.0f}",
        f"{mean['flops'] / 1e6:,.1f}",
        f"{mean['images_trained']:,.0f}",
        over_seeds(rows, "train_seconds").show(0),
        ", ".join(sorted(weights)) or "-",  # one per seed where they differ
    ]


def _guidance(row: Row) -> str:
    """As "3", or "1 to 3" where it rises over the steps."""
    first, last = row.get("guidance_scale", (row["guidance"],) * 2)
    return f"{last:g}" if first == last else f"{first:g} to {last:g}"


def _predictions(rows: Sequence[Row]) -> list[str]:
    """Cross-entropy with spread, and the mean accuracy in brackets, at every level."""
    shown = []
    for level in rows[0]["cross_entropy"]:
        loss = at_level(rows, "cross_entropy", level)
        accuracy = at_level(rows, "token_accuracy", level)
        shown.append(f"{loss.show(3)} ({accuracy.mean:.3f})" if accuracy.seeds else loss.show(3))
    return shown
