"""Dense layers and stride-2 (transposed) convolutions in the form each backend runs fastest.

On CPU a strided convolution is space-to-depth plus one matrix product, 2-35 times faster than
XLA's (docs/jax.md 7.2); on accelerators it stays the backend's convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, reduce

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

from paella_jax.typing import Array

_wide: ContextVar[bool] = ContextVar("wide_gradients", default=False)


@contextmanager
def wide_gradients(on: bool = True) -> Iterator[None]:
    """While it traces, the gradients of `dense` kernels and of biases keep the parameters' type.

    Where a float32 kernel is used in bfloat16, its gradient would be a bfloat16 product, and the
    devices would add up bfloat16. The product accumulates in float32 anyway: this keeps it.
    """
    before = _wide.set(on)
    try:
        yield
    finally:
        _wide.reset(before)


def dense(x: Array, kernel: Array, *, precision_dtype: jnp.dtype | None = None) -> Array:
    """x [..., C] @ kernel [C, D] -> [..., D], flattened to one matrix first (CPU: 2-4x faster).

    Args:
      x: in the type to multiply in.
      kernel: of any float type.
      precision_dtype: of the result; by default that of `x`. The way back multiplies in x's type.
    """
    flat, out = x.reshape(-1, x.shape[-1]), precision_dtype or x.dtype
    if not _wide.get():
        kernel = kernel.astype(x.dtype)
    if kernel.dtype == x.dtype == out:
        product = jnp.matmul(flat, kernel, preferred_element_type=out)
    else:
        product = _multiply(flat, kernel, out)
    return product.reshape(*x.shape[:-1], kernel.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _multiply(x: Array, kernel: Array, out: jnp.dtype) -> Array:
    """x [N, C] @ kernel [C, D] in x's type; each gradient comes out in its own array's type."""
    return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=out)


def _multiply_forward(x: Array, kernel: Array, out: jnp.dtype) -> tuple[Array, tuple[Array, ...]]:
    narrow = kernel.astype(x.dtype)
    return jnp.matmul(x, narrow, preferred_element_type=out), (x, narrow, kernel[:0, :0])


def _multiply_backward(
    out: jnp.dtype, saved: tuple[Array, ...], grad: Array
) -> tuple[Array, Array]:
    x, narrow, like = saved
    grad = grad.astype(x.dtype)
    # Without transposing: else a sharded kernel would be gathered again for the way back.
    over = lambda left, right: (((left,), (right,)), ((), ()))
    grad_x = lax.dot_general(grad, narrow, over(1, 1), preferred_element_type=x.dtype)
    return grad_x, lax.dot_general(x, grad, over(0, 0), preferred_element_type=like.dtype)


_multiply.defvjp(_multiply_forward, _multiply_backward)


def add_bias(x: Array, bias: Array) -> Array:
    """x [..., C] plus bias [C] of any float type, in x's type."""
    if _wide.get() and bias.dtype != x.dtype:
        return _add(x, bias)
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


@jax.custom_vjp
def _add(x: Array, bias: Array) -> Array:
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def _add_forward(x: Array, bias: Array) -> tuple[Array, Array]:
    return _add(x, bias), bias[:0]


def _add_backward(like: Array, grad: Array) -> tuple[Array, Array]:
    return grad, grad.astype(like.dtype).sum(tuple(range(grad.ndim - 1)))


_add.defvjp(_add_forward, _add_backward)


def _conv_by_matmul(x: Array, kernel: Array, stride: int, pad: int) -> Array:
    blocks = kernel.shape[0] // stride
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    x = rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=stride, q=stride)
    height, width = x.shape[1] - blocks + 1, x.shape[2] - blocks + 1
    windows = [x[:, i : i + height, j : j + width] for i in range(blocks) for j in range(blocks)]
    matrix = rearrange(kernel, "(m p) (n q) c d -> (m n p q c) d", p=stride, q=stride)
    return dense(jnp.concatenate(windows, axis=-1), matrix)


def _conv(x: Array, kernel: Array, stride: int, pad: int) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def strided_conv(
    x: Array, kernel: Array, *, stride: int = 2, implementation: str = "auto"
) -> Array:
    """Convolution that shrinks the image by exactly `stride`.

    Args:
      x: [batch, height, width, C]; height and width divisible by `stride`.
      kernel: [k, k, C, D] with k a multiple of `stride`; zero padding (k - stride) / 2 a side.
      stride: how much smaller the image gets.
      implementation: "auto" (by platform), "matmul" or "convolution".

    Returns:
      [batch, height / stride, width / stride, D].
    """
    pad = _border(kernel, stride)
    height, width = x.shape[1:3]
    if height % stride or width % stride:
        raise ValueError(f"an image of {height} x {width} cannot shrink by exactly {stride}")
    forms = {
        "matmul": partial(_conv_by_matmul, stride=stride, pad=pad),
        "convolution": partial(_conv, stride=stride, pad=pad),
    }
    return _dispatch(forms, implementation, x, kernel)


def _transposed_by_matmul(x: Array, kernel: Array, stride: int, pad: int) -> Array:
    size, _, _, channels = kernel.shape
    blocks = size // stride
    height, width = x.shape[1:3]
    matrix = rearrange(kernel, "(m p) (n q) c d -> c (m n p q d)", p=stride, q=stride)
    parts = rearrange(dense(x, matrix), "b h w (m n r) -> m n b h w r", m=blocks, n=blocks)
    extra = blocks - 1
    shifted = [
        jnp.pad(parts[i, j], ((0, 0), (i, extra - i), (j, extra - j), (0, 0)))
        for i in range(blocks)
        for j in range(blocks)
    ]
    out = reduce(jnp.add, shifted)
    out = rearrange(out, "b h w (p q d) -> b (h p) (w q) d", p=stride, q=stride, d=channels)
    return out[:, pad : pad + height * stride, pad : pad + width * stride]


def _transposed(x: Array, kernel: Array, stride: int, pad: int) -> Array:
    border = kernel.shape[0] - 1 - pad
    return lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        window_strides=(1, 1),
        padding=((border, border), (border, border)),
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def transposed_conv(
    x: Array, kernel: Array, *, stride: int = 2, implementation: str = "auto"
) -> Array:
    """Transposed convolution that grows the image by exactly `stride` (PyTorch's orientation).

    Args:
      x: [batch, height, width, C].
      kernel: [k, k, C, D], k a multiple of `stride`; output pixel stride*i + a - (k - stride)/2
        receives x[i] @ kernel[a].
      stride: how much larger the image gets.
      implementation: "auto" (by platform), "matmul" or "convolution".

    Returns:
      [batch, height * stride, width * stride, D].
    """
    pad = _border(kernel, stride)
    forms = {
        "matmul": partial(_transposed_by_matmul, stride=stride, pad=pad),
        "convolution": partial(_transposed, stride=stride, pad=pad),
    }
    return _dispatch(forms, implementation, x, kernel)


def _dispatch(
    forms: Mapping[str, Callable[[Array, Array], Array]],
    implementation: str,
    x: Array,
    kernel: Array,
) -> Array:
    if implementation == "auto":
        return lax.platform_dependent(x, kernel, cpu=forms["matmul"], default=forms["convolution"])
    if implementation not in forms:
        raise ValueError(f"unknown convolution implementation {implementation!r}")
    return forms[implementation](x, kernel)


def _border(kernel: Array, stride: int) -> int:
    size = kernel.shape[0]
    if size % stride or (size - stride) % 2:
        raise ValueError(f"kernel size {size} does not fit stride {stride}")
    return (size - stride) // 2
