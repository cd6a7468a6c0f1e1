"""Low-rank adapters (LoRA, Hu et al. 2021) as pure functions over parameter trees.

A chosen matrix W [in, out] becomes W + alpha / rank * down @ up, with down [in, rank] and up
[rank, out]. Only down and up are trained. The sum is made in each step, so no network knows of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.typing import Array, Tree

BASE = "base"  # the base parameters' name among the frozen trees


def check_lora(lora: ConfigDict) -> None:
    """Raises ConfigError for a rank, alpha or pattern that cannot be."""
    if lora.rank < 0:
        raise ConfigError(f"lora.rank must be 0 (off) or positive, got {lora.rank}")
    if lora.rank and lora.alpha <= 0:
        raise ConfigError(f"lora.alpha must be positive, got {lora.alpha}")
    try:
        re.compile(lora.pattern)
    except re.error as error:
        raise ConfigError(f"lora.pattern {lora.pattern!r} is no regex: {error}") from error


def lora_init(key: Array, params: Mapping[str, Any], pattern: str, rank: int) -> Tree:
    """Fresh adapters whose change is exactly zero.

    Args:
      key: PRNG key.
      params: the base parameters; only names and shapes are read.
      pattern: regex searched for in the names ("predictor/.../kernel") of the matrices [in, out];
        arrays of other ranks are never changed.
      rank: columns of `down`.

    Returns:
      A tree with {"down": float32 [in, rank], "up": zeros [rank, out]} in place of each matrix.

    Raises:
      ConfigError: the pattern fits no matrix.
    """
    flat = flatten_dict(dict(params))
    paths = [p for p, x in sorted(flat.items()) if x.ndim == 2 and re.search(pattern, "/".join(p))]
    if not paths:
        example = next("/".join(p) for p, x in flat.items() if x.ndim == 2)
        raise ConfigError(f"lora.pattern {pattern!r} fits no matrix; a name looks like {example}")
    adapters = {}
    for path, sub_key in zip(paths, jax.random.split(key, len(paths)), strict=True):
        width, features = flat[path].shape
        adapters[*path, "down"] = jax.random.normal(sub_key, (width, rank)) / math.sqrt(width)
        adapters[*path, "up"] = jnp.zeros((rank, features))
    return unflatten_dict(adapters)


def lora_merge(base: Mapping[str, Any], adapters: Mapping[str, Any], alpha: float) -> Tree:
    """The base with each adapted matrix plus its change; the other arrays are shared."""
    flat, changes = flatten_dict(dict(base)), flatten_dict(dict(adapters))
    for path in {name[:-1] for name in changes}:
        down, up = changes[*path, "down"], changes[*path, "up"]
        # Full precision: on TPU a default product has 8 bits and would shift every weight.
        change = jnp.matmul(down, up, precision=jax.lax.Precision.HIGHEST)
        flat[path] = flat[path] + (alpha / down.shape[1]) * change
    return unflatten_dict(flat)
