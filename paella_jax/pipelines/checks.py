"""Checks of the arrays that a caller may give a token pipeline: token maps and mixing weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from paella_jax.sampling.resample import ResampleSettings
from paella_jax.sampling.token_loop import Known
from paella_jax.sampling.token_sampler import TokenSettings, starts_from_noise


def check_start(
    settings: TokenSettings | ResampleSettings,
    image_tokens: Any,
    known: Known | None,
    sampler: Mapping[str, Any],
) -> None:
    """Raises ValueError where settings that start from an image come without one."""
    if isinstance(settings, ResampleSettings):
        settings.check()
        if image_tokens is None:
            raise ValueError("resampling edits an image; give image_tokens")
        unused = sorted(name for name, value in sampler.items() if value is not None)
        if unused:
            raise ValueError(f"mask-free editing runs no sampler: {', '.join(unused)} unused")
    elif image_tokens is None and known is None and not starts_from_noise(settings):
        raise ValueError("t_start (or strength) below 1 starts from an image; give image_tokens")


def check_weights(
    given: Any, count: int, conditions: int, grid: tuple[int, int]
) -> np.ndarray | None:
    """Mixing weights of `count` images, their sum 1: float32 [count, conditions(, h, w)].

    None is equal weights; the result is None where there is nothing to mix.

    Raises:
      ValueError: another shape, or weights without a positive sum.
    """
    if given is None:
        if conditions == 1:
            return None
        return np.full((count, conditions), 1.0 / conditions, np.float32)
    weights = np.asarray(given, np.float32)
    if weights.ndim == 1:
        weights = np.broadcast_to(weights, (count, *weights.shape))
    shapes = ((count, conditions), (count, conditions, *grid))
    if weights.shape not in shapes:
        raise ValueError(
            f"weights have shape {np.shape(given)}; {conditions} conditions in {count} pictures "
            f"need one weight per condition: [{conditions}], {shapes[0]} or {shapes[1]}"
        )
    if not np.isfinite(weights).all() or not (weights.sum(1) > 0).all():
        raise ValueError("weights must be finite and have a positive sum")
    return weights / weights.sum(1, keepdims=True)


def check_known(known: Known, count: int, grid: tuple[int, int], codes: int) -> Known:
    """Tokens to keep [count, h, w], 0 where they are to be drawn. Raises ValueError."""
    generate = _check_map(known.generate, count, grid, "known.generate").astype(bool)
    kept = np.where(generate, 0, _check_map(known.tokens, count, grid, "known.tokens"))
    return Known(check_tokens(kept, count, grid, "known.tokens", codes), generate)


def check_tokens(
    given: Any, count: int, grid: tuple[int, int], name: str, codes: int
) -> np.ndarray:
    """A token map for each of `count` images, of a tokenizer's codes. Raises ValueError."""
    array = _check_map(given, count, grid, name)
    if not np.issubdtype(array.dtype, np.integer) or array.min() < 0 or array.max() >= codes:
        raise ValueError(
            f"{name} ({array.dtype}, from {array.min()} to {array.max()}) must be whole numbers "
            f"from 0 to {codes - 1}, the tokenizer's codes"
        )
    return array


def _check_map(given: Any, count: int, grid: tuple[int, int], name: str) -> np.ndarray:
    array = np.asarray(given)
    if array.shape != (count, *grid):
        raise ValueError(
            f"{name} has shape {array.shape}; {count} pictures of {grid[0]}x{grid[1]} tokens "
            f"need {(count, *grid)}"
        )
    return array
