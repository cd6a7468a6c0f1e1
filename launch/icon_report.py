"""Joins the scores of ./launch/icons.sh into one report: WORKDIR/report.json and report.md.

python launch/icon_report.py WORKDIR [STAGE=SECONDS ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from paella_jax.evaluation.estimates import Estimate
from paella_jax.files.atomic import write_atomically
from paella_jax.reports.scores import show_table

RUNS = ("vqgan", "stage_b", "paella", "muse", "stage_c")


def main(workdir: Path, seconds: dict[str, float]) -> None:
    """Writes both files and prints the table."""
    if lacking := [name for name in RUNS if not (workdir / name / "scores.json").is_file()]:
        sys.exit(
            f"error: {workdir} has no scores of {', '.join(lacking)}; ./launch/icons.sh makes them"
        )
    scores = {name: json.loads((workdir / name / "scores.json").read_text()) for name in RUNS}
    rows = [_read_row(scores[name]["rows"][0]) for name in RUNS]
    rows += [_read_row(row) for row in scores["paella"]["rows"][1:]]
    grids = [f"{name}/scores.png" for name in RUNS]
    notes = [
        "The first rows are what the runs rebuild or draw; the others are real images.",
        *dict.fromkeys(note for name in RUNS for note in scores[name]["notes"]),
        f"Grids beside the true images: {', '.join(grids)}.",
        "Seconds: " + ", ".join(f"{stage} {used:.0f}" for stage, used in seconds.items()) + ".",
    ]
    page = "\n\n".join([show_table(rows), *notes]) + "\n"
    write_atomically(workdir / "report.md", page)
    report = {"seconds": seconds, "runs": scores}
    write_atomically(workdir / "report.json", json.dumps(report, indent=2))
    print(page)


def _read_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it was before it was JSON: numbers with a spread are tuples of that name."""
    spread = lambda x: Estimate(**x) if "low" in x else SimpleNamespace(**x)
    return {key: spread(x) if isinstance(x, dict) else x for key, x in row.items()}


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    stages = (stage.split("=") for stage in sys.argv[2:])
    main(Path(sys.argv[1]), {name: float(used) for name, used in stages})
