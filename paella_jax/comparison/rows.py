"""The rows of a comparison: one per cell and seed, as plain dicts, and means over seeds.

A row holds
- `cell`: its name, and `corruption`, `network`, `sampler`: the three factors it stands for;
- `marked_by`, optional: what says whether an image is right, a key of `TITLES`;
- `variant`, optional: how its training differs from the cell's (comparison/variants.py);
- `seed`: of the training; `parameters`; `flops`: of one forward pass of one image;
- `images_trained`, `train_seconds`, and `guidance`: the weight chosen for this cell;
- `by_steps`: number of sampling steps -> the measurements of `STEP_METRICS`;
- `exact_of`, optional: split -> caption -> whether its images at the main step count are exact;
- `cross_entropy` (nats) and `token_accuracy`: corruption level in percent -> value.
A measurement may be None (or nan) where it was not taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Row = dict[str, Any]
FACTORS = ("corruption", "network", "sampler")
NUMBERS = ("parameters", "flops", "images_trained", "train_seconds", "guidance")
CURVES = ("cross_entropy", "token_accuracy")
PREFERRED_STEPS = 12  # both papers' setting


class Metric(NamedTuple):
    """How a measurement is shown, and which direction is good (None: neither by itself)."""

    title: str
    higher_is_better: bool | None
    digits: int


STEP_METRICS = {
    "seen_exact": Metric("seen exact match", True, 3),
    "seen_attributes": Metric("seen attributes", True, 3),
    "heldout_exact": Metric("held-out exact match", True, 3),
    "heldout_clean": Metric("held-out clean", True, 3),
    "heldout_attributes": Metric("held-out attributes", True, 3),
    "frechet": Metric("Fréchet distance", False, 2),
    "kernel": Metric("kernel distance", False, 2),
    "diversity": Metric("diversity", None, 3),
    "seconds_per_image": Metric("seconds per image", False, 4),
}
LATER = ("kernel", "heldout_clean")  # of STEP_METRICS: older rows have none
# How measurements are called that depend on what marks images: the embedded data's oracle, or
# whether an image's nearest true image, among those of many captions, is its caption's own.
TITLES = {
    "oracle": {},
    "retrieval": {
        "seen_exact": "seen R@1",
        "seen_attributes": "seen R@5",
        "heldout_exact": "held-out R@1",
        "heldout_attributes": "held-out R@5",
        "heldout_clean": "held-out R@1, not blank",
    },
}
METRICS = STEP_METRICS | {"cross_entropy": Metric("cross-entropy", False, 3)}


def metric(name: str, rows: Sequence[Row]) -> Metric:
    """How a measurement of some checked rows is shown."""
    known = METRICS[name]
    return known._replace(title=TITLES[rows[0]["marked_by"]].get(name, known.title))


class Estimate(NamedTuple):
    """A mean over `seeds` values; `spread` is the sample standard deviation, nan for one seed."""

    mean: float
    spread: float
    seeds: int

    def show(self, digits: int) -> str:
        """As "0.950 ± 0.010", without the spread where it is unknown, "-" if not measured."""
        if not self.seeds:
            return "-"
        spread = "" if math.isnan(self.spread) else f" ± {self.spread:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and spread of the values that are not nan."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Estimate(math.nan, math.nan, 0)
    spread = float(np.std(known, ddof=1)) if len(known) > 1 else math.nan
    return Estimate(float(np.mean(known)), spread, len(known))


def check_rows(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows with strings as keys and Python numbers, as they go to JSON.

    Raises:
      ValueError: no rows, a missing field, two rows of one cell and seed, one name for two cells or
        two names for one, rows whose step counts or corruption levels differ, or that were marked
        by different things.
    """
    if not rows:
        raise ValueError("a comparison needs at least one row")
    clean = [_clean(row) for row in rows]
    seen: set[tuple[str, int]] = set()
    factors: dict[str, tuple[str, ...]] = {}
    firsts: dict[bool, Row] = {}
    for row in clean:
        name = (row["cell"], row["seed"])
        if name in seen:
            raise ValueError(f"cell {name[0]} has two rows for seed {name[1]}")
        seen.add(name)
        own = (*(row[factor] for factor in FACTORS), row["variant"])
        if factors.setdefault(row["cell"], own) != own:
            raise ValueError(f"cell {row['cell']} stands for {factors[row['cell']]} and for {own}")
        # Variants are drawn at fewer numbers of steps than cells, all at the same.
        first = firsts.setdefault(bool(row["variant"]), row)
        for curve, like in (("by_steps", first), *((name, clean[0]) for name in CURVES)):
            if row[curve].keys() != like[curve].keys():
                raise ValueError(
                    f"{curve} of {row['cell']}, seed {row['seed']}, is at {list(row[curve])}, of "
                    f"{like['cell']} at {list(like[curve])}; measure all at the same"
                )
    if len({row["marked_by"] for row in clean}) > 1:
        raise ValueError("the rows are of images that were marked differently")
    if len(set(factors.values())) < len(factors):
        raise ValueError(f"two cells stand for the same {', '.join(FACTORS)}: {factors}")
    return clean


