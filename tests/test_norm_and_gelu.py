"""Layer norm and GELU: values and gradients in float64, and what their gradients keep."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.ops.fusion import apart
from paella_jax.ops.gelu import gelu
from paella_jax.ops.norm import layer_norm

POINTS = np.concatenate([np.linspace(-9, 9, 2001), [-40.0, 1e-20, 300.0]]).astype(np.float32)


def exact(x):
    """x Phi(x) and its slope in float64."""
    x = np.asarray(x, np.float64)
    below = 0.5 * np.vectorize(math.erfc)(-x / math.sqrt(2.0))
    return x * below, below + x * np.exp(-x * x / 2) / math.sqrt(2.0 * math.pi)


def norm_and_gradient(x, weight, epsilon):
    """Layer norm and the gradient of its product with `weight`, in float64."""
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    centred = x - x.mean(-1, keepdims=True)
    scale = 1.0 / np.sqrt(np.square(centred).mean(-1, keepdims=True) + epsilon)
    normed = centred * scale
    along = (weight * normed).mean(-1, keepdims=True)
    return normed, scale * (weight - weight.mean(-1, keepdims=True) - normed * along)


def kept(function, x) -> int:
    """Numbers that a gradient keeps of the way there."""
    return sum(leaf.size for leaf in jax.tree.leaves(jax.vjp(function, x)[1]))


def test_gelu_and_its_slope_are_exact():
    with_slope = jax.jit(lambda x: (gelu(x), jax.vjp(gelu, x)[1](jnp.ones_like(x))[0]))
    values, slopes = with_slope(POINTS)
    wanted, slope = exact(POINTS)
    # Of the form x (1 + erf) / 2 itself: one rounding of 1 + erf, a few of erf.
    assert (np.abs(values - wanted) <= 2.5e-7 * np.abs(POINTS)).all()
    assert np.abs(slopes - slope).max() < 4e-7


def test_gelu_in_bfloat16_is_rounded_once():
    x = jnp.asarray(POINTS, jnp.bfloat16)
    wide = gelu(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(gelu(x), wide)
    assert jax.grad(lambda x: gelu(x).sum())(x).dtype == jnp.bfloat16


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_layer_norm_and_its_gradient(mean):
    draw = np.random.default_rng(0)
    # Of whole 64ths, so that a mean of 1000 changes nothing before the norm does.
    x = (np.round(64 * draw.normal(size=(2, 3, 5, 24))) / 64 + mean).astype(np.float32)
    weight = draw.normal(size=x.shape).astype(np.float32)
    value, back = jax.jit(lambda x: (layer_norm(x, 1e-5), jax.vjp(layer_norm, x)[1](weight)))(x)
    tolerance = 2e-6 if mean == 0.0 else 2e-4
    np.testing.assert_allclose(value, norm_and_gradient(x, weight, 1e-5)[0], atol=tolerance)
    wanted = norm_and_gradient(x, weight, 1e-6)[1]
    np.testing.assert_allclose(back[0], wanted, atol=tolerance)


def test_layer_norm_epsilon_counts_where_a_row_is_flat():
    x = jnp.array([[1e-3, -1e-3]])
    for epsilon in (1e-6, 1e-2):
        np.testing.assert_allclose(
            layer_norm(x, epsilon)[0, 0], 1e-3 / math.sqrt(1e-6 + epsilon), rtol=1e-6
        )
    assert not layer_norm(jnp.full((2, 4), 3.0)).any()


def test_gradients_keep_no_more_than_their_input():
    x = jnp.ones((6, 8), jnp.bfloat16)
    assert kept(gelu, x) == x.size
    assert kept(layer_norm, x) == x.size + 2 * 6


def test_apart_changes_nothing_and_is_of_the_cpu_alone():
    x = jnp.array([1.5, -0.0, jnp.inf, -jnp.inf, jnp.nan])
    np.testing.assert_array_equal(jax.jit(apart)(x), x)
    assert np.signbit(jax.jit(apart)(x)[1])
    traced = jax.jit(apart).trace(x)
    for platform, wanted in (("cpu", True), ("cuda", False), ("tpu", False)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.clamp" in text) == wanted, platform
