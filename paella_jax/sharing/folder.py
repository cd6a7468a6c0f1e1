"""A run as a folder to give away: weights alone, its frozen networks, config, card and digests.

It is a run folder like any other, so that everything that takes one takes it; it cannot be resumed.
A second run that enlarges the first one's images lies inside of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from paella_jax import __version__
from paella_jax.config import to_json
from paella_jax.files.atomic import CARD_FILE, atomic_path, write_atomically
from paella_jax.files.digests import describe
from paella_jax.files.safetensors_file import write_safetensors
from paella_jax.files.tensors import ConversionError
from paella_jax.runs.derive import restore_all
from paella_jax.runs.folder import CONFIG_FILE, WEIGHTS_FILE, read_config
from paella_jax.runs.frozen import carry, copy_frozen
from paella_jax.runs.manifest import (
    MANIFEST,
    files_of,
    read_manifest,
    write_manifest,
)
from paella_jax.runs.whole_steps import complete_steps
from paella_jax.sharing.portable import portable, portable_frozen
from paella_jax.typing import Tree

KEEP = "keep"
DTYPES = {KEEP: None, "float32": np.dtype(jnp.float32), "bfloat16": np.dtype(jnp.bfloat16)}
SUPER_RESOLUTION = "super_resolution"  # the second run's folder in the first one's
TRAINING_ONLY = ("discriminator",)  # of a tokenizer


@dataclass(frozen=True)
class Shared:
    """One run to be written.

    Attributes:
      source: its folder, which has the frozen networks.
      config: of the run.
      step: of training; 0 of converted weights.
      params: whole parameters, numpy or jax.
      model_state: batch statistics and the like.
      decoder: run folder of a tokenizer with the same codes, which takes the place of its own.
    """

    source: Path
    config: ConfigDict
    step: int
    params: Tree
    model_state: Tree
    decoder: str = ""


def of_run(run: str | Path, decoder: str | Path = "") -> Shared:
    """The newest weights of a run: averaged where there is an average, LoRA merged.

    Raises:
      CheckpointError: no run there, or a damaged one.
    """
    config = read_config(run)
    step, params, model_state = restore_all(run, config)
    return Shared(Path(run), config, step or step_of(run), params, model_state, str(decoder))


def step_of(folder: str | Path) -> int:
    """The training step of a run folder's weights; 0 of converted ones."""
    manifest = read_manifest(folder)
    return manifest.get("step", 0) if manifest else max(complete_steps(folder), default=0)


def write_shared(
    out: str | Path,
    runs: Mapping[str, Shared],
    dtype: str = KEEP,
    report: str | Path = "",
    licence: str = "",
) -> Path:
    """Writes runs as a folder that stands alone; it appears whole or not at all.

    Args:
      out: new folder, or one that this function wrote before: that one is replaced.
      runs: the run by the name "", and one that enlarges its images as "super_resolution".
      dtype: "float32", "bfloat16" or "keep", of the trained weights; frozen networks keep theirs.
      report: folder with what `evaluate` wrote; default the run's.
      licence: its identifier on the hub, as "mit".

    Returns:
      `out`, absolute.

    Raises:
      ConversionError: `out` holds something else, cannot be written, an unknown dtype, or a report
        that is no folder.
      ConfigError: `decoder` of a run is no tokenizer.
    """
    from paella_jax.sharing.card import PICTURES, SCORES, Told, write_card

    out = Path(out).absolute()
    check_out(out, dtype, report)
    first = runs[""]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(out) as part:
            for name, run in runs.items():
                _write(part / name, run, dtype)
            told = Told(
                out.name, sum(_count(run.params) for run in runs.values()), _stored(runs, dtype),
                first.step, Path(report or first.source), licence,
                SUPER_RESOLUTION in runs,
            )  # fmt: skip
            write_card(part, portable(first.config), told)
            of_card = (CARD_FILE, SCORES, f"{PICTURES}/")
            card = [name for name in files_of(part) if name.startswith(of_card)]
            others = [name for name in runs if name]
            write_manifest(part, card, version=__version__, step=told.step, inside=others)
    except OSError as error:
        raise ConversionError(f"cannot write {out}: {error}") from error
    return out


def inside(folder: str | Path) -> list[str]:
    """Names of the runs that a shared folder holds beside its own; none of other folders."""
    manifest = read_manifest(folder)
    return list(manifest.get("inside", ())) if manifest else []


def check_out(out: str | Path, dtype: str = KEEP, report: str | Path = "") -> None:
    """Raises ConversionError where `write_shared` would, before any work."""
    out = Path(out)
    if dtype not in DTYPES:
        raise ConversionError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if report and not Path(report).is_dir():
        raise ConversionError(f"report {report} is not a folder; give one that evaluate wrote")
    if out.exists() and not out.is_dir():
        raise ConversionError(f"{out} is a file; give a folder")
    above = out.absolute().parent
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ConversionError(f"cannot write {out}: {above} is no folder to write in")
    if not out.is_dir() or not any(out.iterdir()):
        return
    manifest = read_manifest(out)
    if manifest is None:
        raise ConversionError(f"{out} holds something that export did not write; choose another")
    known = manifest["files"] | manifest.get("card", {})
    foreign = [name for name in files_of(out) if name not in known and name != MANIFEST]
    changed = [n for n, was in manifest.get("card", {}).items()
               if (out / n).is_file() and describe(out / n) != was]  # fmt: skip
    if foreign or changed:
        what = ", ".join([*foreign, *(f"{name} (edited)" for name in changed)])
        raise ConversionError(f"{out} holds what export did not write: {what}; choose another")


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of an older one at the end."""
    older = out.with_name(f"{out.name}.{os.getpid()}.old")
    try:
        with atomic_path(out) as part:
            part.mkdir()
            yield part
            if out.is_dir():
                out.rename(older)
    except BaseException:
        if older.exists() and not out.exists():
            older.rename(out)
        raise
    shutil.rmtree(older, ignore_errors=True)


def _write(folder: Path, run: Shared, dtype: str) -> None:
    """Weights, frozen networks and config of one run."""
    folder.mkdir(exist_ok=True)
    params = {name: tree for name, tree in run.params.items() if name not in TRAINING_ONLY}
    flat = flatten_dict({"params": params, "model_state": run.model_state}, sep="/")
    arrays = {name: np.asarray(x) for name, x in flat.items()}
    write_safetensors(folder / WEIGHTS_FILE, arrays, DTYPES[dtype])
    copy_frozen(run.source, folder, ["base", "tokenizer"] if run.decoder else ["base"])
    if run.decoder:
        carry("tokenizer", run.decoder, folder)
    portable_frozen(folder)
    write_atomically(folder / CONFIG_FILE, to_json(portable(run.config)))


def _count(params: Tree) -> int:
    """Number of scalars."""
    return sum(int(np.prod(np.shape(x))) for x in flatten_dict(dict(params)).values())


def _stored(runs: Mapping[str, Shared], dtype: str) -> str:
    if dtype != KEEP:
        return dtype
    leaves = (x for run in runs.values() for x in flatten_dict(dict(run.params)).values())
    return " and ".join(sorted({str(x.dtype) for x in leaves}))
