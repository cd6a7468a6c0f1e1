"""Saving and restoring runs with orbax; a failing restore is an error, never a fresh start.

A run folder holds `config.json` and `checkpoints/<step>` with three items: the state, the data
iterator of every process, and a small JSON note. A folder of converted weights has
`weights.safetensors` in their place.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from paella_jax.config import ConfigError, differing_fields, flatten_config, from_json, to_json
from paella_jax.training.weights import CheckpointError, load_tree

Tree = Any
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"
# What a resumed run may change (else it would be another run): how it is carried out ...
HOW = ("num_steps", "mesh.", "checkpoint.", "log.", "evaluation.", "sampler.", "data.threads",
       "data.prefetch", "data.folder", "data.image_file", "cell.sampler", "preset")  # fmt: skip
# ... and where the networks it carries once came from.
SOURCES = ("tokenizer", "low_tokenizer", "stage_b", "text.folder", "clip.folder",
           "compressor.run", "init_from")  # fmt: skip


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
    return differing_fields(old, new, ignore=kept)


def write_atomically(file: Path, text: str) -> None:
    """Writes beside the file, then renames: a reader never sees half of it."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")  # other processes may do the same
    part.write_text(text)
    part.replace(file)


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

    def save(self, step: int, state: Tree, iterator: grain.DatasetIterator | None) -> None:
        """Starts writing; the arrays may be donated as soon as this returns."""
        if step == self.manager.latest_step():
            return
        items: dict[str, Any] = {
            "state": ocp.args.StandardSave(state),
            "note": ocp.args.JsonSave({"step": step, "processes": jax.process_count()}),
        }
        if iterator is not None:
            items["data"] = grain.checkpoint.CheckpointSave(iterator)
        self.manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(self, abstract: Tree, iterator: grain.DatasetIterator | None) -> Tree:
        """Restores the newest checkpoint into `abstract`'s shapes, dtypes and shardings.

        The iterator is moved to where it stood.

        Raises:
          CheckpointError: nothing to restore, or the files are damaged or of another model.
        """
        step = self.latest_step()
        if step is None:
            raise CheckpointError(f"no checkpoint in {self.directory}; train first")
        items: dict[str, Any] = {"state": ocp.args.StandardRestore(abstract)}
        if iterator is not None:
            items["data"] = grain.checkpoint.CheckpointRestore(iterator)
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
        return 0, _sampling_weights(load_tree(file))
    if not directory.is_dir():
        raise CheckpointError(f"no checkpoints folder in {Path(workdir)}; train first")
    manager = ocp.CheckpointManager(directory)
    step = manager.latest_step()
    if step is None:
        raise CheckpointError(f"no finished checkpoint in {directory}; train first")
    path = directory / str(step) / "state"
    try:
        with ocp.PyTreeCheckpointer() as reader:
            stored = reader.metadata(path).item_metadata.tree
            wanted = "ema_params" if stored.get("ema_params") else "params"
            item = {name: stored[name] for name in (wanted, "model_state") if stored.get(name)}
            abstract = jax.tree.map(lambda m: np.zeros(m.shape, m.dtype), item)
            restore_args = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), abstract
            )
            restored = reader.restore(
                path,
                args=ocp.args.PyTreeRestore(
                    item=abstract, restore_args=restore_args, partial_restore=True
                ),
            )
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {directory / str(step)} cannot be read: {_reason(error)}. Delete that "
            "step's folder to use the one before, or train again"
        ) from error
    finally:
        manager.close()
    return step, _sampling_weights(restored)


def _sampling_weights(tree: Tree) -> Tree:
    params = tree.get("ema_params") or tree.get("params", {})
    return {"params": params, "model_state": tree.get("model_state", {})}
