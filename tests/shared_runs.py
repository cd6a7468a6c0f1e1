"""Run folders made once per session, whichever of its processes asks first."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable
from pathlib import Path

import small
from ml_collections import ConfigDict

from paella_jax.config import to_json
from paella_jax.registry import build_method
from paella_jax.runs.folder import prepare_workdir
from paella_jax.training.loop import train


class SharedRuns:
    """Folders by name; a test that changes one works on a copy."""

    def __init__(self, base: Path) -> None:
        self.base = base
        base.mkdir(exist_ok=True)

    def trained(self, config: ConfigDict) -> Path:
        """A run of this config, sample grid included, with a random tokenizer where it needs one.

        Tests that ask for the same config get the same folder.
        """
        name = hashlib.sha256(to_json(config).encode()).hexdigest()[:16]
        return self.make(f"{config.method}_{name}", lambda folder: _train(config, folder))

    def make(self, name: str, work: Callable[[Path], None]) -> Path:
        """The folder `name`; `work` fills it if no process of the session has done so yet."""
        folder = self.base / name
        done = self.base / f"{name}.done"
        with (self.base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                folder.mkdir()
                work(folder)
                done.touch()
        return folder


def _train(config: ConfigDict, folder: Path) -> None:
    prepare_workdir(folder, config)
    if config.get("tokenizer") == "":
        small.carry_random_tokenizer(folder)
    with small.devices_shown():
        train(config, folder, build_method(config, folder))
