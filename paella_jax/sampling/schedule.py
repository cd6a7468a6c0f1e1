"""Settings of a sampler, checked and spread over its steps before anything is compiled."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


def linear_ramp(start: float, end: float, count: int) -> np.ndarray:
    """float32 [count] from `start` to `end` inclusive, with torch.linspace's rounding.

    torch counts up from the start in the first half and down from the end in the second. A
    different last bit of t moves the timestep embedding by up to 1e-3 (angles reach 10 000).
    """
    first, last = np.float32(start), np.float32(end)
    if count == 1:
        return np.array([first])
    step = np.float32((last - first) / np.float32(count - 1))
    index = np.arange(count, dtype=np.float32)
    rising = first + step * index
    falling = last - step * (np.float32(count - 1) - index)
    return np.where(np.arange(count) < count // 2, rising, falling).astype(np.float32)


NUMBER_OR_PAIR = "{name}={value!r} must be one number or a (first, last) pair"


def first_and_last(name: str, value: Any, refusal: str = NUMBER_OR_PAIR) -> tuple[float, float]:
    """The two ends of a setting's ramp, from one number, which stands for both, or from a pair.

    Raises:
      ValueError: `refusal`, for a sequence of another length, or what is no number.
    """
    pair = value if isinstance(value, tuple | list) else (value, value)
    try:
        if len(pair) != 2 or not all(_is("float", x) for x in pair):
            raise TypeError
        return float(pair[0]), float(pair[1])
    except TypeError:
        raise ValueError(refusal.format(name=name, value=value)) from None


def require(ok: bool, settings: Any, name: str, wanted: object) -> None:
    """Raises ValueError naming a field of `settings` and its value, unless `ok`."""
    if not ok:
        value = getattr(settings, name)
        raise ValueError(f"{settings.named}{name}={value!r} must be {wanted}")


# The types that a setting's annotation may name, in words.
IN_WORDS = {"int": "a whole number", "float": "a number", "str": "a text", "None": "None"}


def check_types(settings: Any) -> None:
    """Raises ValueError naming the first setting of another type than its field says.

    Fields of types that `IN_WORDS` does not name are left to others.
    """
    for field in dataclasses.fields(settings):
        kinds = str(field.type).split(" | ")
        if set(kinds) <= set(IN_WORDS):
            right = any(_is(kind, getattr(settings, field.name)) for kind in kinds)
            require(right, settings, field.name, " or ".join(IN_WORDS[kind] for kind in kinds))


def _is(kind: str, value: object) -> bool:
    """Whether a value is of a type by name; True and False are no numbers."""
    types: dict[str, Any] = {
        "int": int | np.integer,
        "float": int | float | np.number,
        "str": str,
        "None": type(None),
    }
    return isinstance(value, types[kind]) and not isinstance(value, bool)
