"""A CLIP model's folder, carried along by the runs that use it."""

from __future__ import annotations

import shutil
from pathlib import Path

from paella_jax.config import ConfigError


def carry_clip(source: str, target: Path) -> None:
    """Copies a CLIP folder's config, weights and tokenizer; the copy appears whole or not at all.

    Raises:
      ConfigError: no such folder.
    """
    folder = Path(source)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{source} is not a model folder (no config.json)")
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for pattern in ("*.json", "*.safetensors", "*.txt"):
        for file in folder.glob(pattern):
            shutil.copy(file, part / file.name)
    part.replace(target)
