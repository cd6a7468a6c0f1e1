"""Configs as this package stores them: read, checked, and named in errors about what they say."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ml_collections import ConfigDict

from paella_jax.config import CheckpointError, ConfigError, check_fields, from_json
from paella_jax.files.regular import read_regular
from paella_jax.outside import shortened

CONFIG = "config.json"


def read_stored_config(file: Path) -> ConfigDict:
    """A config as this package stores it, each of its fields in its range.

    Raises:
      CheckpointError: the file cannot be read, is no JSON object, or has a value that no run has.
    """
    try:
        config = from_json(read_regular(file))
        check_fields(config, left_open=True)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); restore it from a copy") from error
    return config


@contextmanager
def stored_config_named(workdir: str | Path) -> Iterator[None]:
    """Names the run whose stored config lacks a field that it was read for, or contradicts itself.

    Raises:
      CheckpointError: in place of what ConfigDict raises; ConfigError: with the file's name.
    """
    try:
        yield
    except ConfigError as error:
        if str(workdir) in str(error):
            raise
        raise ConfigError(f"{Path(workdir) / CONFIG}: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        wrong = _lacking(error) or _foreign(error)
        if not wrong:
            raise
        raise CheckpointError(
            f"{Path(workdir) / CONFIG}, or a config in {workdir}/frozen, {wrong}; restore it from "
            "a copy"
        ) from error


def _lacking(error: Exception) -> str:
    """What is wrong where a ConfigDict was asked for a field that it does not have."""
    frames = traceback.extract_tb(error.__traceback__)
    is_of_config = frames and "ml_collections" in frames[-1].filename
    field = shortened(str(error).strip("\"'"))
    return f"lacks the field {field}" if is_of_config and not isinstance(error, TypeError) else ""


def _foreign(error: Exception) -> str:
    """What is wrong where a network was made with a field that it does not have."""
    _, mark, name = str(error).partition("got an unexpected keyword argument ")
    return f"has the field {shortened(name)}, which its network does not know" if mark else ""
