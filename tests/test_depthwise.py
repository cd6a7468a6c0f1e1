"""The hand-tuned depthwise convolution against the backend's own, in value and gradients."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from paella_jax.ops.depthwise import depthwise_conv

PADDINGS = ("zero", "replicate")
# Kernel size -> image sizes: non-square, odd and even, smaller than the kernel.
SIZES = {3: ((7, 10), (1, 4)), 5: ((2, 3),), 7: ((5, 8),)}


def random(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def grouped_convolution(x, kernel, padding):
    """The textbook form: pad first, then a VALID grouped convolution."""
    pad = kernel.shape[0] // 2
    mode = "edge" if padding == "replicate" else "constant"
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode=mode)
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=kernel.shape[3],
        precision="highest",
    )


@partial(jax.jit, static_argnums=0)
def value_and_gradients(conv, x, kernel, cotangent):
    value, pull_back = jax.vjp(conv, x, kernel)
    return value, *pull_back(cotangent)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("inputs", [1, 2])
@pytest.mark.parametrize("k", [3, 5, 7])
def test_forms_agree_in_value_and_gradients(k, inputs, padding):
    for size in SIZES[k]:
        x, kernel = random(1, 2, *size, 3 * inputs), random(2, k, k, inputs, 3)
        cotangent = random(3, 2, *size, 3)
        reference = partial(grouped_convolution, padding=padding)
        expected = value_and_gradients(reference, x, kernel, cotangent)
        assert expected[0].shape == (2, *size, 3)
        for implementation in ("auto", "convolution"):  # "auto" is "shifts" here, see below
            conv = partial(depthwise_conv, padding=padding, implementation=implementation)
            got = value_and_gradients(conv, x, kernel, cotangent)
            for ours, theirs in zip(got, expected, strict=True):
                message = f"{implementation} {size}"
                np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=2e-5, err_msg=message)


@pytest.mark.parametrize("padding", PADDINGS)
def test_two_inputs_per_group_read_contiguous_channels(padding):
    """Output channel g sees input channels 2g and 2g+1, nothing else."""
    x = random(4, 1, 4, 4, 6)
    changed = x.at[..., 2:4].add(1.0)
    run = jax.jit(partial(depthwise_conv, padding=padding, implementation="shifts"))
    kernel = random(5, 3, 3, 2, 3)
    difference = np.abs(run(changed, kernel) - run(x, kernel)).max((0, 1, 2))
    assert difference[1] > 0.1 and difference[0] == 0 and difference[2] == 0


@pytest.mark.parametrize("padding", PADDINGS)
def test_bfloat16_stays_close_to_float32(padding):
    x, kernel, cotangent = random(6, 2, 6, 5, 8), random(7, 3, 3, 1, 8), random(8, 2, 6, 5, 8)
    conv = partial(depthwise_conv, padding=padding, implementation="shifts")
    exact = value_and_gradients(conv, x, kernel, cotangent)
    half = value_and_gradients(conv, *(a.astype(jnp.bfloat16) for a in (x, kernel, cotangent)))
    for ours, theirs in zip(half, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        error = np.sqrt(np.mean(np.square(np.asarray(ours, np.float32) - theirs)))
        assert error < 0.02 * np.sqrt(np.mean(np.square(theirs)))


@pytest.mark.parametrize("padding", PADDINGS)
def test_vmap_over_images_and_over_kernels(padding):
    x, kernel = random(9, 3, 2, 5, 6, 4), random(10, 3, 3, 3, 1, 4)
    conv = partial(depthwise_conv, padding=padding)
    mapped = jax.jit(jax.vmap(conv))(x, kernel)
    shared = jax.jit(jax.vmap(conv, in_axes=(0, None)))(x, kernel[0])
    one = jax.jit(conv)
    for i in range(3):
        np.testing.assert_allclose(mapped[i], one(x[i], kernel[i]), atol=1e-5)
        np.testing.assert_allclose(shared[i], one(x[i], kernel[0]), atol=1e-5)
    of_sample = jax.grad(lambda kernel, x: jnp.square(conv(x[None], kernel)).sum())
    per_sample = jax.jit(jax.vmap(of_sample, in_axes=(None, 0)))(kernel[0], x[0])
    total = jax.jit(jax.grad(lambda kernel: jnp.square(conv(x[0], kernel)).sum()))(kernel[0])
    np.testing.assert_allclose(per_sample.sum(0), total, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("gradient", [False, True])
def test_each_platform_gets_its_own_form(gradient):
    function = depthwise_conv
    if gradient:
        function = jax.grad(lambda x, kernel: depthwise_conv(x, kernel).sum(), argnums=(0, 1))
    traced = jax.jit(function).trace(jnp.ones((1, 4, 4, 6)), jnp.ones((3, 3, 1, 6)))
    for platform, wanted in (("cpu", False), ("tpu", True), ("cuda", True)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in text) == wanted, platform


@pytest.mark.parametrize(
    ("k", "options", "message"),
    [
        (4, {}, "odd, got 4"),
        (3, {"padding": "reflect"}, "'reflect'"),
        (3, {"implementation": "shift"}, "'shift'"),
    ],
)
def test_errors(k, options, message):
    with pytest.raises(ValueError, match=message):
        depthwise_conv(jnp.ones((1, 4, 4, 2)), jnp.ones((k, k, 1, 2)), **options)
