"""Configs as this package stores them: read, checked, and named in errors about what they say."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ml_collections import ConfigDict

from paella_jax.config import CheckpointError, ConfigError, check_fields, from_json

CONFIG = "config.json"


def read_stored_config(file: Path) -> ConfigDict:
    """A config as this package stores it, each of its fields in its range.

    Raises:
      CheckpointError: the file cannot be read, is no JSON object, or has a value that no run has.
    """
    try:
        config = from_json(file.read_bytes())
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
    except (AttributeError, KeyError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not frames or "ml_collections" not in frames[-1].filename:
            raise
        field = str(error).strip("\"'")
        raise CheckpointError(
            f"{Path(workdir) / CONFIG}, or a config in {workdir}/frozen, lacks the field "
            f"{field}; restore it from a copy"
        ) from error
