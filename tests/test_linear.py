"""Matrix-product forms of the strided and transposed convolutions against XLA's and torch's."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.ops.linear import (
    add_bias,
    dense,
    strided_conv,
    transposed_conv,
    wide_gradients,
)

CONVOLUTIONS = (strided_conv, transposed_conv)
# (kernel size, stride): the released models use (2, 2) and (4, 2).
FORMS = ((2, 2), (4, 2), (4, 4), (8, 4), (3, 3))


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@partial(jax.jit, static_argnums=0)
def value_and_gradients(conv, x, kernel):
    weigh = lambda y: (y * jnp.sin(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)).sum()
    gradients = jax.grad(lambda x, kernel: weigh(conv(x, kernel)), argnums=(0, 1))(x, kernel)
    return conv(x, kernel), *gradients


@pytest.mark.usefixtures("highest_precision")
@pytest.mark.parametrize(("k", "stride"), FORMS)
@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_forms_agree_in_value_and_gradients(conv, k, stride):
    height, width = (3, 5) if conv is transposed_conv else (3 * stride, 5 * stride)
    x, kernel = random(1, 2, height, width, 6), random(2, k, k, 6, 7)
    forms = [
        value_and_gradients(partial(conv, stride=stride, implementation=name), x, kernel)
        for name in ("convolution", "matmul", "auto")
    ]
    shape = (2, 3 * stride, 5 * stride, 7) if conv is transposed_conv else (2, 3, 5, 7)
    assert forms[0][0].shape == shape
    for form in forms[1:]:
        for ours, theirs in zip(form, forms[0], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=5e-5, rtol=5e-5)


def strided_by_definition(x, kernel, stride):
    """torch.nn.Conv2d(k, stride, padding=(k - stride) / 2) as loops."""
    k = kernel.shape[0]
    pad = (k - stride) // 2
    batch, height, width, _ = x.shape
    out = np.zeros((batch, height // stride, width // stride, kernel.shape[3]))
    for i, j in np.ndindex(*out.shape[1:3]):
        for a, b in np.ndindex(k, k):
            row, column = stride * i + a - pad, stride * j + b - pad
            if 0 <= row < height and 0 <= column < width:
                out[:, i, j] += x[:, row, column] @ kernel[a, b]
    return out


def transposed_by_definition(x, kernel, stride):
    """torch.nn.ConvTranspose2d(k, stride, padding=(k - stride) / 2) as loops."""
    k = kernel.shape[0]
    pad = (k - stride) // 2
    batch, height, width, _ = x.shape
    out = np.zeros((batch, height * stride, width * stride, kernel.shape[3]))
    for i, j in np.ndindex(height, width):
        for a, b in np.ndindex(k, k):
            row, column = stride * i + a - pad, stride * j + b - pad
            if 0 <= row < out.shape[1] and 0 <= column < out.shape[2]:
                out[:, row, column] += x[:, i, j] @ kernel[a, b]
    return out


@pytest.mark.parametrize("implementation", ["matmul", "convolution"])
@pytest.mark.parametrize("k", [2, 4])
def test_against_torch_definition(k, implementation):
    x, kernel = random(3, 2, 4, 6, 2), random(4, k, k, 2, 3)
    for conv, by_definition in zip(
        CONVOLUTIONS, (strided_by_definition, transposed_by_definition), strict=True
    ):
        run = jax.jit(partial(conv, implementation=implementation))
        expected = by_definition(np.asarray(x), np.asarray(kernel), 2)
        np.testing.assert_allclose(run(x, kernel), expected, atol=1e-5)


def test_each_platform_gets_its_own_form():
    for conv in CONVOLUTIONS:
        traced = jax.jit(conv).trace(jnp.ones((1, 4, 4, 3)), jnp.ones((4, 4, 3, 2)))
        for platform, wanted in (("cpu", False), ("tpu", True), ("cuda", True)):
            text = traced.lower(lowering_platforms=(platform,)).as_text()
            assert ("stablehlo.convolution" in text) == wanted, (conv, platform)


def test_dense_keeps_leading_axes_and_accumulates_as_asked():
    x, kernel = random(5, 2, 3, 4, 8), random(6, 8, 5)
    out = jax.jit(dense)(x, kernel)
    np.testing.assert_allclose(out, np.asarray(x) @ np.asarray(kernel), atol=1e-5)
    half = [a.astype(jnp.bfloat16) for a in (x, kernel)]
    assert jax.jit(dense)(*half).dtype == jnp.bfloat16
    assert jax.jit(partial(dense, precision_dtype=jnp.float32))(*half).dtype == jnp.float32


@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_errors(conv):
    x = jnp.ones((1, 4, 4, 2))
    for k, stride in ((3, 2), (6, 4), (2, 4)):
        with pytest.raises(ValueError, match=f"kernel size {k} does not fit stride {stride}"):
            conv(x, jnp.ones((k, k, 2, 3)), stride=stride)
    with pytest.raises(ValueError, match="'matrix'"):
        conv(x, jnp.ones((2, 2, 2, 3)), implementation="matrix")


@pytest.mark.parametrize("implementation", ["auto", "matmul", "convolution"])
def test_an_image_the_stride_does_not_divide_is_refused(implementation):
    with pytest.raises(ValueError, match="5 x 4"):
        strided_conv(jnp.ones((1, 5, 4, 2)), jnp.ones((2, 2, 2, 3)), implementation=implementation)


def layer_of(x, kernel, bias):
    return add_bias(dense(x, kernel), bias)


def gradients_of(x, kernel, bias, wide):
    with wide_gradients(wide):
        loss = lambda *given: (layer_of(*given).astype(jnp.float32) * jnp.cos(x[:, :1])).sum()
        return jax.grad(loss, argnums=(0, 1, 2))(x, kernel, bias)


def test_wide_gradients_are_not_rounded_to_the_type_of_the_product():
    x, kernel, bias = random(1, 256, 8).astype(jnp.bfloat16), random(2, 8, 4), random(3, 4)
    narrow, wide = (gradients_of(x, kernel, bias, on) for on in (False, True))
    assert [g.dtype for g in wide] == [jnp.bfloat16, jnp.float32, jnp.float32]
    rounded = lambda g: bool((g == g.astype(jnp.bfloat16).astype(jnp.float32)).all())
    assert rounded(narrow[1]) and rounded(narrow[2])
    assert not rounded(wide[1]) and not rounded(wide[2])
    np.testing.assert_array_equal(narrow[0], wide[0])
    grad = jnp.broadcast_to(jnp.cos(x[:, :1]), (256, 4)).astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(wide[1], x.astype(jnp.float32).T @ grad, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(wide[2], grad.sum(0), rtol=1e-5, atol=1e-4)


def test_wide_gradients_change_no_program_of_float32():
    given = random(1, 6, 8), random(2, 8, 4), random(3, 4)
    programs = []
    for on in (False, True):
        with wide_gradients(on):
            loss = lambda *given: layer_of(*given).sum()
            programs.append(str(jax.make_jaxpr(jax.value_and_grad(loss, (0, 1, 2)))(*given)))
    assert programs[0] == programs[1] and "custom_vjp" not in programs[0]


def test_the_way_back_from_wide_logits_multiplies_in_the_narrow_type():
    x, kernel = random(1, 6, 8).astype(jnp.bfloat16), random(2, 8, 4)
    loss = lambda *given: dense(*given, precision_dtype=jnp.float32).sum()
    program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, kernel)
    products = [e for e in program.jaxpr.eqns if e.primitive.name == "dot_general"]
    assert len(products) >= 2
    assert {v.aval.dtype.name for e in products for v in e.invars} == {"bfloat16"}
