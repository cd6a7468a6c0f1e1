"""Cutting a request into batches: keys of its images, sizes of its programs, places on the mesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.training.placing import batch_sharding, fetch, place
from paella_jax.training.sharding import make_mesh, replicated
from paella_jax.typing import Array, Key, Tree


def all_devices() -> Mesh:
    """The mesh that spreads batches over all devices, each with whole weights."""
    return make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}))


def on_mesh(weights: Tree, mesh: Mesh) -> Tree:
    """Weights that lie on the mesh already stay as they are sharded; others are put there whole."""
    lies_there = lambda x: isinstance(x, jax.Array) and getattr(x.sharding, "mesh", None) == mesh
    put = lambda x: x if lies_there(x) else place(x, replicated(mesh))
    return jax.tree.map(put, weights)


def one_per_prompt(values: Any, count: int, name: str) -> list[Any]:
    """One value for all prompts, or one for each. Raises ValueError otherwise."""
    listed = list(values) if isinstance(values, list | tuple | np.ndarray) else [values]
    if len(listed) == 1:
        return listed * count
    if len(listed) != count:
        raise ValueError(f"{len(listed)} values of {name} for {count} prompts; give one or {count}")
    return listed


class Numbered(NamedTuple):
    """Which images: their keys come from these alone, inside of the programs that draw.

    Attributes:
      seeds: uint32 [count], of each image's prompt.
      numbers: int32 [count], of each image among those of its prompt.
    """

    seeds: Any
    numbers: Any

    def keys(self) -> Key:
        """[count], one for each image."""
        key = lambda seed, number: jax.random.fold_in(jax.random.key(seed), number)
        return jax.vmap(key)(self.seeds, self.numbers)


def numbered(seeds: Sequence[int], copies: int) -> Numbered:
    """All images [prompts * copies] of prompts with these seeds.

    Raises:
      ValueError: copies below 1, or an impossible seed.
    """
    if copies < 1:
        raise ValueError(f"num_images_per_prompt must be at least 1, got {copies}")
    numbers = np.tile(np.arange(copies, dtype=np.int32), len(seeds))
    return Numbered(checked_seeds(np.repeat(np.asarray(seeds), copies)), numbers)


def checked_seeds(seeds: np.ndarray) -> np.ndarray:
    """The same as uint32. Raises ValueError for one that is no whole number from 0 to 2^32 - 1."""
    for seed in np.asarray(seeds).tolist():
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise ValueError(f"seed {seed!r} must be a whole number from 0 to {2**32 - 1}")
    return np.asarray(seeds, np.uint32)


def child_seeds(images: Numbered, child: int) -> list[int]:
    """A further seed for each image, from its key and the child's number alone."""
    return np.asarray(_bits_of(images, child)).tolist()


@jax.jit
def _bits_of(images: Numbered, child: Any) -> Array:
    bits = lambda key: jax.random.bits(jax.random.fold_in(key, child))
    return jax.vmap(bits)(images.keys())


def image_keys(seeds: Sequence[int], copies: int) -> Key:
    """Keys [prompts * copies]: an image's comes from its prompt's seed and its number only.

    Raises:
      ValueError: copies below 1, or an impossible seed.
    """
    return jax.jit(Numbered.keys)(numbered(seeds, copies))


def in_batches(
    run: Callable[[Tree, int], Tree],
    request: Tree,
    count: int,
    job: Any,
    mesh: Mesh,
) -> Tree:
    """Runs a program on pieces of a request; the last one is filled up with repeats.

    Args:
      run: (piece, how many of its rows are not repeats) -> a tree of arrays, the batch in front.
      request: arrays with `count` in front.
      count: number of images.
      job: a `Job`, whose batch_size bounds a piece; where it is stopped, later pieces are left out.
      mesh: pieces are spread over its batch axes.

    Returns:
      The tree for the whole request, in numpy.

    Raises:
      ValueError: batch_size below 1.
    """
    size = piece_size(count, job.batch_size, mesh)
    here = lambda x: x if isinstance(x, np.ndarray) else fetch(x)
    parts = []
    for start in range(0, count, size):
        rows = np.arange(start, start + size) % count
        piece = jax.tree.map(lambda x, rows=rows: x[rows], request)
        with jax.set_mesh(mesh):  # a preview runs inside of training, on another mesh
            outputs = run(place(piece, batch_sharding(mesh)), min(size, count - start))
        parts.append(jax.tree.map(lambda x, left=count - start: here(x)[:left], outputs))
        if job.stopped:
            break
    return jax.tree.map(lambda *column: np.concatenate(column), *parts)


def piece_size(count: int, batch_size: int, mesh: Mesh) -> int:
    """Images per program: a power of two, so that few programs serve all counts, up to batch_size.

    Both are rounded up to whole devices.

    Raises:
      ValueError: batch_size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    power_of_two = 1 << (count - 1).bit_length()
    return -(-min(batch_size, power_of_two) // shards) * shards


def num_pieces(count: int, batch_size: int, mesh: Mesh) -> int:
    """How often `in_batches` runs its program, unless it is stopped."""
    return -(-count // piece_size(count, batch_size, mesh))
