"""Configurations: loading a file with a preset, overrides, checks, and JSON next to a run.

A config file offers `get_config(preset) -> ConfigDict`. Those that come with the package are chosen
as `NAME:preset` from any directory, others by path as `mine/NAME.py:preset`. They are read by path
and never imported: a folder named `configs` in the working directory changes nothing. Overrides are
`--config.section.field=value`.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from paella_jax.fields.table import is_path, problem
from paella_jax.outside import escaped, parse_object


class UserError(Exception):
    """A mistake of the user's: the message says what is wrong and what to do about it.

    Commands show it as one line without a traceback. Every such error of the package is of a class
    below this one, and of a built-in class as well. Names from outside are escaped in it.
    """

    def __str__(self) -> str:
        return escaped(super().__str__())


class ConfigError(UserError, ValueError):
    """A configuration is wrong; the message names the field, its value and the fix."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint is missing, damaged or of another run; the message names path and reason."""


class WriteError(OSError):
    """What a command made could not be stored; the message says what, why, and what to do.

    Commands show it as one line. No mistake of the user's: trying again may help.
    """


class StoppedAtOnce(KeyboardInterrupt):
    """A second Ctrl-C: nothing is waited for any more."""


class UnknownPreset(ConfigError):
    """A config file has no preset of this name; `known` are those it has."""

    def __init__(self, message: str, known: Iterable[str]) -> None:
        super().__init__(message)
        self.known = list(known)


# Fields that say where images are, and the source that reads them.
IMPLIED = {
    "data.folder": "folder",
    "data.image_file": "one_image",
    "data.shards": "webdataset",
    "data.array_record": "array_record",
    "data.parquet": "parquet",
    "data.tfds": "tfds",
}

REPLACED = ("shapes", "folder")  # sources that presets name, and that give way to what is given

# Beside the package in a checkout, inside of it where the package is installed.
PACKAGE = Path(__file__).resolve().parent
CONFIGS = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"


def load_config(spec: str, overrides: Iterable[str] = ()) -> ConfigDict:
    """Builds the configuration named by `NAME[:preset]` or `path.py[:preset]`, applies overrides.

    Args:
      spec: name of a config that comes with the package, or path of a config file.
      overrides: strings like `--config.optim.learning_rate=1e-4` or `optim.learning_rate=1e-4`.

    Returns:
      A locked ConfigDict.

    Raises:
      ConfigError: no such file or preset, an unknown field, or a value of the wrong type or
        outside of its range.
    """
    path, _, preset = spec.partition(":")
    module = load_module(_config_file(os.path.expanduser(path)))
    config = module.get_config(preset) if preset else module.get_config()
    overrides = list(overrides)
    for override in overrides:
        apply_override(config, override)
    check_fields(config, left_open=True)  # of a user's own file
    _expand_home(config)
    _imply_source(config, {name_of(o) for o in overrides})
    return config.lock()


def _expand_home(config: ConfigDict) -> None:
    """Puts the home folder in the place of ~ in the paths that a config file gives."""
    for name, value in flatten_config(config).items():
        if isinstance(value, str) and value.startswith("~") and is_path(name):
            block, _, last = name.rpartition(".")
            (config[block] if block else config)[last] = os.path.expanduser(value)


def check_fields(config: Mapping[str, Any], left_open: bool = False) -> None:
    """Checks the values of all fields that the package knows.

    Args:
      config: whole.
      left_open: whether any may be None, as presets leave fields to the run they start from.

    Raises:
      ConfigError: naming the first field, its value and its range.
    """
    for name, value in flatten_config(config).items():
        if wrong := problem(name, value, left_open):
            raise ConfigError(wrong)


def name_of(override: str) -> str:
    """The field that an override sets."""
    return override.removeprefix("--").removeprefix("config.").partition("=")[0]


def with_overrides(config: ConfigDict, overrides: Iterable[str]) -> ConfigDict:
    """A copy with other values, given as "a.b=value". Raises ConfigError as `load_config`."""
    config = config.copy_and_resolve_references()
    for override in overrides:
        apply_override(config, f"--config.{override}")
    return config


def _imply_source(config: ConfigDict, given: set[str]) -> None:
    """Images that are given are the data: they take the place of the preset's source."""
    if "data" not in config or "data.source" in given or config.data.get("source") not in REPLACED:
        return
    named = [name for name in IMPLIED if name in given and flatten_config(config)[name]]
    if len(named) > 1:
        raise ConfigError(f"{' and '.join(named)} are given; leave all but one out")
    if named:
        config.data.source = IMPLIED[named[0]]


