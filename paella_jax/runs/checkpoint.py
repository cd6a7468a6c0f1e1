"""Saving and restoring runs with orbax; a failing restore is an error, never a fresh start.

A run folder holds `config.json` and `checkpoints/<step>` with two items: the state, and a small
JSON note (older ones also say where the data stood, which is the step), and their digests. A folder
of converted weights has `weights.safetensors` in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict

from paella_jax.config import ConfigError, WriteError
from paella_jax.files.digests import describe
from paella_jax.files.disk import is_outage
from paella_jax.files.finite import describe_not_finite
from paella_jax.files.regular import read_regular
from paella_jax.outside import parse_json
from paella_jax.runs.digests import check_noted, is_of_another_run, run_of, tell_once
from paella_jax.runs.durable import DurablePath
from paella_jax.runs.folder import METRICS_FILE, WEIGHTS_FILE, CheckpointError
from paella_jax.runs.step_digests import check_step, note_of, write_step_digests
from paella_jax.runs.step_folders import step_folders
from paella_jax.runs.weights import load_tree
from paella_jax.runs.whole_steps import (
    LISTED,
    complete_steps,
    none_is_whole,
    tell_of_lost,
)
from paella_jax.typing import Tree


class Checkpointer:
    """Asynchronous saves of the newest steps of one run."""

    def __init__(self, workdir: str | Path, keep: int | None = 3) -> None:
        if keep is not None and keep < 1:
            raise ConfigError(f"checkpoint.keep must be at least 1, or None for all, got {keep}")
        self.directory = Path(workdir).absolute() / "checkpoints"
        self._saving, self._keep = 0, keep
        background = ocp.options.AsyncOptions(post_finalization_callback=self._digest)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, async_options=background,
            temporary_path_class=DurablePath,
        )  # fmt: skip
        self.manager = ocp.CheckpointManager(self.directory, options=options)

    def latest_step(self) -> int | None:
        """The newest finished checkpoint's step."""
        return self.manager.latest_step()

    def save(self, step: int, state: Tree) -> None:
        """Starts writing; the arrays may be donated as soon as this returns.

        Raises:
          WriteError: this checkpoint, or the one before, cannot be written.
        """
        if step == self.manager.latest_step():
            return
        run = run_of(self.directory.parent)
        note = {"step": step, "processes": jax.process_count(), "digests": True, "run": run}
        metrics = self.directory.parent / METRICS_FILE  # lines are only added to it behind a save
        if jax.process_index() == 0 and metrics.is_file():
            note["metrics"] = describe(metrics)
        items: dict[str, Any] = {
            "state": ocp.args.StandardSave(state), "note": ocp.args.JsonSave(note),
        }  # fmt: skip
        self.wait()  # for the save before, as the manager does
        self._saving = step
        try:
            self.manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:
            raise self._failed(error) from error

    def _digest(self) -> None:
        """Called on process 0, in the thread that saves, before the step gets its name."""
        for folder in self.directory.glob(f"{self._saving}.*"):
            write_step_digests(folder, self._saving)

    def restore(self, abstract: Tree) -> Tree:
        """Restores the newest checkpoint into `abstract`'s shapes, dtypes and shardings.

        The processes and devices that saved it may have been others. Each process first compares
        a share of it with the digests. Once it was read, older ones that the run does not keep go.

        Raises:
          CheckpointError: nothing to restore, or the files are damaged or of another model.
        """
        step = self.latest_step()
        if step is None:
            raise CheckpointError(f"no checkpoint in {self.directory}; train first")
        folder = self.directory / str(step)
        items: dict[str, Any] = {"state": ocp.args.StandardRestore(abstract)}
        try:
            check_parts(folder, share=(jax.process_index(), jax.process_count()))
            state = self.manager.restore(step, args=ocp.args.Composite(**items))["state"]
            check_state_step(folder, state)
            _check_finite(state)
        except Exception as error:
            if is_outage(error):  # nothing is wrong with the checkpoint
                raise
            raise CheckpointError(
                f"checkpoint {folder} cannot be read: {reason(error, folder)}. If it was cut off "
                "by a full disk or a kill, delete that step's folder to go back to the one before; "
                "if the model's code or config changed, use another workdir"
            ) from error
        for outdated in sorted(self.manager.all_steps())[: -self._keep if self._keep else 0]:
            self.manager.delete(outdated)  # a call that was stopped did not come to it
        return state

    def wait(self) -> None:
        """Blocks until every started save is on disk. Raises WriteError where it cannot be."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> WriteError:
        left = [step for step in complete_steps(self.directory.parent) if step != self._saving]
        on = f"goes on from step {left[-1]}" if left else "starts anew"
        return WriteError(
            f"checkpoint {self.directory / str(self._saving)} cannot be written: "
            f"{_in_a_line(error)}; see to its disk, then run the same command again: it {on}"
        )

    def close(self) -> None:
        """Waits and releases the manager's threads."""
        self.wait()
        self.manager.close()


