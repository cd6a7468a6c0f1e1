"""What every pipeline does around its compiled program: checks per prompt, keys, batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from paella_jax.training.sharding import batch_sharding
from paella_jax.typing import Tree


def one_per_prompt(values: Any, count: int, name: str) -> list[Any]:
    """One value for all prompts, or one for each. Raises ValueError otherwise."""
    listed = list(values) if isinstance(values, list | tuple | np.ndarray) else [values]
    if len(listed) == 1:
        return listed * count
    if len(listed) != count:
        raise ValueError(f"{len(listed)} values of {name} for {count} prompts; give one or {count}")
    return listed


def image_keys(seeds: Sequence[int], copies: int) -> jax.Array:
    """Keys [prompts * copies]: an image's comes from its prompt's seed and its number only.

    Raises:
      ValueError: copies below 1.
    """
    if copies < 1:
        raise ValueError(f"num_images_per_prompt must be at least 1, got {copies}")
    numbers = np.tile(np.arange(copies), len(seeds))
    return numbered_keys(np.repeat(np.asarray(seeds), copies), numbers)


def numbered_keys(seeds: np.ndarray, numbers: np.ndarray) -> jax.Array:
    """Key of the image with number n among those of a seed, for each pair.

    Raises:
      ValueError: a seed that is no whole number from 0 to 2^32 - 1.
    """
    for seed in np.asarray(seeds).tolist():
        if not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ValueError(f"seed {seed!r} must be a whole number from 0 to {2**32 - 1}")
    return jax.vmap(lambda s, i: jax.random.fold_in(jax.random.key(s), i))(
        jnp.asarray(np.asarray(seeds, np.uint32)), jnp.asarray(numbers)
    )


def check_side(name: str, pixels: int, divisor: int) -> None:
    """Raises ValueError where an image side is no multiple of `divisor`, naming the nearest."""
    if pixels < divisor or pixels % divisor:
        nearest = max(divisor, round(pixels / divisor) * divisor)
        raise ValueError(f"{name} {pixels} must be a positive multiple of {divisor}; use {nearest}")


def in_batches(
    run: Callable[[Tree], tuple[Any, ...]], request: Tree, count: int, batch_size: int, mesh: Mesh
) -> tuple[np.ndarray, ...]:
    """Runs a program on pieces of a request; the last one is filled up with repeats.

    Args:
      run: piece -> arrays, each with the batch first.
      request: arrays with `count` in front.
      count: of pictures.
      batch_size: bounds a piece; it is rounded up to whole devices.
      mesh: pieces are spread over its devices.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    size = -(-min(batch_size, count) // mesh.size) * mesh.size
    parts = []
    for start in range(0, count, size):
        rows = np.arange(start, start + size) % count
        piece = jax.tree.map(lambda x, rows=rows: x[rows], request)
        with jax.set_mesh(mesh):  # a preview runs inside of training, on another mesh
            outputs = run(jax.device_put(piece, batch_sharding(mesh)))
        parts.append([np.asarray(x)[: count - start] for x in outputs])
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
