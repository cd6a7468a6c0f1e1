"""How a trained network is computed on the machine that draws with it, which may be another one."""

from __future__ import annotations

import jax
from ml_collections import ConfigDict

from paella_jax.ops.attention import check_kernel
from paella_jax.runs.digests import tell_once

FORM = ("attention", "loop")  # fields of a network's block that change nothing of what it is


def form_of_here(config: ConfigDict) -> ConfigDict:
    """A run's config with what this machine can compute, and computes well.

    A kernel of attention that is not there becomes one that is, which is told once. Blocks that a
    CPU ran as one loop would be copied together at every call; they are run one by one.
    """
    config = config.copy_and_resolve_references()
    for name, block in config.items():
        if not isinstance(block, ConfigDict):
            continue
        with block.unlocked():
            if isinstance(block.get("attention"), str) and (why := check_kernel(block.attention)):
                here = "xla" if name == "text" else "auto"  # trained texts know no other
                tell_once(f"{name}.attention: {why}; {here} is taken")
                block.attention = here
            if block.get("loop") and jax.default_backend() == "cpu":
                block.loop = False
    return config


def without_form(config: ConfigDict) -> ConfigDict:
    """A config without the fields that `form_of_here` may change."""
    kept = lambda block: {name: x for name, x in block.items() if name not in FORM}
    fields = config.to_dict().items()
    return ConfigDict({name: kept(x) if isinstance(x, dict) else x for name, x in fields})
