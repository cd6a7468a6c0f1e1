"""Trains a comparison's tokenizer and networks; every finished run is left alone."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from paella_jax.comparison.plan import (
    Size,
    Training,
    data_overrides,
    set_budget,
    set_seconds,
    size_of,
    training_config,
)
from paella_jax.comparison.variants import budget_multiple
from paella_jax.config import ConfigError, load_config, shipped
from paella_jax.families.vqgan import make_vqgan
from paella_jax.files.atomic import write_atomically
from paella_jax.files.kept import read_kept
from paella_jax.registry import build_method
from paella_jax.runs.folder import (
    METRICS_FILE,
    check_same_run,
    prepare_workdir,
    read_config,
    read_metrics,
)
from paella_jax.training.finish import TRAINED, check_stopped, finish, is_trained, settle
from paella_jax.training.loop import train

CALIBRATION_STEPS = 20


class Trained(NamedTuple):
    """A finished training."""

    training: Training
    workdir: Path
    size: Size
    images: int
    seconds: float


def tokenizer_folder(config: ConfigDict, out: Path) -> Path:
    """The run folder of the tokenizer that all cells use: the given one, or one in `out`."""
    return Path(config.tokenizer) if config.tokenizer else out / "tokenizer"


def check_tokenizer(config: ConfigDict, run: ConfigDict) -> None:
    """Checks that the tokenizer, given or to be trained, fits the networks and the counted FLOPs.

    Args:
      config: the comparison's config.
      run: the config of any of its trainings.

    Raises:
      ConfigError, CheckpointError: it is none, has another codebook size or is not f4.
    """
    given = bool(config.tokenizer)
    tokenizer = read_config(config.tokenizer) if given else _tokenizer_config(config)
    name = config.tokenizer or config.tokenizer_config
    if tokenizer.method != "vqgan":
        raise ConfigError(f"{name} is a {tokenizer.method} run, no tokenizer of configs/vqgan.py")
    model = make_vqgan(tokenizer)
    if model.downsampling != 4:
        raise ConfigError(
            f"{name} is an f{model.downsampling} tokenizer; FLOPs are counted for f4 ones"
        )
    if model.codebook_size != run.model.codebook_size:
        raise ConfigError(
            f"{name} has {model.codebook_size} codes, the networks {run.model.codebook_size}; add "
            f'"model.codebook_size={model.codebook_size}" to `overrides`'
        )


def train_tokenizer(config: ConfigDict, out: Path) -> None:
    """Trains the tokenizer in `out`, or resumes it.

    Raises:
      Stopped: by SIGTERM.
    """
    train_run(_tokenizer_config(config), tokenizer_folder(config, out))


def _tokenizer_config(config: ConfigDict) -> ConfigDict:
    return load_config(shipped(config.tokenizer_config), data_overrides(config))


def planned(config: ConfigDict, training: Training, tokenizer: Path) -> tuple[ConfigDict, Size]:
    """A training's config and size; its budget in steps too, unless the budget is a time."""
    run = training_config(config, training, tokenizer)
    size = size_of(run)
    reference = Training(training.corruption, config.budget.reference, training.seed)
    cost = size_of(training_config(config, reference, tokenizer))
    if config.budget.kind != "seconds":
        set_budget(run, config, size, cost, budget_multiple(config, training))
    return run, size


def run_folder(training: Training, out: Path) -> Path:
    """A training's run folder."""
    return out / "runs" / training.name


def beginning(out: Path, training: Training, rate: float) -> Path:
    """The run folder of a training's beginning at a learning rate, which the search left."""
    return out / "search" / f"{training.name}_{rate:g}"


def train_network(config: ConfigDict, training: Training, run: ConfigDict, out: Path) -> None:
    """Trains one network up to its budget, or resumes it.

    Raises:
      Stopped: by SIGTERM.
    """
    workdir = run_folder(training, out)
    if config.budget.kind == "seconds":
        multiple = budget_multiple(config, training)
        set_seconds(run, config, _seconds_per_step(run, workdir), multiple)
    go_on_from(beginning(out, training, run.optim.learning_rate), workdir)
    train_run(run, workdir)


def go_on_from(beginning: Path, workdir: Path) -> None:
    """Lets a training go on from the end of one that was its beginning, as one run does.

    Args:
      beginning: run folder of a finished training that differs in `num_steps` alone.
      workdir: run folder; nothing is done where there is one.
    """
    if workdir.exists() or not is_trained(beginning):
        return
    copy = workdir.with_name(f"{workdir.name}.copy")
    shutil.rmtree(copy, ignore_errors=True)
    workdir.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(beginning, copy, ignore=shutil.ignore_patterns(TRAINED))
    os.replace(copy, workdir)


def check_finished(config: ConfigDict, training: Training, run: ConfigDict, out: Path) -> None:
    """Checks that a training which an earlier call finished is the one that is planned now.

    Raises:
      ConfigError: its recipe was another one; the message has the differences.
    """
    workdir = run_folder(training, out)
    if is_trained(workdir):
        ignored = ("optim.warmup_steps",) if config.budget.kind == "seconds" else ()
        check_same_run(workdir, run, ignored)


def read_trained(training: Training, size: Size, out: Path) -> Trained:
    """A finished training with its cost."""
    workdir = run_folder(training, out)
    settle(workdir)
    done = read_kept(workdir / TRAINED, "images", "seconds")
    return Trained(training, workdir, size, done["images"], done["seconds"])


def train_run(run: ConfigDict, workdir: Path) -> None:
    """Trains a config to its end in a folder, or resumes it.

    Raises:
      Stopped: by SIGTERM.
    """
    finish(run, workdir, build_method)


def _seconds_per_step(run: ConfigDict, workdir: Path) -> float:
    """The time of an update without compiling and saving: measured once, kept for a resumed call.

    The first half of a short run that is thrown away warms up, the second half is timed.
    """
    file = workdir.with_name(f"{workdir.name}.calibration.json")
    if not file.is_file():
        short = run.copy_and_resolve_references()
        short.num_steps = 2 * CALIBRATION_STEPS
        short.log.every = CALIBRATION_STEPS
        folder = workdir.with_name(f"{workdir.name}.calibration")
        shutil.rmtree(folder, ignore_errors=True)  # a resumed one would time nothing
        prepare_workdir(folder, short)
        alone = replace(build_method(short, folder), preview=None, validation=None)
        result = train(short, folder, alone)
        check_stopped(result, folder)
        rate = read_metrics(folder / METRICS_FILE)[-1]["images_per_second"]
        write_atomically(file, json.dumps({"seconds_per_step": run.batch_size / rate}))
        shutil.rmtree(folder)
    return float(read_kept(file, "seconds_per_step")["seconds_per_step"])
