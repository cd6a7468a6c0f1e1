"""At initialisation a network tells the positions of an all-masked map apart, behind every layer.

A part of the stream that is the same at all positions hides what differs once a norm is taken of
their sum. Where hardly anything differs, training first has to find the positions: such a network
predicted the background alone for thousands of updates (docs/results.md 5).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from paella_jax.families.cells import make_predictor
from paella_jax.families.networks import Around
from paella_jax.models.conditioning import Conditioning

LEAST = 0.05
# Without position vectors an all-masked map has no places but its border, which convolutions see by
# their zero padding, as in the released networks: less, on the small maps of these presets.
LEAST_BY_PADDING = 0.015
# What carries the stream from one layer to the next, by the names of modules.
STREAM = ("layer_", "down_0_block_", "up_0_block_")


def share_that_differs(x):
    """Of the layer-normed stream [batch, ..., channels], the variance over positions."""
    x = np.asarray(x, np.float32).reshape(len(x), -1, x.shape[-1])
    normed = (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-6)
    return normed.var(1).sum() / np.square(normed).mean(1).sum()


def shares(preset, network, **overrides):
    """Of every layer, by name, in the order of the call."""
    config = small.config_of(preset, cell__network=network, cell__corruption="mask", **overrides)
    side, width = config.data.image_size // (4 if config.data.image_size < 100 else 16), 64
    predictor = make_predictor(config, Around(side, width, width))
    draw = np.random.default_rng(0).normal(size=(2, 9, width)).astype(np.float32)
    extra = {}
    if network == "uvit":
        extra = {"text_pooled": draw[:, 0], "micro_conds": jnp.tile(jnp.arange(5.0), (2, 1))}
    cond = Conditioning(text=draw, text_mask=np.ones((2, 9), bool), **extra)
    inputs = (np.full((2, side, side), predictor.mask_token), np.full(2, 0.9, np.float32), cond)
    found = {}

    def note(call, args, options, context):
        result = call(*args, **options)
        name = context.module.name or ""
        is_layer = name.startswith(STREAM) and context.method_name == "__call__"
        if is_layer and len(context.module.path) == 1:
            found[name] = result
        return result

    @jax.jit
    def layers(key):
        variables = predictor.init(key, *inputs)
        found.clear()
        with nn.intercept_methods(note):
            predictor.apply(variables, *inputs)
        return dict(found)

    return {name: share_that_differs(x) for name, x in layers(jax.random.key(0)).items()}


SHALLOW = {"depth": 2, "loop": False, "remat": False}
CASES = [
    ("muse:shapes", "transformer", {}),
    ("muse:shapes", "transformer", {"transformer__tied_head": True}),
    ("muse:shapes", "unet", {"text__empty_is_absent": False}),
    ("muse:shapes", "uvit", {"text__empty_is_absent": False}),
    small.slow(
        "muse:632m",
        "transformer",
        {f"transformer__{name}": value for name, value in SHALLOW.items()},
    ),
]


@pytest.mark.parametrize("preset, network, overrides", CASES, ids=str)
def test_positions_are_told_apart(preset, network, overrides):
    found = shares(preset, network, **overrides)
    print({name: round(float(share), 4) for name, share in found.items()})
    least = LEAST
    assert len(found) >= 2 and list(found.values())[-1] > least
