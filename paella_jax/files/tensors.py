"""Renaming and re-laying-out tensors between PyTorch state dicts and our parameter trees.

A model's table is a list of `Entry`: one PyTorch tensor name, the path of the same tensor in our
nested dict, and how its axes move. Both directions read the same table, so a round trip is exact.
`Names` is what a network's tensors need in both directions: the table, and the module's shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from paella_jax.config import UserError
from paella_jax.typing import Tensors, Tree

# Layout -> how the axes move: from PyTorch's to ours, and back.
Move = Callable[[np.ndarray], np.ndarray]
LAYOUTS: dict[str, tuple[Move, Move]] = {
    "same": (lambda x: x, lambda x: x),
    "linear": (lambda x: x.T, lambda x: x.T),  # [out, in] -> [in, out]
    # [out, in, k, k] -> [k, k, in, out]; depthwise too (in = inputs per group)
    "conv": (lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
    # [in, out, k, k] -> [k, k, in, out]
    "conv_transpose": (lambda x: x.transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1)),
    # A 1x1 convolution is stored as a matrix by us: [out, in, 1, 1] -> [in, out].
    "conv1x1": (lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]),
    "channel": (lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, 1, -1)),  # [1, 1, 1, C] -> [C]
}
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # diffusers' layers
COUNTER = "num_batches_tracked"  # of torch's BatchNorm; nothing reads it


class ConversionError(UserError, ValueError):
    """A state dict does not fit: every missing, unknown and misshapen tensor is listed."""


class Weights(dict[str, np.ndarray]):
    """Tensors of a weights file by name, memory-mapped: nothing is read before it is used."""

    def __init__(
        self,
        tensors: Tensors,
        source: str,  # one line on what kind of file it was and where in it the tensors were
        files: Iterable[Path] = (),  # that they come from
        entries: Iterable[str] = (),  # of a torch file of several things: those that hold weights
        notes: Mapping[str, str] | None = None,  # texts in a safetensors file's header
    ) -> None:
        super().__init__(tensors)
        self.notes = dict(notes or {})
        self.source, self.files, self.entries = source, tuple(files), tuple(entries)


class Entry(NamedTuple):
    """One tensor: its PyTorch name, our path, and its layout, a key of LAYOUTS.

    `part` (i, n) says that the tensor is piece i of n equal pieces of our parameter, along our last
    axis.
    """

    name: str
    path: tuple[str, ...]
    layout: str = "same"
    part: tuple[int, int] = (0, 1)


def linear(
    name: str, *path: str, bias: bool = True, layout: str = "linear", leaf: str = "kernel"
) -> list[Entry]:
    """A linear layer or convolution: weight, and bias where it has one."""
    weight = Entry(f"{name}.weight", (*path, leaf), layout)
    return [weight, Entry(f"{name}.bias", (*path, leaf.replace("kernel", "bias")))][: 1 + bias]


def norm(name: str, *path: str, bias: bool = True) -> list[Entry]:
    """A norm: scale, and bias where it has one."""
    scale = Entry(f"{name}.weight", (*path, "scale"))
    return [scale, Entry(f"{name}.bias", (*path, "bias"))][: 1 + bias]


def attention(
    name: str, *path: str, bias: bool = True, parts: Iterable[str] = ATTENTION
) -> list[Entry]:
    """Projections to queries, keys and values and of the output, with names below `name`."""
    layers = zip(parts, ("query", "key", "value", "out"), strict=True)
    pairs = (linear(f"{name}.{part}", *path, ours, bias=bias) for part, ours in layers)
    return list(chain.from_iterable(pairs))


def batch_norm(name: str, *path: str) -> list[Entry]:
    """A BatchNorm with its running statistics, over {"params", "batch_stats"}."""
    return [
        *norm(name, "params", *path),
        Entry(f"{name}.running_mean", ("batch_stats", *path, "mean")),
        Entry(f"{name}.running_var", ("batch_stats", *path, "var")),
    ]


def to_theirs(array: np.ndarray, layout: str) -> np.ndarray:
    """Moves one array into PyTorch's layout."""
    return LAYOUTS[layout][1](array)


def _their_view(array: np.ndarray, entry: Entry) -> np.ndarray:
    index, count = entry.part
    piece = np.split(array, count, axis=-1)[index] if count > 1 else array
    return to_theirs(piece, entry.layout)


