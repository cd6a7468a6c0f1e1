"""Saving and restoring runs with orbax; a failing restore is an error, never a fresh start.

A run folder holds `config.json` and `checkpoints/<step>` with two items: the state, and a small
JSON note (older ones also say where the data stood, which is the step). A folder of converted
weights has `weights.safetensors` in their place.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict

from paella_jax.config import ConfigError
from paella_jax.runs.folder import WEIGHTS_FILE, CheckpointError
from paella_jax.runs.manifest import check_files
from paella_jax.runs.weights import load_tree
from paella_jax.typing import Tree

# Where one of these is missing a folder was copied in part, or lost files.
LISTED = "_METADATA"  # by name all arrays of a checkpoint
NEEDED = ("_CHECKPOINT_METADATA", f"state/{LISTED}", "state/manifest.ocdbt")
INCOMPLETE = "incomplete"  # beside `checkpoints`


def complete_steps(workdir: str | Path) -> list[int]:
    """The steps of a run whose checkpoints have all their parts, oldest first."""
    folders = _step_folders(workdir)
    return sorted(int(f.name) for f in folders if all((f / part).is_file() for part in NEEDED))


def set_aside_incomplete(workdir: str | Path) -> str:
    """Moves checkpoints that lack a part out of the way, so that the one before is used.

    Returns:
      What was moved, for the person watching; empty if nothing.

    Raises:
      CheckpointError: there is no whole one.
    """
    whole = complete_steps(workdir)
    broken = sorted((f for f in _step_folders(workdir) if int(f.name) not in whole), key=str)
    if broken and not whole:
        raise CheckpointError(
            f"no checkpoint in {broken[0].parent} is whole: {', '.join(f.name for f in broken)} "
            "lack files. Copy them again, or delete them to start over"
        )
    for folder in broken:
        place = Path(workdir) / INCOMPLETE / folder.name
        place.parent.mkdir(exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        folder.rename(place)
    moved = ", ".join(folder.name for folder in broken)
    return f"checkpoint {moved} lacks files: moved to {INCOMPLETE}/" if broken else ""


def _step_folders(workdir: str | Path) -> list[Path]:
    # Those that were being written have a suffix behind the step.
    return [f for f in (Path(workdir) / "checkpoints").glob("*") if f.name.isdigit()]


class Checkpointer:
    """Asynchronous saves of the newest steps of one run."""

    def __init__(self, workdir: str | Path, keep: int | None = 3) -> None:
        if keep is not None and keep < 1:
            raise ConfigError(f"checkpoint.keep must be at least 1, or None for all, got {keep}")
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self.directory = Path(workdir).absolute() / "checkpoints"
        self.manager = ocp.CheckpointManager(self.directory, options=options)

    def latest_step(self) -> int | None:
        """The newest finished checkpoint's step."""
        return self.manager.latest_step()

    def save(self, step: int, state: Tree) -> None:
        """Starts writing; the arrays may be donated as soon as this returns."""
        if step == self.manager.latest_step():
            return
        items: dict[str, Any] = {
            "state": ocp.args.StandardSave(state),
            "note": ocp.args.JsonSave({"step": step, "processes": jax.process_count()}),
        }
        self.manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(self, abstract: Tree) -> Tree:
        """Restores the newest checkpoint into `abstract`'s shapes, dtypes and shardings.

        The processes and devices that saved it may have been others.

        Raises:
          CheckpointError: nothing to restore, or the files are damaged or of another model.
        """
        step = self.latest_step()
        if step is None:
            raise CheckpointError(f"no checkpoint in {self.directory}; train first")
        items: dict[str, Any] = {"state": ocp.args.StandardRestore(abstract)}
        try:
            return self.manager.restore(step, args=ocp.args.Composite(**items))["state"]
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {self.directory / str(step)} cannot be read: {_reason(error)}. If it "
                "was cut off by a full disk or a kill, delete that step's folder to go back to the "
                "one before; if the model's code or config changed, use another workdir"
            ) from error

    def wait(self) -> None:
        """Blocks until every started save is on disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the manager's threads."""
        self.wait()
        self.manager.close()


def _reason(error: Exception) -> str:
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
        check_files(directory.parent, [WEIGHTS_FILE])
        return 0, _sampling_weights(load_tree(file))
    if not directory.is_dir():
        raise CheckpointError(f"no checkpoints folder in {Path(workdir)}; train first")
    steps = complete_steps(workdir)
    if not steps:
        raise CheckpointError(f"no finished checkpoint in {directory}; train first")
    step = steps[-1]
    try:
        restored = read_arrays(directory, step, averaged=True)
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {directory / str(step)} cannot be read: {_reason(error)}. Delete that "
            "step's folder to use the one before, or train again"
        ) from error
    return step, _sampling_weights(restored)


def read_arrays(directory: Path, step: int, averaged: bool) -> dict[str, Tree]:
    """Parameters and, where there is one, the model state of one checkpoint, numpy.

    Args:
      directory: the run's `checkpoints`.
      step: of the checkpoint.
      averaged: reads "ema_params" in place of "params" where the run has an average.
    """
    path = directory / str(step) / "state"
    stored = stored_tree(path)
    params = "ema_params" if averaged and stored.get("ema_params") else "params"
    item = {name: stored[name] for name in (params, "model_state") if stored.get(name)}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    restore = ocp.args.PyTreeRestore(item=item, restore_args=as_numpy, partial_restore=True)
    with ocp.PyTreeCheckpointer() as reader:
        return dict(reader.restore(path, args=restore))


def stored_tree(path: Path) -> dict[str, Tree]:
    """The names of a checkpoint's arrays as dicts, of orbax's list; the leaves mean nothing.

    To ask orbax for shapes too opens every array, the optimiser's as well: three times as long as
    reading the weights of a small run.

    Args:
      path: its folder `state`.
    """
    rows = json.loads((path / LISTED).read_text())["tree_metadata"].values()
    names = [
        tuple(part["key"] for part in row["key_metadata"])
        for row in rows
        if not row["value_metadata"]["skip_deserialize"]  # an empty dict or None
    ]
    return dict(unflatten_dict({name: np.zeros(()) for name in names}))


def _sampling_weights(tree: Tree) -> Tree:
    params = tree.get("ema_params") or tree.get("params", {})
    return {"params": params, "model_state": tree.get("model_state", {})}
