"""Strips of a map give what the whole map gives, on CPU and without a gradient only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.ops.strips import POSITIONS, in_strips

MAPS = {
    "three strips": (1, 48, POSITIONS // 16, 3),
    "a prime height": (2, 7, POSITIONS // 4, 3),
    "rows longer than a strip": (1, 2, POSITIONS + 8, 2),
}


def mix(x, weights):
    """Something that differs at every position and channel."""
    return jnp.tanh(x @ weights["matrix"] + weights["bias"].reshape(1, 1, 1, -1)) + x


def inputs(shape):
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=shape), jnp.float32)
    matrix = jnp.asarray(draw.normal(size=(shape[-1], shape[-1])), jnp.float32)
    return x, {"matrix": matrix, "bias": jnp.arange(shape[-1], dtype=jnp.float32)}


def program(function, *arguments, platform="cpu"):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("name", MAPS)
def test_strips_give_what_the_whole_map_gives(name):
    x, weights = inputs(MAPS[name])
    run = lambda x, weights: in_strips(mix, x, weights)
    assert "stablehlo.while" in program(run, x, weights)
    np.testing.assert_allclose(jax.jit(run)(x, weights), mix(x, weights), atol=1e-6)


def test_gradients_are_those_of_the_whole_map():
    x, weights = inputs(MAPS["three strips"])
    loss = lambda apply: lambda x, weights: jnp.square(apply(x, weights)).sum()
    of_strips = jax.grad(loss(lambda x, weights: in_strips(mix, x, weights)), argnums=(0, 1))
    assert "stablehlo.while" not in program(of_strips, x, weights)
    wanted = jax.jit(jax.grad(loss(mix), argnums=(0, 1)))(x, weights)
    for ours, theirs in zip(
        jax.tree.leaves(jax.jit(of_strips)(x, weights)), jax.tree.leaves(wanted), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_small_maps_and_accelerators_have_no_loop():
    run = lambda x, weights: in_strips(mix, x, weights)
    assert "stablehlo.while" not in program(run, *inputs((1, 16, POSITIONS // 16, 3)))
    for platform in ("cuda", "tpu"):
        text = program(run, *inputs(MAPS["three strips"]), platform=platform)
        assert "stablehlo.while" not in text, platform
