"""The page and the file of a repetition: means over seeds with their spread and minimum."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paella_jax.comparison.rows import estimate
from paella_jax.files.atomic import write_atomically
from paella_jax.reports.task_page import COLUMNS, NOTES

SAMPLERS = {"preset": "preset's sampler", "tuned": "tuned for each run"}
SPLITS = {"seen": "seen", "heldout": "held-out"}
METRICS = ("exact", "clean", "attributes", "color", "shape", "size", "position", "background",
           "count")  # fmt: skip
Row = Mapping[str, Any]


def over_seeds(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, sample standard deviation (None of one value) and minimum."""
    mean, spread, _ = estimate(values)
    return {
        "mean": round(mean, 4),
        "deviation": None if math.isnan(spread) else round(spread, 4),
        "minimum": round(min(values), 4),
    }


def show(values: Sequence[float]) -> str:
    """As "0.950 ± 0.010"; the spread of one value is "-"."""
    own = over_seeds(values)
    spread = "-" if own["deviation"] is None else f"{own['deviation']:.3f}"
    return f"{own['mean']:.3f} ± {spread}"


def write_report(
    rows: Sequence[Row], out: Path, command: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes seeds.json and seeds.md.

    Args:
      rows: one per seed, as `score_seed` writes them.
      out: folder.
      command: what repeats it.
      settings: `config`, `captions` (how many of each kind).

    Returns:
      What seeds.json holds.
    """
    summary = {
        sampler: {
            split: {
                metric: over_seeds([row[sampler][split][metric] for row in rows])
                for metric in METRICS
            }
            for split in SPLITS
        }
        for sampler in SAMPLERS
    }
    result = {"command": command, **settings, "over_seeds": summary, "runs": list(rows)}
    write_atomically(out / "seeds.md", page(rows, command, settings))
    write_atomically(out / "seeds.json", json.dumps(result, indent=2))
    return result


def page(rows: Sequence[Row], command: str, settings: Mapping[str, Any]) -> str:
    """The page with its tables."""
    config, count = settings["config"], settings["captions"]
    told = {
        name: f"{own['captions']} ({own['different']} different, {own['objects']} objects each)"
        for name, own in count.items()
    }
    seconds = [sum(row["seconds"].values()) for row in rows]
    grounds = len({tuple(row["stands_on"].values()) for row in rows})
    parts = [
        f"# {config['method']}, preset {config['preset']}: {len(rows)} seeds",
        f"    {command}",
        "\n".join(
            [
                f"- {config['num_steps']} updates of {config['batch_size']} images; "
                f"{show_seconds(seconds)} seconds of training for a seed, beside what else ran.",
                f"- Scored on {told['seen']} seen and {told['heldout']} held-out captions, the "
                f"same with the same image seeds for every run; tuned on {told['tuning']} others "
                "by exact images, then attributes (color, shape, size and position).",
                f"- Tokenizers (or Stage B's runs) that seeds take turns to stand on: {grounds}.",
                "- Mean ± sample standard deviation over the seeds, and the lowest of them.",
            ]
        ),
        _summary_table(rows),
        "## Every run",
        _runs_table(rows),
        _decoders_table([row["decoders"] for row in rows if "decoders" in row]),
        _tasks_table([row["tasks"] for row in rows if "tasks" in row]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def show_seconds(values: Sequence[float]) -> str:
    """As "484 to 520"."""
    low, high = (f"{end(values):.0f}" for end in (min, max))
    return low if low == high else f"{low} to {high}"


def _summary_table(rows: Sequence[Row]) -> str:
    columns = [cell for title in SAMPLERS.values() for cell in (title, "minimum")]
    lines = [_line("", *columns), "|---" * 5 + "|"]
    for split, title in SPLITS.items():
        for metric in METRICS:
            cells = []
            for sampler in SAMPLERS:
                values = [row[sampler][split][metric] for row in rows]
                cells += [show(values), f"{min(values):.3f}"]
            lines.append(_line(f"{title} {metric}", *cells))
        ceiling = [row["ceiling"][split] for row in rows]
        cells = [show(ceiling), f"{min(ceiling):.3f}"] * len(SAMPLERS)
        lines.append(_line(f"{title} exact, reconstructions", *cells))
    return "\n".join(lines)


def _runs_table(rows: Sequence[Row]) -> str:
    exact = lambda row, sampler: [f"{row[sampler][split]['exact']:.3f}" for split in SPLITS]
    columns = ["stands on", "seconds", "seen", "held-out", "tuned: seen", "held-out", "settings"]
    lines = [_line("seed", *columns), "|---" * 8 + "|"]
    for row in rows:
        stands_on = ", ".join(Path(folder).name for folder in row["stands_on"].values())
        seconds = ", ".join(f"{name} {value:.0f}" for name, value in row["seconds"].items())
        chosen = ", ".join(f"{name} {value}" for name, value in row["chosen"].items())
        cells = [stands_on, seconds, *exact(row, "preset"), *exact(row, "tuned")]
        lines.append(_line(str(row["seed"]), *cells, chosen or "the preset's"))
    return "\n".join(lines)


def _decoders_table(decoders: Sequence[Row]) -> str:
    """Stage C's latents by both decoders, with the preset's sampler; empty without any."""
    if not decoders:
        return ""
    metrics = ("exact", "color", "shape", "size", "position")
    lines = [_line("seen captions of each seed's own", *metrics), "|---" * 6 + "|"]
    for name in decoders[0]:
        lines.append(_line(name, *(show([own[name][m] for own in decoders]) for m in metrics)))
    return "## Decoders\n\n" + "\n".join(lines)


def _tasks_table(runs: Sequence[Sequence[Row]]) -> str:
    """Every image task over the seeds, in the columns that any of them has; empty without any."""
    if not runs:
        return ""
    names = [name for name in COLUMNS if any(name in row for row in runs[0])]
    lines = [
        _line("task", "setting", *(COLUMNS[n] for n in names)),
        "|---" * (2 + len(names)) + "|",
    ]
    for same in zip(*runs, strict=True):
        cells = [show([own[n] for own in same]) if n in same[0] else "" for n in names]
        lines.append(_line(same[0]["task"], same[0]["setting"], *cells))
    return "## Image tasks\n\n" + "\n".join(lines) + f"\n\n{NOTES}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
