"""Trains a comparison's tokenizer and networks; every finished run is left alone.

A finished run has a file `trained.json` with the images it saw and the seconds it took.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ml_collections import ConfigDict

from paella_jax.build import build_method
from paella_jax.comparison.plan import (
    Size,
    Training,
    set_budget,
    set_seconds,
    size_of,
    training_config,
)
from paella_jax.config import load_config
from paella_jax.training.checkpoint import prepare_workdir, write_atomically
from paella_jax.training.loop import train
from paella_jax.training.metrics import report
from paella_jax.training.timing import record_seconds, total_seconds

TRAINED = "trained.json"
CALIBRATION_STEPS = 20


class Stopped(RuntimeError):
    """SIGTERM came; all is saved and the same call goes on from there."""


class Trained(NamedTuple):
    """A finished training."""

    training: Training
    workdir: Path
    size: Size
    images: int
    seconds: float


def tokenizer_folder(config: ConfigDict, out: Path) -> Path:
    """The run folder of the tokenizer all cells share: the given one, or one in `out`."""
    return Path(config.tokenizer) if config.tokenizer else out / "tokenizer"


def check_tokenizer(config: ConfigDict, training: Training) -> None:
    """Whether the given tokenizer is one and fits the networks' vocabulary.

    Raises:
      ConfigError, CheckpointError: it is none, or has another codebook size.
    """
    run = training_config(config, training, config.tokenizer)
    with TemporaryDirectory() as folder:
        build_method(run, Path(folder))


def train_tokenizer(config: ConfigDict, out: Path) -> None:
    """Trains the tokenizer in `out`, or resumes it.

    Raises:
      Stopped: by SIGTERM.
    """
    _train(load_config(config.tokenizer_config), tokenizer_folder(config, out))


def is_trained(workdir: Path) -> bool:
    """Whether a run is finished."""
    return (workdir / TRAINED).is_file()


def planned(config: ConfigDict, training: Training, tokenizer: Path) -> tuple[ConfigDict, Size]:
    """A training's config with its budget in steps (1 where that is told by time), and its size."""
    run = training_config(config, training, tokenizer)
    size = size_of(run)
    reference = Training(training.corruption, config.budget.reference, training.seed)
    cost = size_of(training_config(config, reference, tokenizer))
    if config.budget.kind != "seconds":
        set_budget(run, config, size, cost)
    return run, size


def cell_folder(training: Training, out: Path) -> Path:
    """A training's run folder."""
    return out / "runs" / training.name


def train_cell(config: ConfigDict, training: Training, run: ConfigDict, out: Path) -> None:
    """Trains one network up to its budget, or resumes it.

    Raises:
      Stopped: by SIGTERM.
    """
    workdir = cell_folder(training, out)
    if config.budget.kind == "seconds":
        set_seconds(run, config, _seconds_per_step(run, workdir))
    _train(run, workdir)


def read_trained(training: Training, size: Size, out: Path) -> Trained:
    """What a finished training cost."""
    workdir = cell_folder(training, out)
    done = json.loads((workdir / TRAINED).read_text())
    return Trained(training, workdir, size, done["images"], done["seconds"])


def _train(run: ConfigDict, workdir: Path) -> None:
    workdir = prepare_workdir(workdir, run)
    report(f"training {workdir}, {run.num_steps} steps")
    result = train(run, workdir, build_method(run, workdir))
    record_seconds(workdir, result)
    if result.stopped:
        raise Stopped(f"stopped by SIGTERM at step {result.step} of {workdir}; run the same again")
    done = {"images": run.num_steps * run.batch_size, "seconds": total_seconds(workdir)}
    write_atomically(workdir / TRAINED, json.dumps(done))


def _seconds_per_step(run: ConfigDict, workdir: Path) -> float:
    """Measured once, in a run of a few steps that is thrown away, and kept for a resumed call."""
    file = workdir.with_name(f"{workdir.name}.calibration.json")
    if not file.is_file():
        short = run.copy_and_resolve_references()
        short.num_steps = CALIBRATION_STEPS
        folder = prepare_workdir(workdir.with_name(f"{workdir.name}.calibration"), short)
        result = train(short, folder, build_method(short, folder))
        steady = (result.seconds - result.compile_seconds) / CALIBRATION_STEPS
        write_atomically(file, json.dumps({"seconds_per_step": steady}))
    return float(json.loads(file.read_text())["seconds_per_step"])
