"""Random damages to a run folder, and what is read of it afterwards.

`python tests/damages.py RUN [COUNT] [SEED]` damages a copy of a small run COUNT times, reads all
that sampling, resuming and averaging read, and counts what was refused, told or silently wrong.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from paella_jax.config import UserError, to_json
from paella_jax.runs import digests
from paella_jax.runs.average import read_raw, steps_to_average
from paella_jax.runs.checkpoint import Checkpointer, restore_variables
from paella_jax.runs.folder import METRICS_FILE, read_config, read_metrics
from paella_jax.runs.frozen import load_carried
from paella_jax.runs.step_digests import COMMITTED
from paella_jax.runs.verify import NOTE, verify_run
from paella_jax.runs.whole_steps import set_aside_incomplete

HARMLESS, TOLD, REFUSED, SILENT, UNCLEAR = "harmless", "told", "refused", "SILENT", "UNCLEAR"
FOUND, MISSED = "found by verify", "missed by verify"


def flip(file: Path, draw: np.random.Generator, files: list[Path]) -> None:
    content = bytearray(file.read_bytes())
    content[draw.integers(len(content))] ^= 1 << draw.integers(8)
    file.write_bytes(content)


def cut(file: Path, draw: np.random.Generator, files: list[Path]) -> None:
    file.write_bytes(file.read_bytes()[: draw.integers(file.stat().st_size)])


def delete(file: Path, draw: np.random.Generator, files: list[Path]) -> None:
    file.unlink()


def swap(file: Path, draw: np.random.Generator, files: list[Path]) -> None:
    alike = [other for other in files if other.suffix == file.suffix and other != file]
    other = alike[draw.integers(len(alike))] if alike else files[draw.integers(len(files))]
    first, second = file.read_bytes(), other.read_bytes()
    file.write_bytes(second)
    other.write_bytes(first)


def duplicate(file: Path, draw: np.random.Generator, files: list[Path]) -> None:
    """One file in the place of another one, or a whole step under another number."""
    if file.parent.parent.name == "checkpoints":
        shutil.copytree(file.parent, file.parent.with_name("9"))
        return
    other = files[draw.integers(len(files))]
    other.write_bytes(file.read_bytes())


DAMAGES = (flip, flip, cut, delete, swap, duplicate)


def damage(folder: Path, draw: np.random.Generator) -> str:
    """Damages one file of a folder; half of the time drawn by its size."""
    files = [f for f in folder.rglob("*") if f.is_file() and f.stat().st_size]
    files = sorted(f for f in files if f.name != COMMITTED)  # which nothing reads
    sizes = np.array([f.stat().st_size for f in files], float)
    chances = sizes / sizes.sum() if draw.random() < 0.5 else None
    file = files[draw.choice(len(files), p=chances)]
    how = DAMAGES[draw.integers(len(DAMAGES))]
    how(file, draw, files)
    return f"{how.__name__} {file.relative_to(folder)}"


def contents(folder: Path) -> dict[Path, bytes]:
    return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def readers(abstract: Any) -> dict[str, Callable[[Path], Any]]:
    """What reads a folder, by name; each gives what must not change."""

    def resumed(folder: Path) -> Any:
        print(set_aside_incomplete(folder), end="", file=sys.stderr)  # as training does
        checkpointer = Checkpointer(folder)
        try:
            return checkpointer.restore(abstract)
        finally:
            checkpointer.close()

    return {
        "config": lambda folder: to_json(read_config(folder)),
        "sample": lambda folder: restore_variables(folder)[1],
        "average": lambda folder: [read_raw(folder, step) for step in steps_to_average(folder)],
        "tokenizer": lambda folder: load_carried("tokenizer", folder)[1],
        "tokenizer's config": lambda folder: to_json(load_carried("tokenizer", folder)[0]),
        "metrics": lambda folder: read_metrics(folder / METRICS_FILE),
        "resume": resumed,  # the last, as it moves what is incomplete
    }


def same(first: Any, second: Any) -> bool:
    if jax.tree.structure(first) != jax.tree.structure(second):
        return False
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def outcome(read: Callable[[Path], Any], folder: Path, expected: Any) -> str:
    """How a reader takes a damaged folder."""
    digests._told.clear()
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            found = read(folder)
    except UserError:
        return REFUSED
    except Exception as error:  # what users would see as a traceback
        return f"{UNCLEAR} {type(error).__name__}: {error}"
    if same(found, expected):
        return HARMLESS
    if isinstance(expected, list) and expected and isinstance(expected[0], dict):
        lost_only = all(any(same(row, was) for was in expected) for row in found)
        return TOLD if lost_only and told.getvalue() else SILENT
    return TOLD if told.getvalue() else SILENT


def try_damages(run: Path, abstract: Any, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Counts of outcomes, one per damage (the worst of its readers'), and each one that is bad."""
    read, draw = readers(abstract), np.random.default_rng(seed)
    expected = {name: one(run) for name, one in read.items()}
    counts: Counter[str] = Counter()
    bad = []
    for _ in range(count):
        with tempfile.TemporaryDirectory() as place:
            folder = shutil.copytree(run, Path(place) / "run")
            before = contents(folder)
            while contents(folder) == before:  # as after a swap of two equal files
                what = damage(folder, draw)
            is_found = any(finding.kind != NOTE for finding in verify_run(folder))
            results = {n: outcome(one, folder, expected[n]) for n, one in read.items()}
        worst = max(results.values(), key=lambda r: (SILENT in r, UNCLEAR in r, r == REFUSED, r))
        counts[worst.split(" ")[0]] += 1
        counts[FOUND if is_found else MISSED] += 1
        if SILENT in worst or UNCLEAR in worst or not is_found:
            bad.append(f"{what}: {results}, {'found' if is_found else 'missed'} by verify")
    return counts, bad


def main() -> None:
    from paella_jax.registry import build_method
    from paella_jax.training.loop import abstract_state
    from paella_jax.training.sharding import make_mesh

    run = Path(sys.argv[1])
    count, seed = (int(word) for word in (*sys.argv[2:4], *("200", "0")[len(sys.argv[2:4]) :]))
    config = read_config(run)
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        abstract, _ = abstract_state(config, build_method(config, run), mesh)
        counts, bad = try_damages(run, abstract, count, seed)
    print("\n".join(bad))
    print(f"{count} damages of {run}: {dict(counts)}")


if __name__ == "__main__":
    main()
