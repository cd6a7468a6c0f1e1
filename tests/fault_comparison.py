"""A whole small comparison, which tests/faults.py stops if asked: a start takes half a minute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fault_works import Work, command, newest_step, run_folder, sha256

from paella_jax import compare

FOLDERS = ("runs", "search")
TIMED = ("train_seconds", "seconds_per_image")
SMALL = (
    "config.cells.networks=('unet',)", "config.cells.samplers=('random',)",
    "config.search.rates=(1e-3,4e-3)", "config.search.seeds=(0,)", "config.budget.images=96",
    "config.overrides=('checkpoint.every=2',)",
)  # fmt: skip


def whole_comparison() -> Work:
    """`paella_jax.compare`: tokenizer, classifier, search, trainings, scores, page and pictures."""

    def run(folder: Path) -> int:
        flags = [f"--{setting}" for setting in SMALL]
        return command(compare.main, "--config", "compare:tiny", "--out", str(folder), *flags)

    def found(folder: Path) -> Any:
        runs = {str(f.relative_to(folder)): run_folder(f) for f in _run_folders(folder)}
        rows = {f.name: untimed(json.loads(f.read_text())) for f in folder.glob("measured/*.json")}
        pictures = {f.name: sha256(f) for f in folder.glob("comparison_s*.png")}
        files = (f for f in folder.rglob("*") if f.is_file())
        names = {f.relative_to(folder).as_posix() for f in files if "checkpoints" not in f.parts}
        return {"runs": runs, "rows": rows, "pictures": pictures, "files": sorted(names),
                "search": json.loads((folder / "search.json").read_text())}  # fmt: skip

    def saved(folder: Path) -> int:
        return len([*folder.glob("measured/*.json"), *filter(_is_saved, _run_folders(folder))])

    return Work("whole comparison", Path.mkdir, run, found, saved)


def _run_folders(folder: Path) -> list[Path]:
    """Of all trainings that are there."""
    inside = [f for name in FOLDERS for f in folder.glob(f"{name}/*") if f.is_dir()]
    return sorted(f for f in (*inside, folder / "tokenizer") if (f / "config.json").is_file())


def _is_saved(folder: Path) -> bool:
    return newest_step(folder) > 0


def untimed(row: Any) -> Any:
    """A record without what is another time in every run."""
    if isinstance(row, dict):
        return {name: untimed(part) for name, part in row.items() if name not in TIMED}
    return row