def check_parts(
    folder: Path,
    wanted: Callable[[str], bool] = lambda array: True,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Compares a checkpoint with its digests, and its parts with each other.

    Args:
      folder: of the step.
      wanted: which arrays are going to be read, by names like "params.predictor.conv.kernel".
      share: this process and the number of those that each check a part.

    Raises:
      CheckpointError: naming the files and arrays that are not what was written, or the parts that
        are of another step.
    """
    if not check_step(folder, wanted, share):
        tell_once(f"{folder.parent.parent} is of a version without digests: it is read unchecked")
    note = note_of(folder)
    if note.get("step", int(folder.name)) != int(folder.name):
        raise CheckpointError(f"its note is of step {note['step']}; the folder was renamed")
    if is_of_another_run(note, folder.parent.parent):
        raise CheckpointError("it is of another run; it was copied here")
    for file in folder.glob("data/process_*"):  # of older runs
        place = parse_json(read_regular(file)).get("next_index", int(folder.name))
        if place != int(folder.name):
            raise CheckpointError(f"{file.name} has the data at step {place}")


def check_state_step(folder: Path, state: Tree) -> None:
    """Raises CheckpointError where the state in a checkpoint's folder is of another step."""
    step = state.get("step") if isinstance(state, dict) else state.step
    if step is not None and int(step) != int(folder.name):
        raise CheckpointError(f"its state is of step {int(step)}; the folder was renamed")


def reason(error: Exception, folder: Path) -> str:
    """Why a checkpoint cannot be read: what its digests say, or else orbax."""
    try:
        if not isinstance(error, CheckpointError):
            check_step(folder)
    except CheckpointError as damage:
        error = damage
    return str(error) if isinstance(error, CheckpointError) else _in_a_line(error)


def _in_a_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


def restore_variables(workdir: str | Path) -> tuple[int, Tree]:
    """Sampling weights of a run's newest checkpoint, as numpy: no optimiser state is read.

    A folder without checkpoints may hold converted weights instead; they are memory-mapped.

    Returns:
      The step (0 of converted weights), and
      {"params": averaged if the run has an average, "model_state": …}.

    Raises:
      CheckpointError: as `Checkpointer.restore`.
    """
    directory = Path(workdir).absolute() / "checkpoints"
    file = directory.parent / WEIGHTS_FILE
    if not directory.is_dir() and file.is_file():
        check_noted(directory.parent, lambda name: name == WEIGHTS_FILE)
        return 0, _sampling_weights(load_tree(file))
    if not directory.is_dir():
        raise CheckpointError(f"no checkpoints folder in {Path(workdir)}; train first")
    steps = complete_steps(workdir)
    if not steps:
        broken = sorted(step_folders(workdir), key=str)
        none = f"no finished checkpoint in {directory}; train first"
        raise CheckpointError(none_is_whole(broken) if broken else none)
    step, folder = steps[-1], directory / str(steps[-1])
    tell_of_lost(workdir, after=step)
    try:
        restored = read_arrays(directory, step, averaged=True)
    except Exception as error:
        if is_outage(error):
            raise
        raise CheckpointError(
            f"checkpoint {folder} cannot be read: {reason(error, folder)}. Delete that step's "
            "folder to use the one before, or train again"
        ) from error
    return step, _sampling_weights(restored)


def read_arrays(directory: Path, step: int, averaged: bool) -> dict[str, Tree]:
    """Parameters and, where there is one, the model state of one checkpoint, numpy.

    Args:
      directory: the run's `checkpoints`.
      step: of the checkpoint.
      averaged: reads "ema_params" in place of "params" where the run has an average.
    """

    def choose(stored: Tree) -> list[str]:
        params = "ema_params" if averaged and stored.get("ema_params") else "params"
        names = [params, "model_state"]
        check_parts(directory / str(step), lambda array: array.partition(".")[0] in names)
        return names

    return _read(directory / str(step), choose)


def state_step(folder: Path) -> int | None:
    """The step that the state in a checkpoint's folder is of; None where it does not say."""
    step = _read(folder, lambda stored: ["step"]).get("step")
    return None if step is None else int(step)


def _read(folder: Path, choose: Callable[[Tree], list[str]]) -> dict[str, Tree]:
    """The chosen parts of a stored state, where there are such, as numpy."""
    path = folder.absolute() / "state"  # orbax takes no other
    stored = stored_tree(path)
    item = {name: stored[name] for name in choose(stored) if name in stored}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    restore = ocp.args.PyTreeRestore(item=item, restore_args=as_numpy, partial_restore=True)
    with _reader() as reader:
        found = dict(reader.restore(path, args=restore))
    _check_finite(found)
    return found


def _reader() -> ocp.Checkpointer:
    """Reads in this process alone; orbax's usual reader waits for all of a run's at its end.

    Process 0 prepares a run by itself, and so reads the tokenizer's weights by itself.
    """
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}_alone"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _check_finite(state: Tree) -> None:
    """Raises CheckpointError where arrays hold NaN or infinity; each process looks at its own."""
    parts = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree_util.tree_leaves_with_path(state)
        if jax.numpy.issubdtype(x.dtype, np.floating)
    }
    here = lambda x: [s.data for s in x.addressable_shards] if isinstance(x, jax.Array) else [x]
    flat = {f"{n} " * (i > 0) + n: p for n, x in parts.items() for i, p in enumerate(here(x))}
    if named := describe_not_finite(flat):
        raise CheckpointError(f"it holds NaN or infinity in {named}, and was written so")


def stored_tree(path: Path) -> dict[str, Tree]:
    """The names of a checkpoint's arrays as dicts, of orbax's list; the leaves mean nothing.

    To ask orbax for shapes too opens every array, the optimiser's as well: three times as long as
    reading the weights of a small run.

    Args:
      path: its folder `state`.
    """
    rows = parse_json(read_regular(path / LISTED))["tree_metadata"].values()
    names = [
        tuple(part["key"] for part in row["key_metadata"])
        for row in rows
        if not row["value_metadata"]["skip_deserialize"]  # an empty dict or None
    ]
    return dict(unflatten_dict({name: np.zeros(()) for name in names}))


def _sampling_weights(tree: Tree) -> Tree:
    params = tree.get("ema_params") or tree.get("params", {})
    return {"params": params, "model_state": tree.get("model_state", {})}
