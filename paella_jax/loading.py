"""A run folder of any family -> its pipeline: `paella_jax.load`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from paella_jax.pipeline import load_tokens
from paella_jax.training.checkpoint import CheckpointError, read_config
from paella_jax.wuerstchen_pipeline import load_wuerstchen

# method -> loader; a new family adds its line here
LOADERS: dict[str, Callable[..., Any]] = {
    "tokens": load_tokens,
    "stage_b": load_wuerstchen,
    "stage_c": load_wuerstchen,
}


def load(directory: str | Path, **options: Any) -> Any:
    """Loads a run folder's newest checkpoint, or a converted folder, as a pipeline.

    Args:
      directory: run folder.
      **options: of the family's loader, e.g. `offload` for Würstchen.

    Raises:
      CheckpointError: no run there, of a kind that draws nothing, incomplete or damaged.
    """
    method = read_config(directory).method
    if method not in LOADERS:
        raise CheckpointError(
            f"{directory} holds a run of method {method!r}, which draws no images from text; give "
            f"one of {sorted(LOADERS)}"
        )
    if options and method == "tokens":
        raise ValueError(f"a token predictor's run has no loading options, got {sorted(options)}")
    return LOADERS[method](directory, **options)
