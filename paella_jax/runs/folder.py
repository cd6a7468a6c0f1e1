"""What a run folder is: its files, and whether a config belongs to it.

`config.json`, `metrics.jsonl`, `samples/` (grids drawn while training), `frozen/` (runs/frozen.py),
`digests.json` (runs/digests.py), and either `checkpoints/<step>/` (runs/checkpoint.py) or, of
converted weights and of weights made of other runs, `weights.safetensors`.
"""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ml_collections import ConfigDict

from paella_jax import __version__
from paella_jax.config import (
    CheckpointError,
    ConfigError,
    differing_fields,
    flatten_config,
    to_json,
)
from paella_jax.files.atomic import naming
from paella_jax.outside import listed, say
from paella_jax.runs.checked_lines import metrics_line, scan_metrics
from paella_jax.runs.digests import (
    check_noted,
    forget_files,
    mark_frozen,
    remove_parts,
    tell_once,
    version_of,
    write_noted,
)
from paella_jax.runs.step_folders import newest_step, step_folders
from paella_jax.runs.stored_config import read_stored_config

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"
METRICS_FILE = "metrics.jsonl"
DATA_FILE = "data.json"  # of runs that were trained: training/looked_at.py
HISTORY_FILE = "history.jsonl"  # a line for every call that changed how the run is carried out
# Fields of a network's block that say how it is computed, not what it is.
HOW_COMPUTED = ("attention", "depthwise", "loop", "remat", "remat_keeps")
BLOCKS = ("model", "transformer", "super_resolution", "uvit", "text")
# What a resumed run may change (else it would be another run): how it is carried out ...
HOW = ("num_steps", "mesh.", "checkpoint.", "log.", "evaluation.", "sampler.", "data.threads",
       "data.prefetch", "data.folder", "data.validation_folder", "data.image_file", "data.shards",
       "data.array_record", "data.parquet", "data.tfds", "data.tfds_folder",
       "data.validation_files", "data.encoded", "cell.sampler", "preset",
       "optim.gradient_reduction", "text.buckets",
       *(f"{block}.{name}" for block in BLOCKS for name in HOW_COMPUTED))  # fmt: skip
# ... what it may change where the very call gives it, rather than a preset's new value: the state
# fits whatever they are ...
IF_GIVEN = ("optim.learning_rate", "optim.warmup_steps", "objective.dropout_generator")
# ... what it may lack, as it is older than the field: what was done then ...
BEFORE = {
    "compressor.weights": "",
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
    "objective.one_condition": 0.0,
    "optim.decay_steps": 0,
    "optim.momentum_precision": "float32",
    "text.attention": "xla",
    "text.units": "bytes",
    "text.values_from": "states",
    "transformer.tied_head": False,
    "super_resolution.tied_head": False,
    "uvit.positions": False,
}
# ... and where the networks it carries once came from.
SOURCES = ("tokenizer", "low_tokenizer", "stage_b", "text.folder", "clip.folder",
           "compressor.run", "compressor.weights", "init_from")  # fmt: skip


def prepare_workdir(workdir: str | Path, config: ConfigDict, given: Iterable[str] = ()) -> Path:
    """Creates the run folder, or checks that it belongs to this config, and writes config.json.

    A folder in which nothing was trained yet takes any config. What a failed start with another
    one left in `frozen/` is then removed. What a resumed run changes is noted in `history.jsonl`.

    Args:
      workdir: run folder.
      config: of the run.
      given: fields that the user set in this call; of `IF_GIVEN` they may differ.

    Raises:
      ConfigError: the folder cannot be written, or holds a run of another config.
      CheckpointError: it holds a run whose config is missing or damaged.
    """
    workdir = Path(workdir).absolute()
    file = workdir / CONFIG_FILE
    if has_progress(workdir):  # without its config, what was trained cannot be told to be this run
        allowed = tuple(name for name in IF_GIVEN if name in set(given))
        check_same_run(workdir, config, allowed)
        _note_changes(workdir, config, allowed)
    elif file.is_file() and differing_fields(read_config(workdir), config, ignore=HOW):
        # The other processes of a cluster may be doing the same.
        shutil.rmtree(workdir / "frozen", ignore_errors=True)
        forget_files(workdir, "frozen/*")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        remove_parts(workdir)
        write_noted(workdir, CONFIG_FILE, to_json(config))
        mark_frozen(workdir)
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
        fields = [name for name in IF_GIVEN if any(c.startswith(f"{name}:") for c in changes)]
        flags = " ".join(f"--config.{name}=..." for name in fields)
        hint = f" (a run may go on with another one that is given: {flags})" if fields else ""
        raise ConfigError(
            f"{workdir} holds a run of another config; choose another --workdir, or delete "
            f"the old run. Differences (old -> new){hint}:\n  " + "\n  ".join(changes)
        )