def import_tensors(
    entries: Iterable[Entry], tensors: Tensors, expected: Tree, *, ignore: Iterable[str] = ()
) -> Tree:
    """PyTorch tensors -> our nested parameter dict.

    Only views are made, but of parameters in pieces: memory-mapped tensors stay on disk, and a
    misfit is found by name, shape and dtype before any of them is read.

    Args:
      entries: the model's table.
      tensors: PyTorch name -> array, in PyTorch layout.
      expected: our parameter tree (arrays or `jax.ShapeDtypeStruct`), the shapes to check against.
      ignore: PyTorch names that may be present and are dropped (e.g. `num_batches_tracked`).

    Raises:
      ConversionError: listing every missing, unknown and misshapen tensor at once.
    """
    entries = list(entries)
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten_dict(expected).items()}
    known, paths = {e.name for e in entries} | set(ignore), {e.path for e in entries}
    problems = [f"unknown tensor {name}" for name in tensors if name not in known]
    unmapped = ["/".join(path) for path in shapes if path not in paths]
    problems += [f"no tensor maps to our parameter {path}" for path in unmapped]
    pieces: dict[tuple[str, ...], list[np.ndarray]] = {}
    for entry in entries:
        if entry.path not in shapes:
            problems.append(f"our model has no parameter {'/'.join(entry.path)} (for {entry.name})")
        elif entry.name not in tensors:
            problems.append(f"missing tensor {entry.name}")
        else:
            wanted = _their_view(np.broadcast_to(np.float32(0), shapes[entry.path]), entry).shape
            array = np.asarray(tensors[entry.name])
            if array.shape != wanted:
                problems.append(f"{entry.name} has shape {array.shape}, the model needs {wanted}")
            elif array.dtype.kind in "biu":
                problems.append(f"{entry.name} has dtype {array.dtype}, which is no weight's")
            else:
                pieces.setdefault(entry.path, []).append(LAYOUTS[entry.layout][0](array))
    if problems:
        raise ConversionError(
            f"the weights do not fit this model ({len(problems)} problems); check that the file "
            "and the model config belong together:\n  " + "\n  ".join(problems)
        )
    whole = {path: parts[0] for path, parts in pieces.items() if len(parts) == 1}
    joined = {p: np.concatenate(parts, axis=-1) for p, parts in pieces.items() if len(parts) > 1}
    return unflatten_dict(whole | joined)


def export_tensors(entries: Iterable[Entry], params: Tree, copy: bool = True) -> Tensors:
    """Our nested parameter dict -> PyTorch tensors by name, in PyTorch layout.

    They are contiguous copies, as `safetensors.numpy.save_file` needs them; with `copy=False`
    transposed views, so that a large model is not in memory twice.
    """
    flat = flatten_dict(params)
    views = {entry.name: _their_view(np.asarray(flat[entry.path]), entry) for entry in entries}
    return {name: np.ascontiguousarray(view) for name, view in views.items()} if copy else views


@dataclass(frozen=True)
class Names:
    """A network's published tensors: their names, and the shapes that our module needs."""

    entries: Callable[[Any], list[Entry]]  # module -> its name table
    # Module, and widths that it takes from its inputs -> arguments of its `init`.
    inputs: Callable[..., tuple[Any, ...]]
    # Tensors -> those widths; whatever is missing is reported with all other misfits.
    widths: Callable[[Tensors], tuple[Any, ...]] = lambda tensors: ()
    whole: bool = False  # paths are over {"params", "batch_stats"}, not over the parameters alone
    # The original table -> diffusers' one, where there are both; and what a tensor's name contains
    # in diffusers' alone.
    diffusers: tuple[Callable[[list[Entry]], list[Entry]], str] | None = None
    optional: tuple[str, ...] = ()  # how names begin that a file or a run may lack altogether
    ignored: tuple[str, ...] = ()  # how the names of tensors end that are no weights
    foreign: tuple[str, ...] = ()  # how the names of other networks' tensors begin

    def is_diffusers(self, names: Iterable[str]) -> bool:
        """Whether a state dict has diffusers' names, where the original's are others."""
        return self.diffusers is not None and any(self.diffusers[1] in name for name in names)

    def table(self, module: Any, diffusers: bool = False) -> list[Entry]:
        """The name table of one configuration."""
        entries = self.entries(module)
        return self.diffusers[0](entries) if diffusers and self.diffusers else entries

    def shapes(self, module: Any, *widths: Any) -> Tree:
        """Shapes of all parameters (of all variables if `whole`); nothing is computed."""
        init = lambda: module.init(jax.random.key(0), *self.inputs(module, *widths))
        variables = jax.eval_shape(init)
        return variables if self.whole else variables["params"]

    def load(self, tensors: Tensors, module: Any, apart: Tree | None = None) -> Tree:
        """State dict, original or diffusers -> our tree; ConversionError lists every misfit.

        Args:
          tensors: the state dict.
          module: of the network.
          apart: parameters that come from elsewhere, and are left out here.
        """
        entries = self.table(module, self.is_diffusers(tensors))
        if not any(name.startswith(self.optional) for name in tensors):
            entries = [entry for entry in entries if not entry.name.startswith(self.optional)]
        shapes = self.shapes(module, *self.widths(tensors))
        if apart:
            elsewhere = flatten_dict(apart)
            flat = flatten_dict(shapes)
            shapes = unflatten_dict({p: x for p, x in flat.items() if p not in elsewhere})
        ignored = (COUNTER, *self.ignored) if self.whole else self.ignored
        ignore = [n for n in tensors if n.endswith(ignored) or n.startswith(self.foreign)]
        return import_tensors(entries, tensors, shapes, ignore=ignore)

    def save(self, tree: Tree, module: Any, diffusers: bool = False, copy: bool = True) -> Tensors:
        """Our tree -> state dict without BatchNorm's counters; `copy` as in `export_tensors`.

        Raises:
          ConversionError: parameters that the published network does not have.
        """
        entries, present = self.table(module, diffusers), set(flatten_dict(tree))
        if extra := sorted("/".join(path) for path in present - {e.path for e in entries}):
            name = type(module).__name__
            raise ConversionError(f"the original {name} has no names for {', '.join(extra)}")
        kept = [e for e in entries if e.path in present or not e.name.startswith(self.optional)]
        return export_tensors(kept, tree, copy)
