"""Runs made of a run: its sampling weights, written as a folder of their own."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.files.atomic import atomic_path
from paella_jax.runs.checkpoint import Checkpointer, restore_variables
from paella_jax.runs.digests import note_files
from paella_jax.runs.folder import HOW_COMPUTED, prepare_workdir, read_config
from paella_jax.runs.frozen import copy_frozen, load_carried
from paella_jax.runs.lora import lora_merge
from paella_jax.typing import Tree

# Blocks and fields that say how a run trains, what on and what for; the others say what its
# networks are, and must be those of a run it is made of ...
RECIPE = {
    "method", "preset", "init_from", "seed", "num_steps", "batch_size", "precision", "data",
    "optim", "lora", "mesh", "checkpoint", "log", "evaluation", "objective", "schedule", "sampler",
    "tokenizer", "low_tokenizer", "stage_b", "compressor", "train_decoder_only",
}  # fmt: skip
# ... but for these, which only say how the networks train or how text is cut.
FREE = {"cell.sampler", "text.max_length", "text.pad_to"}
FREE_OF_ALL = {"dropout", "attention_dropout", *HOW_COMPUTED}


def describes_networks(name: str) -> bool:
    """Whether a config field, "block.field", says what the networks of a run are."""
    return name.partition(".")[0] not in RECIPE


def is_free(name: str) -> bool:
    """Whether such a field may differ from the run that the weights are from."""
    return name in FREE or name.rpartition(".")[2] in FREE_OF_ALL


def restore_trained(workdir: str | Path, config: ConfigDict) -> Tree:
    """A run's parameters to sample with, numpy: averaged if there is an average, LoRA merged.

    Raises:
      CheckpointError: no checkpoint, or a damaged file.
    """
    return restore_all(workdir, config)[1]


def restore_all(workdir: str | Path, config: ConfigDict) -> tuple[int, Tree, Tree]:
    """The checkpoint's step (0 of converted weights), `restore_trained`, and the model state."""
    step, restored = restore_variables(workdir)
    params, model_state = restored["params"], restored["model_state"]
    if "lora" in config and config.lora.rank:  # configs older than LoRA have no such block
        base = load_carried("base", workdir)
        params = jax.tree.map(np.asarray, lora_merge(base, params, config.lora.alpha))
    return step, params, model_state


def settled(config: ConfigDict) -> ConfigDict:
    """The config of a run that holds whole weights and began from no other."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.init_from = ""
        if "lora" in config:
            config.lora.rank = 0
    return config


def save_merged(workdir: str | Path, out: str | Path) -> Path:
    """Writes a run as a folder of its own, with its adapters merged and no optimiser state.

    `out` samples, evaluates and serves as `init_from` like any run; it cannot be resumed.

    Raises:
      ConfigError: `out` already holds something.
      CheckpointError: no run in `workdir`, or a damaged one.
    """
    check_new_folder(out)
    return write_run(workdir, out, *restore_all(workdir, read_config(workdir)))


def check_new_folder(out: str | Path) -> None:
    """Raises ConfigError where a folder to be written already holds something."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty; choose a new folder")


def write_run(
    workdir: str | Path, out: str | Path, step: int, params: Tree, model_state: Tree
) -> Path:
    """Writes weights made of a run as a folder of its own, with that run's frozen networks.

    It appears whole or not at all.

    Args:
      workdir: the run; its config is kept, less `init_from` and LoRA.
      out: the new folder.
      step: of the one checkpoint in it.
      params: whole parameters, numpy.
      model_state: batch statistics and the like.

    Returns:
      `out`, absolute.

    Raises:
      ConfigError: `out` already holds something.
      CheckpointError: no run in `workdir`.
    """
    check_new_folder(out)
    workdir, out = Path(workdir), Path(out).absolute()
    config = settled(read_config(workdir))
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as part:
        prepare_workdir(part, config)
        copy_frozen(workdir, part, leave_out=["base"])
        checkpointer = Checkpointer(part)
        state = {"params": params, "ema_params": {}, "model_state": model_state}
        checkpointer.save(step, state)
        checkpointer.close()
        note_files(part)
    return out
