"""Configurations: loading a file with a preset, overrides, checks, and JSON next to a run.

A config file is `configs/NAME.py`, chosen as `configs/NAME.py:preset`; it offers
`get_config(preset) -> ConfigDict`. Overrides are `--config.section.field=value`.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict


class ConfigError(ValueError):
    """A configuration is wrong; the message names the field, its value and the fix."""


def load_config(spec: str, overrides: Iterable[str] = ()) -> ConfigDict:
    """Builds the configuration named by `path.py[:preset]` and applies overrides.

    Args:
      spec: path of a config file, optionally followed by `:preset`.
      overrides: strings like `--config.optim.learning_rate=1e-4` (the dashes may be left out).

    Returns:
      A locked ConfigDict.

    Raises:
      ConfigError: no such file or preset, an unknown field, or a value of the wrong type.
    """
    path, _, preset = spec.partition(":")
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"no config file {path!r}; give a path such as configs/paella.py:shapes")
    module_spec = importlib.util.spec_from_file_location(f"paella_config_{file.stem}", file)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    config = module.get_config(preset) if preset else module.get_config()
    for override in overrides:
        apply_override(config, override)
    return config.lock()


def apply_override(config: ConfigDict, override: str) -> None:
    """Sets one field from `--config.a.b=value`; the type must match the default's.

    Raises:
      ConfigError: malformed, unknown field (the closest known one is named), or wrong type.
    """
    name, equals, text = override.removeprefix("--").partition("=")
    if not name.startswith("config.") or not equals:
        raise ConfigError(f"unknown argument {override!r}; overrides look like --config.a.b=value")
    path = name.removeprefix("config.")
    flat = flatten_config(config)
    if path not in flat:
        close = difflib.get_close_matches(path, flat, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known fields: {sorted(flat)}"
        raise ConfigError(f"unknown config field {path!r}; {hint}")
    *parents, last = path.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    with node.unlocked():
        node[last] = _parse(path, text, flat[path])


def _parse(path: str, text: str, default: Any) -> Any:
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(default, tuple) and isinstance(value, list):
        value = tuple(value)
    fits = default is None or value is None or type(value) is type(default)
    if not fits:
        kind = type(default).__name__
        raise ConfigError(
            f"config field {path} must be of type {kind} like {default!r}, got {text!r}"
        )
    return value


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"section.field": value} of every leaf."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict | dict):
            flat.update(flatten_config(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def to_json(config: ConfigDict) -> str:
    """The configuration as JSON text; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str) -> ConfigDict:
    """The inverse of `to_json` (lists become tuples, which is what our configs hold)."""

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: restore(inner) for name, inner in value.items()}
        return tuple(restore(v) for v in value) if isinstance(value, list) else value

    return ConfigDict(restore(json.loads(text))).lock()


def differing_fields(old: ConfigDict, new: ConfigDict, ignore: Iterable[str] = ()) -> list[str]:
    """Lines `field: old -> new` for every field that differs, except below `ignore` prefixes."""
    before, after = flatten_config(old), flatten_config(new)
    skip = tuple(ignore)
    return [
        f"{name}: {before.get(name, '(absent)')!r} -> {after.get(name, '(absent)')!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not name.startswith(skip)
    ]
