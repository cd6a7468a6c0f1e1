"""The convolution of a map enlarged by repetition, without the large map."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.ops.upsampled_conv import upsampled_conv


def plainly(x, kernel):
    large = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    form = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(large, kernel, (1, 1), "SAME", dimension_numbers=form)


@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_values_and_gradients(size):
    x = jax.random.normal(jax.random.key(1), (2, *size, 3))
    kernel = jax.random.normal(jax.random.key(2), (3, 3, 3, 4))
    np.testing.assert_allclose(upsampled_conv(x, kernel), plainly(x, kernel), rtol=1e-4, atol=1e-5)
    loss = lambda function: lambda *given: jnp.square(function(*given)).sum()
    ours = jax.grad(loss(upsampled_conv), (0, 1))(x, kernel)
    for one, other in zip(ours, jax.grad(loss(plainly), (0, 1))(x, kernel), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)
