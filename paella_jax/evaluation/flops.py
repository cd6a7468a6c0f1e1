"""Counting a function's arithmetic from its jaxpr, without running or compiling it.

Counted are matrix products and convolutions, 2 FLOPs per multiply-add, as in the tables of
docs/models/paella.md 7 and docs/models/muse.md 5; norms, activations and the softmax are not. XLA's
own count is no help: it counts a scanned body once (docs/jax.md 1).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval

Jaxpr = Any  # jax's name for it is not public in every version we support


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of one call.

    The costliest branch of every `lax.cond` counts. That also settles operators with one form per
    platform (`lax.platform_dependent`): a form that JAX cannot look into, such as a fused kernel or
    the depthwise convolution as shifted additions, counts nothing, so the explicit one wins.
    Padding counts as work, as it does in torch's counter; the zeros that a transposed convolution
    puts between its inputs do not.

    Args:
      function: anything `jax.jit` takes; fix static arguments with `functools.partial`.
      *args: pytrees of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
      The number of FLOPs, for the whole batch.

    Raises:
      ValueError: a `while` loop, whose number of rounds is unknown, holds counted operations.
    """
    return sum(flops_by_type(jax.make_jaxpr(function)(*args).jaxpr).values())


def flops_by_type(jaxpr: Jaxpr) -> dict[str, int]:
    """As `count_flops` of a traced program, by the type of what is multiplied ("bfloat16").

    What no result depends on is not counted, since no compiler keeps it: the prediction that
    preparing a sampler's steps throws away, for one.
    """
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return {dtype: 2 * count for dtype, count in _multiply_adds(jaxpr).items()}


def _multiply_adds(jaxpr: Jaxpr) -> Counter[str]:
    return _sum(_of_equation(equation) for equation in jaxpr.eqns)


def _sum(counts: Iterable[Counter[str]]) -> Counter[str]:
    return sum(counts, Counter())


def _of_equation(equation: Any) -> Counter[str]:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return Counter({str(equation.invars[0].aval.dtype): _of_dot(equation)})
    if name == "conv_general_dilated":
        return Counter({str(equation.invars[0].aval.dtype): _of_convolution(equation)})
    inner = [_multiply_adds(jaxpr) for jaxpr in _jaxprs(params)]
    if name == "cond":
        return max(inner, key=lambda branch: branch.total())
    if name == "scan":
        return Counter({dtype: params["length"] * n for dtype, n in _sum(inner).items()})
    if name == "while" and any(inner):
        raise ValueError(
            "cannot count the FLOPs of a while loop with matrix products: its number of rounds is "
            "unknown; use lax.scan, or lax.fori_loop with Python integers as bounds"
        )
    return _sum(inner)


def _jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The programs among an equation's parameters: of jit, remat, custom_vjp, cond, scan, ..."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            program = getattr(item, "jaxpr", item)  # closed ones wrap the program
            if hasattr(program, "eqns"):
                yield program


def _of_dot(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def _of_convolution(equation: Any) -> int:
    """Every output channel reads the kernel's input channels, already those of one group only."""
    params = equation.params
    kernel = equation.invars[1].aval.shape
    out = equation.outvars[0].aval.shape
    dims = params["dimension_numbers"]
    batch, channels = (out[axis] for axis in dims.out_spec[:2])
    products = batch * channels * kernel[dims.rhs_spec[1]]
    for n, (low, _) in enumerate(params["padding"]):
        products *= _pairs(
            outputs=out[dims.out_spec[2 + n]],
            taps=kernel[dims.rhs_spec[2 + n]],
            low=low,
            stride=params["window_strides"][n],
            hole=params["lhs_dilation"][n],
            spread=params["rhs_dilation"][n],
        )
    return products


def _pairs(outputs: int, taps: int, low: int, stride: int, hole: int, spread: int) -> int:
    """(output, tap) pairs along one axis, less those that fall between two inputs `hole` apart."""
    read = np.arange(outputs)[:, None] * stride + np.arange(taps)[None] * spread - low
    return int(np.count_nonzero(read % hole == 0))
