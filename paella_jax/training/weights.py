"""Parameter trees as one safetensors file: how a run carries its frozen networks with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from paella_jax.training.checkpoint import CheckpointError


def save_tree(file: Path, tree: Mapping[str, Any]) -> None:
    """Writes a nested dict of arrays; the file appears whole or not at all."""
    flat = {name: np.ascontiguousarray(x) for name, x in flatten_dict(dict(tree), sep="/").items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    save_file(flat, part)
    part.replace(file)


def load_tree(file: Path) -> dict[str, Any]:
    """The inverse of `save_tree`.

    Raises:
      CheckpointError: the file is missing or damaged.
    """
    if not file.is_file():
        raise CheckpointError(f"missing weights file {file}; the run folder is incomplete")
    try:
        return unflatten_dict(load_file(file), sep="/")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is damaged or cut off ({error}); copy the run folder again"
        ) from error
