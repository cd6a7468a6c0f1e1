"""Which fields a stored config may have: those of the configs that come with the package.

A field that no config has was mistyped, or is of a newer version: what it asks for would not be
done. Looking takes a twentieth of a second and is done where this version did not write the file.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from typing import Any

from paella_jax.config import (
    CONFIGS,
    UnknownPreset,
    config_names,
    flatten_config,
    load_module,
)


def unknown_fields(config: Mapping[str, Any]) -> list[str]:
    """Fields that no config of the package has, with what was probably meant.

    The block of a network or a method of the user's own has its name, and passes.
    """
    cell = config.get("cell")
    own = {config.get("method"), cell.get("network") if isinstance(cell, Mapping) else None}
    known, found = _known(), []
    for name in flatten_config(config):
        if name in known or name.partition(".")[0] in own:
            continue
        close = difflib.get_close_matches(name, known, 1)
        found.append(f"{name} (did you mean {close[0]}?)" if close else name)
    return found


@cache
def _known() -> frozenset[str]:
    names: set[str] = set()
    for config in config_names():
        module = load_module(CONFIGS / f"{config}.py")
        try:
            found = module.get_config()
        except (TypeError, UnknownPreset):
            found = module.get_config(_first_preset(module))
        names |= set(flatten_config(found))
    return frozenset(names)


def _first_preset(module: Any) -> str:
    try:
        module.get_config("")
    except UnknownPreset as error:
        return error.known[0]
    return ""