def _config_file(path: str) -> Path:
    """The file of a config's name or path. Raises ConfigError where there is none."""
    file = Path(path) if path.endswith(".py") else CONFIGS / f"{path}.py"
    if not file.is_file() and file.parent == Path("configs"):
        file = CONFIGS / file.name  # from any directory, as configs/compare.py does
    if not file.is_file():
        known = config_names()
        raise ConfigError(
            f"no config file {path!r}{_close(file.stem, known)}; give a path such as "
            f"configs/paella.py:shapes, or one of {', '.join(known)} as in paella:shapes"
        )
    return file


def config_names() -> list[str]:
    """The configs that come with the package."""
    return sorted(f.stem for f in CONFIGS.glob("*.py") if "def get_config" in f.read_text())


def preset_names() -> dict[str, list[str]]:
    """{config: its presets} of all that come with the package."""
    found = {}
    for name in config_names():
        try:
            load_module(CONFIGS / f"{name}.py").get_config("")
        except UnknownPreset as error:
            found[name] = error.known
    return found


def _close(given: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(given, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def shipped(spec: str) -> str:
    """`configs/NAME.py:preset` -> `NAME:preset` where the package brings a config of that name.

    For specs that a config holds: whatever lies in the working directory does not change them.
    """
    path, _, preset = spec.partition(":")
    file = Path(path)
    own = file.parent == Path("configs") and (CONFIGS / file.name).is_file()
    return f"{file.stem}:{preset}" if own else spec


def choose(file: str, presets: Mapping[str, Any], name: str) -> Any:
    """One of a config file's presets. Raises UnknownPreset listing them where there is no such."""
    if name not in presets:
        raise UnknownPreset(
            f"unknown preset {name!r} of configs/{Path(file).name}{_close(name, presets)}; "
            f"known: {sorted(presets)}",
            presets,
        )
    return presets[name]


def load_module(file: Path) -> ModuleType:
    """Runs a Python file as a module of its own, outside of `sys.modules`."""
    spec = importlib.util.spec_from_file_location(f"paella_config_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sibling(file: str, name: str) -> ModuleType:
    """The config file NAME.py in the folder of `file`, for what several config files share."""
    return load_module(Path(file).resolve().with_name(f"{name}.py"))


def apply_override(config: ConfigDict, override: str) -> None:
    """Sets one field from `--config.a.b=value` or `a.b=value`; the type must match the default's.

    Raises:
      ConfigError: malformed, unknown field (the closest known one is named), wrong type, or a
        value outside of the field's range.
    """
    name, equals, text = override.partition("=")
    if not equals or (name.startswith("-") and not name.startswith("--config.")):
        raise ConfigError(f"unknown argument {override!r}; overrides look like --config.a.b=value")
    path = name_of(override)
    flat = flatten_config(config)
    if path not in flat:
        close = difflib.get_close_matches(path, flat, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known fields: {sorted(flat)}"
        raise ConfigError(f"unknown config field {path!r}; {hint}")
    *parents, last = path.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    value = _parse(path, text, flat[path])
    if wrong := problem(path, value, flat[path] is None):
        raise ConfigError(wrong)
    with node.unlocked():
        node[last] = value


def _parse(path: str, text: str, default: Any) -> Any:
    if isinstance(default, str):  # a shell leaves the ~ of --config.folder=~/x as it is
        return os.path.expanduser(text) if is_path(path) or text.startswith("~/") else text
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


def from_json(text: str | bytes) -> ConfigDict:
    """The inverse of `to_json` (lists become tuples, which is what our configs hold).

    Raises:
      ValueError: it is no JSON object.
    """

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: restore(inner) for name, inner in value.items()}
        return tuple(restore(v) for v in value) if isinstance(value, list) else value

    try:
        return ConfigDict(restore(parse_object(text))).lock()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def differing_fields(old: ConfigDict, new: ConfigDict, ignore: Iterable[str] = ()) -> list[str]:
    """Lines `field: old -> new` for every field that differs, except `ignore` and what is below."""
    before, after = flatten_config(old), flatten_config(new)
    skip = {name.removesuffix(".") for name in ignore}
    ignored = lambda name: any(part in skip for part in _and_above(name))
    return [
        f"{name}: {before.get(name, '(absent)')!r} -> {after.get(name, '(absent)')!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not ignored(name)
    ]


def _and_above(name: str) -> Iterator[str]:
    """A field's name and those of the blocks that it is in."""
    while name:
        yield name
        name = name.rpartition(".")[0]
