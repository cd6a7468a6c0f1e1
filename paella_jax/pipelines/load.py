"""A run folder of any family -> its pipeline: `paella_jax.load`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paella_jax.pipelines.tokens import load_tokens
from paella_jax.pipelines.two_scale import TwoScalePipeline
from paella_jax.pipelines.wuerstchen import load_wuerstchen
from paella_jax.runs.checkpoint import CheckpointError
from paella_jax.runs.folder import read_config


def load_one_or_two_scales(
    directory: str | Path, *, decoder: str | Path = "", super_resolution: str | Path = ""
) -> Any:
    """A token predictor, alone or with a network that enlarges what it draws.

    Args:
      directory: run folder of the base.
      decoder: run folder of a tokenizer with the same codes, whose decoder is used instead.
      super_resolution: run folder of a super-resolution network for its tokens.
    """
    if not super_resolution:
        return load_tokens(directory, decoder=decoder)
    return TwoScalePipeline(load_tokens(directory), load_tokens(super_resolution, decoder=decoder))


# method -> loader, of the package's own methods; registry.py has those that were added to it
LOADERS: dict[str, Callable[..., Any]] = {
    "tokens": load_one_or_two_scales,
    "stage_b": load_wuerstchen,
    "stage_c": load_wuerstchen,
}


def load(
    directory: str | Path, loaders: Mapping[str, Callable[..., Any]] = LOADERS, /, **options: Any
) -> Any:
    """Loads a run folder's newest checkpoint, or a converted folder, as a pipeline.

    Args:
      directory: run folder.
      loaders: method -> loader.
      **options: of the family's loader: `offload` for Würstchen, `super_resolution` and `decoder`
        for token predictors.

    Raises:
      ValueError: an option that this kind of run does not have.
      CheckpointError: no run there, of a kind that draws nothing, incomplete or damaged.
    """
    method = read_config(directory).method
    if method not in loaders:
        raise CheckpointError(
            f"{directory} holds a run of method {method!r}, which draws no images from text; give "
            f"one of {sorted(loaders)}"
        )
    known = list(inspect.signature(loaders[method]).parameters)[1:]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"a run of method {method!r} has no loading option {', '.join(unknown)}; it has {known}"
        )
    return loaders[method](directory, **options)
