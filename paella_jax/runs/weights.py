"""Parameter trees as one safetensors file: frozen networks and converted weights of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from paella_jax.files.digests import Version, version
from paella_jax.files.finite import describe_not_finite
from paella_jax.files.safetensors_file import (
    differing_tensors,
    map_safetensors,
    write_safetensors,
)
from paella_jax.files.tensors import ConversionError
from paella_jax.runs.folder import CheckpointError
from paella_jax.typing import Tree

_checked: dict[Version, bool] = {}  # files -> whether they have digests


def save_tree(file: Path, tree: Mapping[str, Any]) -> None:
    """Writes a nested dict of arrays and their digests; it appears whole or not at all.

    Raises:
      ConversionError: an array holds NaN or infinity; it is named.
    """
    flat = {n: np.asarray(x) for n, x in flatten_dict(dict(tree), sep="/").items()}
    write_safetensors(file, flat, digests=True)


def load_tree(file: Path, shardings: Tree = None) -> dict[str, Any]:
    """The inverse of `save_tree`.

    Args:
      file: its path.
      shardings: a sharding per leaf of the same tree. Every device then reads only its own part
        of each array, so that no host ever holds the whole tree.

    Returns:
      Read-only numpy views of the memory-mapped file, or jax arrays where `shardings` is given.

    Raises:
      CheckpointError: the file is missing, an array of it is not what was written or not finite,
        or `shardings` is of another tree.
    """
    if not file.is_file():
        raise CheckpointError(f"missing weights file {file}; the run folder is incomplete")
    try:
        flat = map_safetensors(file)
        check_arrays(file)
    except ConversionError as error:
        raise CheckpointError(
            f"{file} is damaged or cut off ({error}); copy the run folder again"
        ) from error
    if shardings is None:
        return unflatten_dict(flat, sep="/")
    wanted = flatten_dict(shardings, sep="/")
    if wanted.keys() != flat.keys():
        differing = ", ".join(sorted(wanted.keys() ^ flat.keys())[:5])
        raise CheckpointError(f"{file} and the shardings name different arrays: {differing}, ...")
    return unflatten_dict({n: _place(x, wanted[n]) for n, x in flat.items()}, sep="/")


def check_arrays(file: Path) -> bool:
    """Compares a weights file's arrays with their digests, once until it changes.

    Returns:
      Whether it has digests; older ones have none.

    Raises:
      CheckpointError: arrays are not what was written, or hold NaN or infinity; they are named.
      ConversionError: it is no safetensors file.
    """
    key = version(file)
    if key not in _checked:
        damaged = differing_tensors(file)
        if damaged:
            shown = ", ".join(damaged[:5]) + (", ..." if len(damaged) > 5 else "")
            raise CheckpointError(
                f"{file} is damaged: {shown} {'is' if len(damaged) == 1 else 'are'} not what was "
                "written (another SHA-256 digest); copy the run folder again"
            )
        if named := describe_not_finite(map_safetensors(file)):
            raise CheckpointError(
                f"{file} holds NaN or infinity in {named}, and was written so; use weights from "
                "before that"
            )
        _checked[key] = damaged is not None
    return _checked[key]


def _place(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
