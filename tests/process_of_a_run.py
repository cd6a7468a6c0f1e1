"""One process of tests/test_processes.py: `python process_of_a_run.py NAME ARGUMENTS`.

`trained` trains cases to their last step, with all the processes that the environment tells of.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import small
from programs import remember_programs

from paella_jax.config import ConfigError, UserError
from paella_jax.registry import build_method
from paella_jax.runs.folder import prepare_workdir
from paella_jax.training import preview, sharding
from paella_jax.training.cluster import find_cluster
from paella_jax.training.distributed import (
    check_same_config,
    check_same_start,
    check_shared,
    first_alone,
    joined,
)
from paella_jax.training.loop import train
from paella_jax.training.placing import fetch

FIELDS = small.TINY_TRANSFORMER | {
    "sampler__num_steps": 2,
    "log__validation_images": 8,
    "checkpoint__every": 100,
    # Without a memory, Adam's first moment is the last step's gradient.
    "optim__beta1": 0.0,
    "optim__ema_decay": 0.0,
    "optim__learning_rate": 0.01,
    "optim__warmup_steps": 0,
}


def trained(folder: Path, mesh, steps=3, preview=False):
    """The last state: {path: numpy} of parameters and of the last gradient."""
    sharding.MIN_SHARD_SIZE = 64  # the small matrices of these tests are to be cut, too
    axes = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), mesh, strict=True))
    config = small.small_paella(**(FIELDS | axes | {"num_steps": steps}))

    def prepare():
        prepare_workdir(folder, config)
        if not (folder / "frozen").exists():
            small.carry_random_tokenizer(folder)

    first_alone("folder", prepare)
    method = build_method(config, folder)
    if not preview:
        method = replace(method, preview=None, validation=None)
    state = train(config, folder, method).state
    trees = {"params": state.params, "gradient": state.opt_state[1][0].mu}
    cut = [not x.is_fully_replicated for x in jax.tree.leaves(state.params)]
    leaves = jax.tree_util.tree_leaves_with_path(trees)
    found = {jax.tree_util.keystr(path): fetch(x) for path, x in leaves}
    return found | {"cut": np.asarray(sum(cut))}


def train_cases(folder, cases):
    remember_programs()
    for name, case in json.loads(cases).items():
        found = trained(Path(folder) / name, **case)
        if jax.process_index() == 0:
            np.savez(Path(folder) / f"{name}.npz", **found)


def prepare_from_runs(folder, tokenizer, base):
    """A new run on a trained tokenizer, and adapters of a trained run."""
    for name, fields in (
        ("plain", {"tokenizer": tokenizer}),
        ("adapters", {"init_from": base, "lora__rank": 2, "lora__pattern": "query"}),
    ):
        config = small.small_paella(**FIELDS, num_steps=1, **fields)
        workdir = Path(folder) / name
        first_alone("folder", lambda workdir=workdir, c=config: prepare_workdir(workdir, c))
        build_method(config, workdir)
    print("prepared", flush=True)


def fail_in_previews(folder):
    """All alike; then process 0 alone, before the processes draw together."""
    remember_programs()

    def broken(*_):
        raise ValueError("no picture")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "digests.json")

    drawn, preview._drawn = preview._drawn, broken
    trained(Path(folder) / "all", (2, 1, 1), preview=True)
    preview._drawn = drawn
    if jax.process_index() == 0:
        preview.noting = full
    trained(Path(folder) / "one", (2, 1, 1), preview=True)


def fail_while_preparing():
    def stale():
        raise OSError(errno.ESTALE, "stale", "a file")

    first_alone("work", stale)


def start_from_another_step(folder):
    config = small.small_paella(**FIELDS, mesh__data=2, num_steps=1)
    first_alone("folder", lambda: prepare_workdir(Path(folder) / "run", config))
    check_same_start(3 - 2 * jax.process_index(), {"samples": 8})


def wait():
    if jax.process_index() == 0:
        print("all are there", flush=True)
    time.sleep(300)


def fail_in_the_second():
    if jax.process_index() == 1:
        raise ValueError("a disk that failed")
    time.sleep(300)


def start_with_what_does_not_fit(folder):
    """Tells each refusal; the last one ends the process."""
    number = jax.process_index()
    own = Path(folder) / str(number)
    own.mkdir()

    def mistake():
        raise ConfigError("wrong")

    for start in (
        lambda: check_same_config(small.small_paella(seed=number)),
        lambda: first_alone("work", mistake),
        lambda: check_same_start(None, {"samples": 61 - 23 * number}),
    ):
        try:
            start()
        except UserError as error:
            print(error, flush=True)
    check_shared(own)


if __name__ == "__main__":
    with joined(find_cluster({})):
        globals()[sys.argv[1]](*sys.argv[2:])
