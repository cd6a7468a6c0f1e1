"""Renaming and re-laying-out tensors between PyTorch state dicts and our parameter trees.

A model's table is a list of `Entry`: one PyTorch tensor name, the path of the same tensor in our
nested dict, and how its axes move. Both directions read the same table, so a round trip is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paella_jax.config import UserError

# PyTorch axis order -> ours (`transpose` axes). A 1x1 convolution is stored as a matrix by us.
LAYOUTS: dict[str, tuple[int, ...]] = {
    "linear": (1, 0),  # [out, in] -> [in, out]
    # [out, in, k, k] -> [k, k, in, out]; depthwise too (in = inputs per group)
    "conv": (2, 3, 1, 0),
    "conv_transpose": (2, 3, 0, 1),  # [in, out, k, k] -> [k, k, in, out]
}


class ConversionError(UserError, ValueError):
    """A state dict does not fit: every missing, unknown and misshapen tensor is listed."""


class Weights(dict[str, np.ndarray]):
    """Tensors of a weights file by name, memory-mapped: nothing is read before it is used.

    Attributes:
      source: one line on what kind of file it was and where in it the tensors were.
      files: the files they come from.
      entries: of a torch file that is a dict of several things: those that hold weights.
    """

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        source: str,
        files: Iterable[Path] = (),
        entries: Iterable[str] = (),
    ) -> None:
        super().__init__(tensors)
        self.source = source
        self.files = tuple(files)
        self.entries = tuple(entries)


class Entry(NamedTuple):
    """One tensor: its PyTorch name, our path, and its layout.

    `layout` is a key of LAYOUTS, "same" (copied as it is), "conv1x1" ([out, in, 1, 1] <->
    [in, out]) or "channel" ([1, 1, 1, C] <-> [C]).
    """

    name: str
    path: tuple[str, ...]
    layout: str = "same"


def to_ours(array: np.ndarray, layout: str) -> np.ndarray:
    """Moves one PyTorch tensor into our layout."""
    if layout == "same":
        return array
    if layout == "conv1x1":
        return array[:, :, 0, 0].T
    if layout == "channel":
        return array.reshape(-1)
    return array.transpose(LAYOUTS[layout])


def to_theirs(array: np.ndarray, layout: str) -> np.ndarray:
    """The inverse of `to_ours`."""
    if layout == "same":
        return array
    if layout == "conv1x1":
        return array.T[:, :, None, None]
    if layout == "channel":
        return array.reshape(1, 1, 1, -1)
    return array.transpose(np.argsort(LAYOUTS[layout]))


def _their_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    return to_theirs(np.broadcast_to(np.float32(0), shape), layout).shape


def flatten(tree: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """A nested dict as {path: leaf}."""
    flat: dict[tuple[str, ...], Any] = {}
    for key, value in tree.items():
        path = (*prefix, key)
        flat.update(flatten(value, path) if isinstance(value, Mapping) else {path: value})
    return flat


def unflatten(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree


def import_tensors(
    entries: Iterable[Entry],
    tensors: Mapping[str, np.ndarray],
    expected: Mapping[str, Any],
    *,
    ignore: Iterable[str] = (),
) -> dict[str, Any]:
    """PyTorch tensors -> our nested parameter dict.

    Only views are made: memory-mapped tensors stay on disk, and a misfit is found by name, shape
    and dtype before any of them is read.

    Args:
      entries: the model's table.
      tensors: PyTorch name -> array, in PyTorch layout.
      expected: our parameter tree (arrays or `jax.ShapeDtypeStruct`), the shapes to check against.
      ignore: PyTorch names that may be present and are dropped (e.g. `num_batches_tracked`).

    Raises:
      ConversionError: listing every missing, unknown and misshapen tensor at once.
    """
    entries = list(entries)
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(expected).items()}
    known, paths = {e.name for e in entries} | set(ignore), {e.path for e in entries}
    problems = [f"unknown tensor {name}" for name in tensors if name not in known]
    problems += [
        f"no tensor maps to our parameter {'/'.join(path)}" for path in shapes if path not in paths
    ]
    flat = {}
    for entry in entries:
        if entry.path not in shapes:
            problems.append(f"our model has no parameter {'/'.join(entry.path)} (for {entry.name})")
        elif entry.name not in tensors:
            problems.append(f"missing tensor {entry.name}")
        else:
            wanted = _their_shape(shapes[entry.path], entry.layout)
            array = np.asarray(tensors[entry.name])
            if array.shape != wanted:
                problems.append(f"{entry.name} has shape {array.shape}, the model needs {wanted}")
            elif array.dtype.kind in "biu":
                problems.append(f"{entry.name} has dtype {array.dtype}, which is no weight's")
            else:
                flat[entry.path] = to_ours(array, entry.layout)
    if problems:
        raise ConversionError(
            f"the weights do not fit this model ({len(problems)} problems); check that the file "
            "and the model config belong together:\n  " + "\n  ".join(problems)
        )
    return unflatten(flat)


def export_tensors(
    entries: Iterable[Entry], params: Mapping[str, Any], copy: bool = True
) -> dict[str, np.ndarray]:
    """Our nested parameter dict -> PyTorch tensors by name, in PyTorch layout.

    They are contiguous copies, as `safetensors.numpy.save_file` needs them; with `copy=False`
    transposed views, so that a large model is not in memory twice.
    """
    flat = flatten(params)
    views = {e.name: to_theirs(np.asarray(flat[e.path]), e.layout) for e in entries}
    return {name: np.ascontiguousarray(view) for name, view in views.items()} if copy else views
