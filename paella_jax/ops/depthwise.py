"""Depthwise k x k convolution: the one hand-tuned operator of the package.

XLA's grouped convolution is 15-60 times slower than it could be on CPU, and fine on TPU and GPU
(docs/jax.md 7.1). So on CPU the convolution is a sum of shifted multiply-adds with a
hand-written gradient; elsewhere it is the backend's convolution. The choice is made when a program
is lowered for a platform, not when it is traced.
"""

from __future__ import annotations

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax

from paella_jax.typing import Array


def _taps(x: Array, kernel: Array, pad: int) -> Array:
    """Sum of k*k shifted products. x [B, H, W, C] zero-padded by `pad`, kernel [k, k, C]."""
    k = kernel.shape[0]
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = padded.shape[1] - k + 1, padded.shape[2] - k + 1
    weights = kernel[:, :, None, None, None]
    terms = (
        padded[:, i : i + height, j : j + width] * weights[i, j] for i in range(k) for j in range(k)
    )
    return reduce(jnp.add, terms)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shifted(x: Array, kernel: Array, pad: int) -> Array:
    return _taps(x, kernel, pad)


def _shifted_forward(x: Array, kernel: Array, pad: int) -> tuple[Array, tuple[Array, Array]]:
    return _taps(x, kernel, pad), (x, kernel)


def _shifted_backward(pad: int, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    k = kernel.shape[0]
    grad_x = _taps(grad, kernel[::-1, ::-1], k - 1 - pad)
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    batch, height, width, channels = grad.shape

    # One column reduction per tap is what makes autodiff slow here. Adding up whole image rows
    # elementwise first, and reducing once at the end, keeps every access contiguous.
    def add_row(sums: list[Array], row: Array) -> tuple[list[Array], None]:
        grad_row = lax.dynamic_index_in_dim(grad, row, 1, keepdims=False).astype(jnp.float32)
        rows = [lax.dynamic_index_in_dim(padded, row + i, 1, keepdims=False) for i in range(k)]
        return [
            s + rows[n // k][:, n % k : n % k + width] * grad_row for n, s in enumerate(sums)
        ], None

    zeros = [jnp.zeros((batch, width, channels), jnp.float32)] * (k * k)
    sums, _ = lax.scan(add_row, zeros, jnp.arange(height))
    grad_kernel = jnp.stack([s.sum((0, 1)) for s in sums]).reshape(k, k, channels)
    return grad_x, grad_kernel.astype(kernel.dtype)


_shifted.defvjp(_shifted_forward, _shifted_backward)


def _repeat_border(x: Array, pad: int) -> Array:
    edge = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    return jnp.pad(x, edge, mode="edge")


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _bordered(x: Array, pad: int) -> Array:
    """`_repeat_border`, written piece by piece into one array.

    Of the other, XLA:CPU makes an array for each column of the kernel, and the convolution takes
    half as long again.
    """
    batch, height, width, channels = x.shape
    wide = jnp.zeros((batch, height + 2 * pad, width + 2 * pad, channels), x.dtype)
    write = lambda piece, row, column: lax.dynamic_update_slice(wide, piece, (0, row, column, 0))
    wide = write(x, pad, pad)
    for i in range(pad):
        wide = write(x[:, :1], i, pad)
        wide = write(x[:, -1:], pad + height + i, pad)
    left, right = wide[:, :, pad : pad + 1], wide[:, :, pad + width - 1 : pad + width]
    for i in range(pad):
        wide = write(left, 0, i)
        wide = write(right, 0, pad + width + i)
    return wide


def _bordered_forward(x: Array, pad: int) -> tuple[Array, None]:
    return _bordered(x, pad), None


def _bordered_backward(pad: int, _: None, grad: Array) -> tuple[Array]:
    batch, height, width, channels = grad.shape
    inner = jax.ShapeDtypeStruct((batch, height - 2 * pad, width - 2 * pad, channels), grad.dtype)
    return tuple(jax.linear_transpose(partial(_repeat_border, pad=pad), inner)(grad))


_bordered.defvjp(_bordered_forward, _bordered_backward)


def _by_shifts(x: Array, kernel: Array, pad: int, repeat: bool) -> Array:
    """x [B, H, W, C*I], kernel [k, k, I, C]: output channel g reads inputs g*I .. g*I+I-1."""
    inputs = kernel.shape[2]
    if repeat:
        x, pad = _bordered(x, pad), 0
    return reduce(
        jnp.add, (_shifted(x[..., i::inputs], kernel[:, :, i], pad) for i in range(inputs))
    )


def _by_convolution(x: Array, kernel: Array, pad: int, repeat: bool) -> Array:
    """One convolution for each input of a group: of groups wider than one XLA gathers the whole
    batch on every GPU (docs/plans.md 3)."""
    inputs = kernel.shape[2]
    if repeat:
        x, pad = _repeat_border(x, pad), 0
    parts = (_convolve(x[..., i::inputs], kernel[:, :, i : i + 1], pad) for i in range(inputs))
    return reduce(jnp.add, parts)


def _convolve(x: Array, kernel: Array, pad: int) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=kernel.shape[3],
    )


def depthwise_conv(
    x: Array, kernel: Array, *, padding: str = "zero", implementation: str = "auto"
) -> Array:
    """Stride-1 grouped convolution with one output channel per group and unchanged image size.

    Args:
      x: [batch, height, width, C * I]; group g reads the contiguous channels g*I .. g*I+I-1.
      kernel: [k, k, I, C], k odd.
      padding: "zero" or "replicate" (the border pixel is repeated).
      implementation: "auto" (by platform), "shifts" or "convolution".

    Returns:
      [batch, height, width, C].
    """
    k = kernel.shape[0]
    if k % 2 == 0:
        raise ValueError(f"depthwise kernel size must be odd, got {k}")
    if padding not in ("zero", "replicate"):
        raise ValueError(f"padding must be 'zero' or 'replicate', got {padding!r}")
    if implementation not in ("auto", "shifts", "convolution"):
        raise ValueError(f"unknown depthwise implementation {implementation!r}")
    pad, repeat = k // 2, padding == "replicate"
    by_shifts = partial(_by_shifts, pad=pad, repeat=repeat)
    by_convolution = partial(_by_convolution, pad=pad, repeat=repeat)
    if implementation == "shifts":
        return by_shifts(x, kernel)
    if implementation == "convolution":
        return by_convolution(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=by_shifts, default=by_convolution)
