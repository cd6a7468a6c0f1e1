"""Weights held in the type that they are used in.

Parameters are float32 and a network that computes in bfloat16 rounds most of them at every use.
What is only ever read that way can be rounded once, when it is loaded: the same numbers from half
of the memory, and no rounding in a sampler's loop. Norms' scales and the like, which are read as
they are, stay. Which are which is read from the program, so that no layer needs to say so; but a
layer must not ask for a weight's type to choose another array's, as `x.astype(weight.dtype)` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.dtypes import issubdtype

from paella_jax.typing import Tree

# Operations that hand numbers on as they are.
MOVES = frozenset({"reshape", "squeeze", "slice", "dynamic_slice", "transpose", "broadcast_in_dim",
                   "concatenate", "stack", "unstack", "rev", "copy", "copy_p", "split",
                   "expand_dims", "gather", "sharding_constraint"})  # fmt: skip
UNREAD = None  # of an array that nothing reads


def holds_narrow(precision: str) -> bool:
    """Whether a pipeline's device holds narrowed weights, beside whole ones on the host.

    On CPU there is one memory for both, and rounding at every use costs least of it.
    """
    return precision != "float32" and jax.default_backend() != "cpu"


def narrow(weights: Tree, *readers: tuple[Callable[..., Any], tuple[Any, ...]]) -> Tree:
    """The weights, each in the type that all of its readers round it to.

    Args:
      weights: of arrays, or of their shapes.
      *readers: functions (weights, *arguments) and their arguments, of which shapes are enough.

    Returns:
      The same tree, of arrays where it held arrays.
    """
    leaves, tree = jax.tree.flatten(weights)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), weights)
    types: list[Any] = [UNREAD] * len(leaves)
    for function, arguments in readers:
        traced = jax.make_jaxpr(function)(shapes, *arguments).jaxpr
        outputs = [_own(x) for x in traced.outvars]
        read = _read_as(traced, outputs)[: len(leaves)]
        types = [_widest(a, b, x.dtype) for a, b, x in zip(types, read, leaves, strict=True)]
    held = [_as(x, kind) for x, kind in zip(leaves, types, strict=True)]
    return jax.tree.unflatten(tree, held)


def _as(x: Any, dtype: Any) -> Any:
    if dtype is UNREAD or dtype == x.dtype:
        return x
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)
    return x.astype(dtype)


def _own(variable: Any) -> Any:
    return getattr(variable.aval, "dtype", UNREAD)


def _widest(first: Any, second: Any, own: Any) -> Any:
    """The type that serves both readers; the array's own where they differ."""
    if UNREAD in (first, second):
        return second if first is UNREAD else first
    return first if first == second else own


def _read_as(jaxpr: Any, outputs: Sequence[Any]) -> list[Any]:
    """In which type each input of a program is read, given the same of its outputs."""
    read: dict[Any, Any] = {}

    def note(variable: Any, kind: Any) -> None:
        if hasattr(variable, "count") or not hasattr(variable, "val"):  # no literal
            read[variable] = _widest(read.get(variable), kind, _own(variable))

    for variable, kind in zip(jaxpr.outvars, outputs, strict=True):
        note(variable, kind)
    for equation in reversed(jaxpr.eqns):
        after = [read.get(x) for x in equation.outvars]
        for variable, kind in zip(equation.invars, _inputs_of(equation, after), strict=True):
            note(variable, kind)
    return [read.get(x) for x in jaxpr.invars]


def _inputs_of(equation: Any, after: list[Any]) -> list[Any]:
    """In which type an operation reads each of its inputs; unread results change nothing."""
    name, params, inputs = equation.primitive.name, equation.params, equation.invars
    own = [_own(x) for x in inputs]
    if all(kind is UNREAD for kind in after) and not equation.effects:
        return [UNREAD] * len(inputs)
    if name == "convert_element_type":
        return [_rounded(own[0], params["new_dtype"])]
    if name in MOVES:
        kinds = [kind for kind in after if kind is not UNREAD]
        wanted = kinds[0] if len(set(kinds)) == 1 else own[0]
        return [wanted if issubdtype(kind, jnp.floating) else kind for kind in own]
    if name == "scan":
        body = params["jaxpr"].jaxpr
        read = _read_as(body, [_own(x) for x in body.outvars])
        carried = _alike(equation.outvars, body.outvars)
        end = _alike(inputs, body.invars)  # behind it, what is scanned over
        return [*read[: end - carried], *own[end - carried : end], *read[end:]]
    if name == "while":
        conditions, body = params["cond_nconsts"], params["body_jaxpr"].jaxpr
        read = _read_as(body, [_own(x) for x in body.outvars])[: params["body_nconsts"]]
        return [*own[:conditions], *read, *own[conditions + len(read) :]]
    if name == "cond":
        every = [_read_as(branch.jaxpr, after) for branch in params["branches"]]
        return [own[0], *(_of_branches(kinds) for kinds in zip(*every, own[1:], strict=True))]
    program = _called(params)
    if program is not None and len(program.invars) == len(inputs):
        return _read_as(program, after)
    return own


def _alike(outer: Sequence[Any], inner: Sequence[Any]) -> int:
    """How many of a loop's variables have no axis more outside of it than inside."""
    return sum(a.aval.ndim == b.aval.ndim for a, b in zip(outer, inner, strict=True))


def _of_branches(kinds: tuple[Any, ...]) -> Any:
    result: Any = UNREAD
    for kind in kinds[:-1]:
        result = _widest(result, kind, kinds[-1])
    return result


def _rounded(before: Any, after: Any) -> Any:
    """What a conversion reads: the narrower type where it rounds, else what there is."""
    floats = issubdtype(before, jnp.floating) and issubdtype(after, jnp.floating)
    return after if floats and jnp.dtype(after).itemsize < jnp.dtype(before).itemsize else before


def _called(params: dict[str, Any]) -> Any:
    """The program of a call: of jit, checkpoint, custom_jvp, custom_vjp."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in params:
            return getattr(params[name], "jaxpr", params[name])
    return None