def _clean(row: Mapping[str, Any]) -> Row:
    wanted = ("cell", *FACTORS, "seed", *NUMBERS, "by_steps", *CURVES)
    missing = [name for name in wanted if name not in row]
    missing += [
        f"by_steps[{steps}].{name}"
        for steps, measured in row.get("by_steps", {}).items()
        for name in STEP_METRICS
        if name not in measured and name not in LATER
    ]
    if missing:
        raise ValueError(f"row of {row.get('cell', 'an unnamed cell')} lacks {', '.join(missing)}")
    clean: Row = {"variant": "", "marked_by": "oracle"} | dict(row) | {"seed": int(row["seed"])}
    clean |= {name: _number(row[name]) for name in NUMBERS}
    clean["by_steps"] = {
        str(steps): {name: _number(measured.get(name)) for name in STEP_METRICS}
        for steps, measured in sorted(row["by_steps"].items(), key=lambda item: int(item[0]))
    }
    for curve in CURVES:
        levels = sorted(row[curve].items(), key=lambda item: float(item[0]))
        clean[curve] = {str(level): _number(value) for level, value in levels}
    return clean


def _number(value: Any) -> float | int | None:
    """None where not measured: JSON has no nan."""
    if value is None or math.isnan(value):
        return None
    return int(value) if isinstance(value, int | np.integer) else float(value)


def read(row: Row, name: str, steps: str | None = None) -> float:
    """One number of a checked row, nan if not measured; curves are averaged over their levels."""
    if name in CURVES:
        values = [math.nan if v is None else v for v in row[name].values()]
        return float(np.mean(values)) if values else math.nan
    value = row["by_steps"][steps][name] if name in STEP_METRICS else row[name]
    return math.nan if value is None else float(value)


def over_seeds(rows: Sequence[Row], name: str, steps: str | None = None) -> Estimate:
    """`read` of every row, as mean and spread."""
    return estimate([read(row, name, steps) for row in rows])


def at_level(rows: Sequence[Row], curve: str, level: str) -> Estimate:
    """One point of a curve, as mean and spread over the rows."""
    values = [row[curve].get(level) for row in rows]
    return estimate([math.nan if value is None else value for value in values])


def by_cell(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each cell, cells in the order of the rows."""
    cells: dict[str, list[Row]] = {}
    for row in rows:
        cells.setdefault(row["cell"], []).append(row)
    return cells


def cells_alone(rows: Sequence[Row]) -> list[Row]:
    """The rows of the cells that are compared, without variants."""
    return [row for row in rows if not row["variant"]]


def by_training(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """One row per trained network and seed, whatever samples from it: "mask, unet" -> rows."""
    trained: dict[str, dict[int, Row]] = {}
    for row in rows:
        name = ", ".join(filter(None, (row["corruption"], row["network"], row["variant"])))
        trained.setdefault(name, {}).setdefault(row["seed"], row)
    return {name: list(of_seed.values()) for name, of_seed in trained.items()}


def reference_steps(rows: Sequence[Row], wanted: int | None = None) -> str:
    """The step count at which cells are compared: `wanted`, or 12 if measured, else the largest.

    Raises:
      ValueError: no step count was measured, or not the one that is wanted.
    """
    counts = list(rows[0]["by_steps"])
    if not counts:
        raise ValueError("the rows hold no step count, so there is nothing to compare")
    if wanted is None:
        return str(PREFERRED_STEPS) if str(PREFERRED_STEPS) in counts else counts[-1]
    if str(wanted) not in counts:
        raise ValueError(f"{wanted} steps were not measured, only {', '.join(counts)}")
    return str(wanted)


def best_steps(rows: Sequence[Row]) -> str:
    """The step count with the highest seen exact match of one cell; the fewest among equals."""
    counts = list(rows[0]["by_steps"])
    means = [over_seeds(rows, "seen_exact", steps).mean for steps in counts]
    return counts[int(np.argmax(np.nan_to_num(means, nan=-1.0)))]
