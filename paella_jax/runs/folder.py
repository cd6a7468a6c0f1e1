"""What a run folder is: its files, and whether a config belongs to it.

`config.json`, `metrics.jsonl`, `samples/` (grids drawn while training), `frozen/` (runs/frozen.py),
and either `checkpoints/<step>/` (runs/checkpoint.py) or, of converted weights and of weights made
of other runs, `weights.safetensors`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ml_collections import ConfigDict

from paella_jax.config import (
    ConfigError,
    UserError,
    differing_fields,
    flatten_config,
    from_json,
    to_json,
)
from paella_jax.files.atomic import write_atomically

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"
METRICS_FILE = "metrics.jsonl"
# What a resumed run may change (else it would be another run): how it is carried out ...
HOW = ("num_steps", "mesh.", "checkpoint.", "log.", "evaluation.", "sampler.", "data.threads",
       "data.prefetch", "data.folder", "data.validation_folder", "data.image_file", "data.shards",
       "data.array_record", "data.parquet", "data.tfds", "data.tfds_folder",
       "data.validation_files", "data.encoded", "cell.sampler", "preset",
       "optim.gradient_reduction", "model.loop", "transformer.loop",
       "super_resolution.loop")  # fmt: skip
# ... what it may lack, as it is older than the field: what was done then ...
BEFORE = {
    "data.background": "white",
    "data.caption_field": "",
    "data.caption_lines": False,
    "data.draft": False,
    "data.encoded": "",
    "data.image_field": "",
    "data.split": 0.05,
    "data.split_column": "split",
    "data.split_seed": -1,
    "data.training_split": "train",
    "data.validation_split": "",
    "model.positions": False,
    "optim.decay_steps": 0,
    "text.units": "bytes",
    "text.values_from": "states",
    "transformer.tied_head": False,
    "super_resolution.tied_head": False,
    "uvit.positions": False,
}
# ... and where the networks it carries once came from.
SOURCES = ("tokenizer", "low_tokenizer", "stage_b", "text.folder", "clip.folder",
           "compressor.run", "init_from")  # fmt: skip


class CheckpointError(UserError, RuntimeError):
    """A checkpoint is missing, damaged or of another run; the message names path and reason."""


def prepare_workdir(workdir: str | Path, config: ConfigDict) -> Path:
    """Creates the run folder, or checks that it belongs to this config, and writes config.json.

    A folder in which nothing was trained yet takes any config. What a failed start with another
    one left in `frozen/` is then removed.

    Raises:
      ConfigError: the folder cannot be written, or holds a run of another config.
    """
    workdir = Path(workdir).absolute()
    file = workdir / CONFIG_FILE
    if file.is_file() and has_progress(workdir):
        check_same_run(workdir, config)
    elif file.is_file() and differing_fields(read_config(workdir), config, ignore=HOW):
        # The other processes of a cluster may be doing the same.
        shutil.rmtree(workdir / "frozen", ignore_errors=True)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomically(file, to_json(config))
    except OSError as error:
        raise ConfigError(
            f"cannot write to workdir {workdir}: {error}; choose a folder you may write to"
        ) from error
    return workdir


@contextmanager
def taken_back_if_refused(workdir: Path) -> Iterator[None]:
    """Removes what a start left in a run folder that ended in an error before its first step.

    What was there before stays, and so does everything once something was trained.
    """
    names = lambda: {file.name for file in workdir.iterdir()} if workdir.is_dir() else set()
    was_there, before = workdir.is_dir(), names()
    try:
        yield
    except Exception:
        if not has_progress(workdir) and not (workdir / METRICS_FILE).exists():
            for name in names() - before:
                file = workdir / name
                shutil.rmtree(file) if file.is_dir() else file.unlink()
            if not was_there and workdir.is_dir():
                workdir.rmdir()
        raise


def check_same_run(workdir: str | Path, config: ConfigDict, ignore: tuple[str, ...] = ()) -> None:
    """Whether a run folder belongs to a config, but for how it is carried out and `ignore`.

    Raises:
      ConfigError: it does not; the message has the differences.
    """
    changes = _changes(read_config(workdir), config, ignore)
    if changes:
        raise ConfigError(
            f"{workdir} holds a run of another config; choose another --workdir, or delete "
            "the old run. Differences (old -> new):\n  " + "\n  ".join(changes)
        )


def has_progress(workdir: str | Path) -> bool:
    """Whether a folder holds a finished checkpoint, or converted weights."""
    workdir = Path(workdir)
    # Unfinished checkpoints have a suffix behind the step.
    steps = (folder.name.isdigit() for folder in (workdir / "checkpoints").glob("*"))
    return (workdir / WEIGHTS_FILE).is_file() or any(steps)


def _changes(old: ConfigDict, new: ConfigDict, ignore: tuple[str, ...]) -> list[str]:
    """The differences that make another run; a folder where there was none adds a network."""
    before = flatten_config(old)
    kept = [
        name
        for name in (*HOW, *SOURCES, *ignore)
        if not (name in ("text.folder", "clip.folder") and before.get(name) == "")
    ]
    after = flatten_config(new)
    same = [name for name in BEFORE if name not in before and after.get(name) == BEFORE[name]]
    return differing_fields(old, new, ignore=[*kept, *same])


def read_config(workdir: str | Path) -> ConfigDict:
    """The config a run folder was trained with.

    Raises:
      CheckpointError: no such folder or file, or the file is not JSON.
    """
    file = Path(workdir) / CONFIG_FILE
    if not file.is_file():
        raise CheckpointError(
            f"{Path(workdir)} is not a run folder (no {CONFIG_FILE}); give the --workdir of a "
            "finished training"
        )
    try:
        return from_json(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged ({error}); restore it from a copy") from error


def read_config_of(method: str, workdir: str | Path, configs: str = "") -> ConfigDict:
    """The config of a run of one method.

    Args:
      method: as configs name it, with an article where the error should have one: "a vqgan".
      workdir: the run's folder.
      configs: the files of such runs, for the error; default the one of the method's name.

    Raises:
      CheckpointError: no run there, or one of another method.
    """
    config, name = read_config(workdir), method.rpartition(" ")[2]
    if config.method != name:
        raise CheckpointError(
            f"{workdir} holds a run of method {config.method!r}, not of {method}; give the run "
            f"folder of {configs or f'configs/{name}.py'}"
        )
    return config


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The rows of a metrics file; a last line cut off by a kill is left out."""
    rows = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
