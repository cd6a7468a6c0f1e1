"""Running a sampler: all of its steps as one scan, or some of them, as often as one likes.

Both run the same bodies. What differs from step to step is an array in `Loop.steps`, so that
neither the number of steps nor where a loop is cut is compiled in by `advance`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from paella_jax.typing import Array

ROOM = 64  # steps that every padded course has room for: an array of them costs nothing

# (tokens [batch, h, w], one step's inputs) -> the next tokens and what a trace keeps
Body = Callable[[Any, Any], tuple[Any, Any]]


class Loop(NamedTuple):
    """A sampler before it runs.

    Attributes:
      carry: the tokens to start from, or whatever the bodies hand on.
      steps: a tree of arrays with the steps in front.
      bodies: one for each range of steps.
      edges: the first step of each range, and where the last one ends; beyond that there may be
        more in `steps`, which is not run.
    """

    carry: Any
    steps: Any
    bodies: Sequence[Body]
    edges: Any


def run(loop: Loop, trace: bool) -> Any:
    """One `lax.scan` for each range of steps that have the same body.

    Args:
      loop: its edges are numbers, not traced.
      trace: also stack what the bodies show.

    Returns:
      The last carry; with `trace`, a pair with what was shown, the steps that were run in front.
    """
    carry, shown = loop.carry, []
    for body, (first, end) in zip(loop.bodies, pairwise(loop.edges), strict=True):
        part = jax.tree.map(lambda x, a=int(first), b=int(end): x[a:b], loop.steps)
        silent = lambda carry, step, body=body: (body(carry, step)[0], None)
        carry, values = lax.scan(body if trace else silent, carry, part)
        shown.append(values)
    if not trace:
        return carry
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *shown)


def advance(loop: Loop, reached: tuple[Any, Any], first: Array, end: Array) -> tuple[Any, Any]:
    """The steps from `first` up to `end` alone, of a loop that was taken up to `first` before.

    However a loop is cut, it is the same program and thus the same bits: what `first`, `end` and
    the loop's edges are is not compiled in.

    Args:
      loop: its edges and arrays may be traced.
      reached: carry and what was shown last; of a loop that begins, anything of the same shapes.
      first: int32 scalar; the loop's first edge begins it.
      end: int32 scalar; the loop does not run beyond its last edge.

    Returns:
      The carry and what was shown last.
    """
    begins, (carry, shown) = jnp.equal(first, loop.edges[0]), reached
    state = jax.tree.map(lambda new, old: jnp.where(begins, new, old), loop.carry, carry), shown
    for body, (begin, stop) in zip(loop.bodies, pairwise(loop.edges), strict=True):
        one = lambda i, state, body=body: body(state[0], jax.tree.map(lambda x: x[i], loop.steps))
        state = lax.fori_loop(jnp.maximum(first, begin), jnp.minimum(end, stop), one, state)
    return state


def padded(course: Any) -> Any:
    """A course with room for as many steps as a power of two, from `ROOM` on; the edges stay.

    Args:
      course: a NamedTuple of numpy arrays with `edges`; arrays of one axis go along the steps.
    """
    steps = int(course.edges[-1])
    more = max(ROOM, 1 << (steps - 1).bit_length()) - steps
    along = lambda x: np.ndim(x) == 1
    longer = {
        name: np.pad(x, (0, more), mode="edge")
        for name, x in course._asdict().items()
        if name != "edges" and along(x)
    }
    return course._replace(**longer)
