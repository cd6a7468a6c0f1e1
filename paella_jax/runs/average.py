"""The average of a run's kept checkpoints, made after training (docs/models/muse.md 1.5).

MUSE keeps no moving average while it trains: it saves often and averages what was saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from paella_jax.config import ConfigError
from paella_jax.runs.checkpoint import read_arrays, reason
from paella_jax.runs.folder import CheckpointError, read_config
from paella_jax.runs.whole_steps import complete_steps, tell_of_lost
from paella_jax.typing import Tree


def average_trees(trees: Iterable[Tree], decay: float) -> Tree:
    """average <- decay * average + (1 - decay) * tree, starting at the first tree.

    Args:
      trees: of float arrays, all of one structure, oldest to newest. Each is let go before the next
        is asked for: an iterator that reads them holds one at a time.
      decay: in [0, 1); 0 gives the last tree.

    Returns:
      A new tree of numpy arrays in the dtypes of the first.

    Raises:
      ValueError: no tree at all, or trees of different structure.
    """
    average: Tree = None
    for tree in trees:
        if average is None:
            average = jax.tree.map(np.array, tree)  # copies: the caller's tree stays as it is
        else:
            jax.tree.map(lambda total, new: _move(total, new, decay), average, tree)
        del tree
    if average is None:
        raise ValueError("there is nothing to average")
    return average


def _move(total: np.ndarray, new: np.ndarray, decay: float) -> None:
    """In place, so that only one array more than the two trees is held."""
    total *= decay
    total += (1.0 - decay) * np.asarray(new)


def steps_to_average(workdir: str | Path, wanted: Sequence[int] = ()) -> list[int]:
    """The steps of a run's finished checkpoints, ascending, or the `wanted` ones among them.

    Raises:
      CheckpointError: no run in `workdir`.
      ConfigError: a LoRA run, a wanted step that is not kept, or fewer than two checkpoints.
    """
    config = read_config(workdir)
    if "lora" in config and config.lora.rank:
        raise ConfigError(
            f"{workdir} holds LoRA adapters, whose factors cannot be averaged one by one; merge "
            f"its newest instead: python -m paella_jax.convert --merge {workdir} --out DIR"
        )
    kept = complete_steps(workdir)
    tell_of_lost(workdir)
    absent = sorted(set(wanted) - set(kept))
    if absent:
        raise ConfigError(f"{workdir} has no checkpoint of step {absent}; it keeps {kept}")
    steps = sorted(set(wanted)) or kept
    if len(steps) < 2:
        raise ConfigError(
            f"an average needs at least two checkpoints, {workdir} offers {steps}; train with "
            "--config.checkpoint.keep=None (all are kept) and a small --config.checkpoint.every"
        )
    return steps


def average_run(
    workdir: str | Path, decay: float = 0.7, steps: Sequence[int] = ()
) -> tuple[int, Tree, Tree]:
    """Averages the raw parameters of a run's checkpoints; moving averages are not read.

    Args:
      workdir: a run folder.
      decay: fraction of the average so far at each older-to-newer step, in [0, 1).
      steps: of the checkpoints to use; empty: all that are kept.

    Returns:
      The newest step, the average of `params`, and the newest `model_state` (batch statistics are
      those of one checkpoint). All numpy.

    Raises:
      ConfigError: a decay outside [0, 1), or as `steps_to_average`.
      CheckpointError: no run there, or a damaged checkpoint.
    """
    if not 0.0 <= decay < 1.0:
        raise ConfigError(f"decay must be at least 0 and below 1, got {decay}; MUSE's is 0.7")
    steps = steps_to_average(workdir, steps)
    model_state: Tree = {}

    def read_all() -> Iterator[Tree]:
        nonlocal model_state
        for step in steps:
            restored = read_raw(workdir, step)
            model_state = restored.get("model_state", {})
            yield restored.pop("params")

    average = average_trees(read_all(), decay)
    return steps[-1], average, model_state


def read_raw(workdir: str | Path, step: int) -> dict[str, Tree]:
    """`params` and, where there is one, `model_state` of one checkpoint, numpy.

    Neither the moving average nor the optimiser's state is read.

    Raises:
      CheckpointError: it is damaged.
    """
    directory = Path(workdir).absolute() / "checkpoints"
    try:
        return read_arrays(directory, step, averaged=False)
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {directory / str(step)} cannot be read: "
            f"{reason(error, directory / str(step))}; leave it out with --steps"
        ) from error
