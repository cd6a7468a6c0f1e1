"""One file of original names that comes back whole.

What a run trained that the published network does not have, as a text encoder or layers for class
labels, has names of ours that begin with `paella_jax.`; the config is a note in the file's header.
A run without such things gives a file with exactly the published names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from paella_jax.config import from_json, to_json
from paella_jax.files.tensors import ConversionError, Names, Weights
from paella_jax.sharing.portable import portable
from paella_jax.typing import Tensors, Tree

NOTE = "paella_jax"  # in the header
PREFIX = f"{NOTE}."
ORIGIN = "its own config"  # where a value is from


def divide(tree: Tree, names: Names, module: Any) -> tuple[Tree, Tree]:
    """A network's parameters that have published names, and the others."""
    flat, known = flatten_dict(dict(tree)), {entry.path for entry in names.table(module)}
    published = {path: array for path, array in flat.items() if path in known}
    others = {path: array for path, array in flat.items() if path not in known}
    return unflatten_dict(published), unflatten_dict(others)


def unpublished(params: Mapping[str, Tree]) -> Tensors:
    """Parameters under our names."""
    flat = flatten_dict(dict(params), sep="/")
    return {f"{PREFIX}{path}": np.asarray(array) for path, array in flat.items()}


def joined_trees(first: Tree, second: Tree) -> Tree:
    """Two trees without a leaf in common as one."""
    return unflatten_dict(flatten_dict(dict(first)) | flatten_dict(dict(second)))


def notes_of(config: ConfigDict) -> dict[str, str]:
    """What the header says of a run: its config, without the folders of this machine."""
    return {NOTE: to_json(portable(config))}


def config_of(weights: Weights) -> ConfigDict | None:
    """The config that a file of ours brings; None for others.

    Raises:
      ConversionError: it is damaged.
    """
    if NOTE not in weights.notes:
        return None
    try:
        config = from_json(weights.notes[NOTE])
        if "method" not in config:
            raise ValueError("it names no method")
    except ValueError as error:
        raise ConversionError(
            f"{weights.files[0]}: the config in its header is damaged; export it again"
        ) from error
    return config.unlock()


def split(weights: Weights) -> tuple[Weights, Tree]:
    """A file's published tensors, and the parameters that have none of their names."""
    own = {name: array for name, array in weights.items() if name.startswith(PREFIX)}
    published = {name: array for name, array in weights.items() if name not in own}
    beside = unflatten_dict({n.removeprefix(PREFIX): x for n, x in own.items()}, sep="/")
    kept = Weights(published, weights.source, weights.files, weights.entries, weights.notes)
    return kept, beside
