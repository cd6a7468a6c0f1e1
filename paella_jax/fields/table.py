"""All fields of all configs: looked up, checked, and shown as `--help` shows them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from paella_jax.fields.comparison import COMPARISON
from paella_jax.fields.kinds import Field, wrong
from paella_jax.fields.networks import MODEL, NETWORKS, OBJECTIVES, SAMPLERS
from paella_jax.fields.training import AROUND, DATA, OPTIM, RUN, TEXTS
from paella_jax.outside import shortened

COMMON: dict[str, Field] = {**RUN, **DATA, **OPTIM, **AROUND}
FIELDS: dict[str, Field] = {
    **COMMON, **TEXTS, **MODEL, **NETWORKS, **OBJECTIVES, **SAMPLERS, **COMPARISON
}  # fmt: skip
WIDTH, NAME, VALUE = 110, 30, 14  # letters of a line, and of its first columns


def problem(name: str, value: Any, left_open: bool = False) -> str:
    """What is wrong with a field's value, in words; empty for nothing and for unknown fields.

    Args:
      name: as "optim.beta1".
      value: of it.
      left_open: whether it may be None, as presets leave fields to the run they start from.
    """
    field = FIELDS.get(name)
    if field is None or (value is None and (left_open or field.none)):
        return ""
    if value is not None and not wrong(field, value):
        return ""
    shown = shortened(repr(value))
    return f"config field {name} must be {field.range}, got {shown} ({field.meaning})"


def is_path(name: str) -> bool:
    """Whether a field is a file or folder."""
    return name in FIELDS and FIELDS[name].is_path


def described(values: Mapping[str, Any]) -> list[str]:
    """A line for each field: name, value, range and meaning; longer meanings take two lines.

    Args:
      values: of the fields to show; those that the table does not have are shown by value alone.
    """
    return [line for name, value in values.items() for line in _row(name, value)]


def _row(name: str, value: Any) -> list[str]:
    field = FIELDS.get(name)
    shown = shortened(repr(value), VALUE + 20) if value != "" else ""
    start = f"  {name:{NAME}} {shown:{VALUE}} "
    if field is None:
        return [start.rstrip()]
    rest = f"{field.range}: {field.meaning}"
    lines = textwrap.wrap(rest, WIDTH - NAME - VALUE - 4)
    return [start + lines[0], *(" " * (NAME + VALUE + 4) + line for line in lines[1:])]
