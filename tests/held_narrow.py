"""Runs loaded twice: with weights as they are, and held in the types that they are used in."""

from __future__ import annotations

import jax
import numpy as np

import paella_jax
from paella_jax.families import stage_b
from paella_jax.pipelines import load, tokens, wuerstchen
from paella_jax.runs.folder import read_config


def both(folder, monkeypatch):
    """A run's pipeline, its compute type changed, with weights as loaded and as they are used."""

    def in_bfloat16(workdir):
        config = read_config(workdir)
        config.precision = "bfloat16"
        return config

    for module in (load, stage_b):
        monkeypatch.setattr(module, "read_config", in_bfloat16)
    whole = paella_jax.load(folder)
    for module in (tokens, wuerstchen):
        monkeypatch.setattr(module, "holds_narrow", lambda precision: precision == "bfloat16")
    return whole, paella_jax.load(folder)


def check_same(whole, narrowed, held):
    """Equal images, narrower weights, and to be given away those that were loaded."""
    options = {"num_steps": 2, "seed": 3, "output_type": "np"}
    ours = narrowed("a red circle", **options)
    np.testing.assert_array_equal(ours, whole("a red circle", **options))
    types = lambda tree: {str(x.dtype) for x in jax.tree.leaves(tree)}
    assert types(held) == {"bfloat16", "float32"}
    for _, weights in narrowed.parts().values():
        assert types(weights[0]) == {"float32"}
