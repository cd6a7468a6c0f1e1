"""The same work by other programs, from a user's Python file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from paella_jax.config import ConfigError


class Peer(NamedTuple):
    """What a file offers.

    Attributes:
      name: of the file, without its ending.
      make: (config, work, images) -> a function without arguments that does the work once and
        waits for it, or None for work that it does not have.
    """

    name: str
    make: Callable[[ConfigDict, str, int], Callable[[], Any] | None]


def load_peer(file: str) -> Peer:
    """Reads a peer's file. Raises ConfigError where it is not there or has no `make`."""
    path = Path(file)
    if not path.is_file():
        raise ConfigError(
            f"--peer {file} is not there: give a Python file with make(config, work, images)"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise ConfigError(f"--peer {file} needs what is not installed: {error}") from error
    if not callable(getattr(module, "make", None)):
        raise ConfigError(f"--peer {file} has no make(config, work, images)")
    return Peer(path.stem, module.make)


def call_of(peer: Peer, config: ConfigDict, work: str, images: int) -> Callable[[], Any] | None:
    """A peer's function for some work of a preset; None where it has none."""
    return peer.make(config, work, images)
