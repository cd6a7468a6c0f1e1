"""One process of tests/test_processes.py: `python process_of_a_run.py FOLDER CASES`, as JSON.

Trains each case to its last step, with all processes that the environment tells of, and keeps what
it ended with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
import small
from programs import remember_programs

from paella_jax.registry import build_method
from paella_jax.runs.folder import prepare_workdir
from paella_jax.training import sharding
from paella_jax.training.cluster import find_cluster
from paella_jax.training.distributed import first_alone, joined
from paella_jax.training.loop import train
from paella_jax.training.placing import fetch

CODES, WIDTH = 32, 16
FIELDS = {
    "cell__network": "transformer",
    "cell__corruption": "mask",
    "transformer__width": WIDTH,
    "transformer__depth": 1,
    "transformer__num_heads": 2,
    "transformer__feed_forward_width": 32,
    "text__width": WIDTH,
    "text__num_heads": 2,
    "text__hidden_dim": 32,
    "sampler__num_steps": 2,
    "num_steps": 3,
    "checkpoint__every": 100,
    # Without a memory, Adam's first moment is the last step's gradient.
    "optim__beta1": 0.0,
    "optim__ema_decay": 0.0,
    "optim__learning_rate": 0.01,
    "optim__warmup_steps": 0,
}


def cut_small_matrices():
    """Lets the rules cut the small networks of these tests, too."""
    sharding.MIN_SHARD_SIZE = 64


def trained(folder: Path, mesh, preview=False, **fields):
    """The last state: {path: numpy} of parameters and of the last gradient."""
    axes = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), mesh, strict=True))
    config = small.small_paella(**(FIELDS | axes | fields))

    def prepare():
        prepare_workdir(folder, config)
        if not (folder / "frozen").exists():
            small.carry_random_tokenizer(folder)

    first_alone("folder", prepare)
    method = build_method(config, folder)
    if not preview:
        object.__setattr__(method, "preview", None)
    state = train(config, folder, method).state
    trees = {"params": state.params, "gradient": state.opt_state[1][0].mu}
    cut = [not x.is_fully_replicated for x in jax.tree.leaves(state.params)]
    leaves = jax.tree_util.tree_leaves_with_path(trees)
    found = {jax.tree_util.keystr(path): fetch(x) for path, x in leaves}
    return found | {"cut": np.asarray(sum(cut))}


def main():
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    cut_small_matrices()
    remember_programs()
    cluster = find_cluster({})
    with joined(cluster):
        for name, case in cases.items():
            found = trained(folder / name, **case)
            if cluster.process_id == 0:
                np.savez(folder / f"{name}.npz", **found)


if __name__ == "__main__":
    main()