def _note_changes(workdir: Path, config: ConfigDict, told: tuple[str, ...]) -> None:
    """Adds a line to the folder's history where a resumed run changes; what is `told`, or moves its
    learning rate, is printed."""
    old = read_config(workdir)
    before = flatten_config(old)
    changes = differing_fields(old, config, ignore=[name for name in BEFORE if name not in before])
    if not changes:
        return
    step = newest_step(workdir)
    row = {"step": step, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "changes": changes}
    file = workdir / HISTORY_FILE
    with naming(file), file.open("a") as stream:
        stream.write(metrics_line(row))
    if config.optim.get("schedule") == "cosine" and not config.optim.get("decay_steps"):
        told = (*told, "num_steps:")  # at which the curve's rate is zero
    shown = [change for change in changes if change.startswith(told)] if told else []
    if shown:
        say(f"{workdir} goes on from step {step} with {', '.join(shown)}")


def has_progress(workdir: str | Path) -> bool:
    """Whether a folder holds a finished checkpoint, or converted weights."""
    workdir = Path(workdir)
    return (workdir / WEIGHTS_FILE).is_file() or bool(step_folders(workdir))


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
      CheckpointError: no such folder or file, or the file is not what was written, or no JSON.
    """
    file = Path(workdir) / CONFIG_FILE
    if not file.is_file():
        raise CheckpointError(
            f"{Path(workdir)} is not a run folder (no {CONFIG_FILE}); give the --workdir of a "
            "finished training"
        )
    config = read_stored_config(file)
    if not isinstance(config.get("method"), str):
        raise CheckpointError(f"{file} is damaged (it names no method); restore it from a copy")
    _rename_fields(config)
    _check_config(workdir, config)
    return config


def _rename_fields(config: ConfigDict) -> None:
    """What older versions called otherwise: a text's `values_from` was `values`."""
    text = config.get("text")
    if isinstance(text, ConfigDict) and "values" in text:
        with config.unlocked():
            text.values_from = text["values"]
            del text["values"]


def _check_config(workdir: str | Path, config: ConfigDict) -> None:
    """Whether a stored config is what was written, and all of it is known here.

    Raises:
      CheckpointError: it is not; fields that are unknown are named.
    """
    try:
        check_noted(workdir, lambda name: name == CONFIG_FILE)
        if version_of(workdir) == __version__:
            return
    except CheckpointError as error:
        from paella_jax.runs.known_fields import unknown_fields

        unknown = unknown_fields(config)
        named = f". Unknown fields: {listed(unknown)}" if unknown else ""
        raise CheckpointError(f"{error}{named}") from error
    from paella_jax.runs.known_fields import unknown_fields

    if unknown := unknown_fields(config):
        raise CheckpointError(
            f"{Path(workdir) / CONFIG_FILE} has fields that are not known here: "
            f"{listed(unknown)}. Update paella_jax if the run is of a newer version, or take "
            "them out"
        )


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
    """The rows of a metrics file; a line that is torn or damaged is left out, and no other.

    What is left out is told, and where a training's whole file is gone.
    """
    rows, damaged = scan_metrics(file)
    if damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        tell_once(f"{file}: line {shown} is torn or damaged and left out")
    if metrics_are_lost(file.parent):
        tell_once(f"{file} is missing: what was measured before is lost")
    return rows


def metrics_are_lost(workdir: Path) -> bool:
    """Whether a run was trained for so long that it must have metrics, and has no file of them."""
    if (workdir / METRICS_FILE).is_file() or not (workdir / DATA_FILE).is_file():
        return False
    newest = newest_step(workdir)
    every = logged_every(workdir, read_config(workdir).log.every)
    return newest > 0 and newest >= every > 0


def logged_every(workdir: Path, now: int, field: str = "log.every") -> int:
    """Steps of which each multiple has a line of metrics, whatever `log.every` was meanwhile.

    Args:
      workdir: the run folder, whose history tells what resumed runs changed.
      now: what `log.every` is.
      field: `checkpoint.every` for the steps that were saved.
    """
    history = str(scan_metrics(workdir / HISTORY_FILE)[0])
    changes = re.findall(rf"'{re.escape(field)}: ([1-9]\d*) -> ([1-9]\d*)'", history)
    return math.lcm(now, *(int(number) for change in changes for number in change))
