"""Trains a run to its end, once: what a plan of several runs does with each of them.

A finished run has a file `trained.json` with the images it saw and the seconds it took.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from paella_jax.files.lock import WRITER, Lock, locked
from paella_jax.runs.digests import note_files, remove_parts, write_noted
from paella_jax.runs.folder import prepare_workdir
from paella_jax.training.loop import RunResult, train
from paella_jax.training.method import Method
from paella_jax.training.metrics import report
from paella_jax.training.timing import record_seconds, total_seconds

TRAINED = "trained.json"


class Stopped(RuntimeError):
    """A signal came; all is saved and the same call goes on from there.

    `by` is its name: SIGTERM or SIGINT.
    """

    def __init__(self, message: str, by: str) -> None:
        super().__init__(message)
        self.by = by


def is_trained(workdir: Path) -> bool:
    """Whether a run was trained to its end."""
    return (workdir / TRAINED).is_file()


def settle(workdir: Path) -> None:
    """Tidies up after a process that was stopped when it had trained a run to its end.

    Its lock and what it left half-written are removed, and what it had not noted is noted. Nothing
    is done where a process has the lock.
    """
    lock = Lock(workdir.absolute() / WRITER, "tidying up")
    if is_trained(workdir) and lock.try_acquire():
        try:
            remove_parts(workdir)
            note_files(workdir)
        finally:
            lock.release()


def finish(run: ConfigDict, workdir: Path, build: Callable[[ConfigDict, Path], Method]) -> None:
    """Trains a config to its end in a folder, or resumes it.

    Args:
      run: the config.
      workdir: its folder.
      build: (config, prepared folder) -> method, as the registry's.

    Raises:
      Stopped: by SIGTERM or SIGINT.
      LockedError: another process trains in that folder.
    """
    with locked(workdir.absolute() / WRITER, "a training"):
        workdir = prepare_workdir(workdir, run)
        report(f"training {workdir}, {run.num_steps} steps")
        # No preview at the end: compiling its sampler would add to every training's time.
        result = train(run, workdir, replace(build(run, workdir), preview=None, validation=None))
        record_seconds(workdir, result)
        if result.step >= run.num_steps:
            done = {"images": run.num_steps * run.batch_size, "seconds": total_seconds(workdir)}
            write_noted(workdir, TRAINED, json.dumps(done))
    check_stopped(result, workdir)


def check_stopped(result: RunResult, workdir: Path) -> None:
    """Raises Stopped where a training was ended by a signal."""
    if result.stopped:
        where = f"at step {result.step} of {workdir}"
        raise Stopped(f"stopped by {result.stopped} {where}; run the same again", result.stopped)
