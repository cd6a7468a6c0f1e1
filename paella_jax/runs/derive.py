"""Runs made of a run: its sampling weights, written as a folder of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.runs.checkpoint import Checkpointer, restore_variables
from paella_jax.runs.folder import prepare_workdir, read_config
from paella_jax.runs.lora import BASE, lora_merge
from paella_jax.runs.weights import load_tree
from paella_jax.typing import Tree

BASE_FILE = f"{BASE}.safetensors"
# Fields that say what the networks are: they must be those of init_from ...
NETWORKS = ("architecture", "cell.", "model.", "transformer.", "uvit.", "super_resolution.",
            "text.", "clip.", "image_encoder.")  # fmt: skip
# ... but for these, which only say how they train or how text is cut.
FREE = {"cell.sampler", "text.max_length", "text.pad_to", "text.dropout"} | {
    f"{network}.{field}"
    for network in ("model", "transformer", "uvit", "super_resolution")
    for field in ("dropout", "attention_dropout", "remat")
}


def restore_trained(workdir: str | Path, config: ConfigDict) -> Tree:
    """A run's parameters to sample with, numpy: averaged if there is an average, LoRA merged.

    Raises:
      CheckpointError: no checkpoint, or a damaged file.
    """
    return _restore(Path(workdir), config)[0]


def _restore(workdir: Path, config: ConfigDict) -> tuple[Tree, Tree]:
    _, restored = restore_variables(workdir)
    params, model_state = restored["params"], restored["model_state"]
    if "lora" in config and config.lora.rank:  # configs older than LoRA have no such block
        base = load_tree(workdir / "frozen" / BASE_FILE)
        params = jax.tree.map(np.asarray, lora_merge(base, params, config.lora.alpha))
    return params, model_state


def save_merged(workdir: str | Path, out: str | Path) -> Path:
    """Writes a run as a folder of its own, with its adapters merged and no optimiser state.

    `out` samples, evaluates and serves as `init_from` like any run; it cannot be resumed.

    Raises:
      ConfigError: `out` already holds something.
      CheckpointError: no run in `workdir`, or a damaged one.
    """
    check_new_folder(out)
    config = read_config(workdir)
    step, restored = restore_variables(workdir)
    params = restore_trained(workdir, config)
    return write_run(workdir, out, step, params, restored["model_state"])


def check_new_folder(out: str | Path) -> None:
    """Raises ConfigError where a folder to be written already holds something."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty; choose a new folder")


def write_run(
    workdir: str | Path, out: str | Path, step: int, params: Tree, model_state: Tree
) -> Path:
    """Writes weights made of a run as a folder of its own, with that run's frozen networks.

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
    workdir = Path(workdir)
    config = read_config(workdir).copy_and_resolve_references()
    with config.unlocked():
        config.init_from = ""
        if "lora" in config:
            config.lora.rank = 0
    out = prepare_workdir(out, config)
    if (workdir / "frozen").is_dir():
        shutil.copytree(
            workdir / "frozen", out / "frozen", ignore=shutil.ignore_patterns(BASE_FILE)
        )
    checkpointer = Checkpointer(out)
    state = {"params": params, "ema_params": {}, "model_state": model_state}
    checkpointer.save(step, state, None)
    checkpointer.close()
    return out
