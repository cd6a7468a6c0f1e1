"""Sizes that a foreign config.json gives a network, checked before one is made of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from paella_jax.files.tensors import ConversionError
from paella_jax.outside import shortened

LARGEST = 2**24  # of any size; vocabularies have some hundred thousand
DEEPEST = 512  # layers and the like
DEEP = ("layers", "depth", "blocks")  # words of their fields
LONGEST = 64  # entries of one value per level

Module = TypeVar("Module")


def checked(module: Module) -> Module:
    """The module, if its fields are of the types it names and of sizes that a network can have.

    Raises:
      ConversionError: naming the first field that is not.
    """
    for field in dataclasses.fields(module):  # type: ignore[arg-type]
        value, kind = getattr(module, field.name, None), str(field.type)
        if value is None and kind.endswith("| None"):
            continue
        fits = KINDS.get(kind.removesuffix(" | None"))
        if fits is not None and not fits(value, DEEPEST if _is_deep(field.name) else LARGEST):
            raise ConversionError(
                f"{field.name} cannot be {shortened(repr(value))}, as it is there"
            )
    return module


@contextmanager
def network_of(what: str) -> Iterator[None]:
    """Turns whatever making a network of foreign sizes raises into a ConversionError.

    flax, jax and numpy raise nearly anything at sizes that do not go together.
    """
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        reason = shortened(error) or type(error).__name__
        raise ConversionError(f"{what} describes no network that can be built: {reason}") from error


def _is_deep(name: str) -> bool:
    return any(word in name for word in DEEP)


def _is_whole(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_number(value: Any, _: int) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= LARGEST


def _is_text(value: Any, _: int) -> bool:
    return isinstance(value, str)


def _is_truth(value: Any, _: int) -> bool:
    return isinstance(value, bool)


def _each(fits: Callable[[Any, int], bool]) -> Callable[[Any, int], bool]:
    def all_fit(value: Any, most: int) -> bool:
        is_row = isinstance(value, tuple | list) and len(value) <= LONGEST
        return is_row and all(fits(part, most) for part in value)

    return all_fit


KINDS: dict[str, Callable[[Any, int], bool]] = {
    "int": _is_whole, "float": _is_number, "str": _is_text, "bool": _is_truth,
    "tuple[int, ...]": _each(_is_whole), "tuple[bool, ...]": _each(_is_truth),
    "tuple[str, ...]": _each(_is_text),
}  # fmt: skip
