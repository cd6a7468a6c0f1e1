"""How loud the signals are that a network adds to each other, read from its program.

Where a quiet signal is added to a loud one and a norm follows, the quiet one is lost. Every sum is
found in the network's jaxpr, so no network has to be prepared for it; what stands side by side
before a matrix (a concatenation) is added by that matrix and counts too.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
from jax.extend import core

from paella_jax import ops
from paella_jax.typing import Array, Key, Tree

FAR_APART = 30.0  # times as loud
JAX, FLAX, OPERATORS = (f"{Path(str(package.__file__)).parent}/" for package in (jax, flax, ops))
# What hands an array on without a change of what it says.
FORMS = ("broadcast_in_dim", "reshape", "convert_element_type", "squeeze", "transpose")


class Sum(NamedTuple):
    """One place where two signals meet.

    Attributes:
      place: modules from the network down, "layer_0/mlp"; empty for the network itself.
      code: the line that does it.
      joins: whether they are put side by side, not added.
      before: root mean square of the left one, which is the stream by custom.
      added: root mean square of the right one.
      share: of what results, see `share_that_differs`; None for one vector per sample.
    """

    place: str
    code: str
    joins: bool
    before: float
    added: float
    share: float | None

    @property
    def ratio(self) -> float:
        """How many times as loud the added signal is; infinite where there was silence."""
        return self.added / self.before if self.before else float("inf")

    @property
    def far_apart(self) -> bool:
        """Whether one all but hides the other. Silence, as of a branch from zero, hides nothing."""
        return min(self.before, self.added) > 0 and not (1 / FAR_APART <= self.ratio <= FAR_APART)


def share_that_differs(x: Array) -> Array:
    """Of a layer-normed stream [batch, ..., channels], the part of its power that varies by place.

    Returns:
      float32 scalar in [0, 1]: variance over positions through mean square.
    """
    x = jnp.asarray(x, jnp.float32)
    x = x.reshape(len(x), -1, x.shape[-1])
    normed = (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-6)
    return normed.var(1).sum() / jnp.square(normed).mean(1).sum()


def sums_at_start(
    init: Callable[[Key], Tree],
    apply: Callable[..., Any],
    inputs: Sequence[Any],
    key: Key,
    first: int | None = None,
) -> list[Sum]:
    """What a network adds to what, with fresh parameters.

    Of a deep network the first sums can be had alone: parameters that they do not need are never
    made, and those that they need start as they do in the whole network.

    Args:
      init: key -> variables.
      apply: (variables, *inputs) -> anything; without loops over layers, whose inside is not seen.
      inputs: of `apply`.
      key: of the parameters.
      first: how many sums, in the order of the program; None is all.
    """
    fresh, variables = jax.make_jaxpr(init, return_shape=True)(key)
    program = jax.make_jaxpr(apply)(variables, *inputs)
    found = _meetings(program.jaxpr)[:first]
    program, read = _only(program, [v for meeting in found for v in meeting.signals])
    count = len(jax.tree.leaves(variables))
    fresh, keyed = _only(fresh, [fresh.jaxpr.outvars[n] for n in read if n < count])
    make, measured = core.jaxpr_as_fun(fresh), core.jaxpr_as_fun(program)

    @jax.jit
    def numbers(key: Key, inputs: tuple[Any, ...]) -> list[Any]:
        given = jax.tree.leaves(inputs)
        values = measured(
            *make(*[key][: len(keyed)]), *(given[n - count] for n in read if n >= count)
        )
        return [_numbers(*values[at : at + 3]) for at in range(0, len(values), 3)]

    results = jax.device_get(numbers(key, tuple(inputs)))
    return [
        Sum(m.place, m.code, m.joins, float(left), float(right), None if x is None else float(x))
        for m, (left, right, x) in zip(found, results, strict=True)
    ]


def _numbers(left: Array, right: Array, result: Array) -> tuple[Array, Array, Array | None]:
    loud = lambda x: jnp.sqrt(jnp.square(x.astype(jnp.float32)).mean())
    return loud(left), loud(right), share_that_differs(result) if result.ndim > 2 else None


class _Meeting(NamedTuple):
    place: str
    code: str
    joins: bool
    signals: tuple[Any, Any, Any]  # variables: left, right, result


def _meetings(jaxpr: Any) -> list[_Meeting]:
    """Sums and concatenations of a program that its own lines make, in their order."""
    made_by = {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name not in ("add", "concatenate"):
            continue
        result = equation.outvars[0]
        joins = equation.primitive.name == "concatenate"
        signals = [v for v in equation.invars if _is_signal(v, result, made_by)]
        if not joins:  # but a single vector beside others is one of them
            signals = [v for v in signals if not _is_bias(v, result, made_by)]
        line = _line(equation) if len(signals) > 1 else None
        if line is None:
            continue
        scopes = str(equation.source_info.name_stack).split("/")[1:]
        place = "/".join(scope for scope in scopes if "." not in scope)  # without methods' names
        found += [
            _Meeting(place, line, joins, (signals[0], other, result)) for other in signals[1:]
        ]
    return found


def _is_signal(variable: Any, result: Any, made_by: dict[Any, Any]) -> bool:
    """Whether it is an array of real numbers, which meets others in an array of vectors."""
    if isinstance(variable, core.Literal) or result.aval.ndim < 2:
        return False
    if variable in made_by and made_by[variable].primitive.name in ("sin", "cos"):
        return False  # one half of an embedding of numbers
    return bool(variable.aval.size) and jnp.issubdtype(variable.aval.dtype, jnp.floating)


def _is_bias(variable: Any, result: Any, made_by: dict[Any, Any]) -> bool:
    """Whether it is one number or vector for all samples and positions."""
    while variable in made_by and made_by[variable].primitive.name in FORMS:
        variable = made_by[variable].invars[0]
        if isinstance(variable, core.Literal):
            return True
    return variable.aval.size <= result.aval.shape[-1]


def _line(equation: Any) -> str | None:
    """The line of code behind an equation; None within an operator or a library's function."""
    for frame in equation.source_info.traceback.frames:
        file = frame.file_name
        if file.startswith((OPERATORS, FLAX)) or (file.startswith(JAX) and "/nn/" in file):
            return None
        if not file.startswith(JAX):
            return linecache.getline(file, frame.line_num).strip().removeprefix("return ")
    return None


def _only(program: Any, wanted: Sequence[Any]) -> tuple[Any, list[int]]:
    """A program cut down to what some of its variables need, and which arguments those are.

    The variables are what it returns.
    """
    needed, kept = set(wanted), []
    for equation in reversed(program.jaxpr.eqns):
        if needed.intersection(equation.outvars):
            kept.append(equation)
            needed |= {v for v in equation.invars if not isinstance(v, core.Literal)}
    arguments = program.jaxpr.invars
    read = [n for n, variable in enumerate(arguments) if variable in needed]
    cut = program.jaxpr.replace(
        eqns=kept[::-1], invars=[arguments[n] for n in read], outvars=list(wanted)
    )
    return program.replace(jaxpr=cut), read
