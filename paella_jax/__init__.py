"""Paella, Würstchen and MUSE-style text-to-image models in JAX.

`paella_jax.load(run_folder)` gives a pipeline; everything heavy is imported when it is used.

Example:
  >>> import paella_jax
  >>> pipe = paella_jax.load("RUN")
  >>> images = pipe("a red circle", num_images_per_prompt=4, seed=None)
  >>> images.save("circles")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from paella_jax.pipelines.base import Pipeline as Pipeline
    from paella_jax.pipelines.drawn_images import Images as Images
    from paella_jax.pipelines.load import AnyPipeline
    from paella_jax.pipelines.prompt_embeds import PromptEmbeds as PromptEmbeds
    from paella_jax.pipelines.prompts import Condition as Condition
    from paella_jax.pipelines.watch import StopSampling as StopSampling

__version__ = "0.1.0"
__all__ = [
    "Condition",
    "Images",
    "Pipeline",
    "PromptEmbeds",
    "StopSampling",
    "__version__",
    "load",
]
# What is imported when it is asked for, and from where.
_LATER = {
    "Condition": "paella_jax.pipelines.prompts",
    "Images": "paella_jax.pipelines.drawn_images",
    "Pipeline": "paella_jax.pipelines.base",
    "PromptEmbeds": "paella_jax.pipelines.prompt_embeds",
    "StopSampling": "paella_jax.pipelines.watch",
}


def load(directory: str | Path, **options: Any) -> AnyPipeline:
    """Loads a run folder as a pipeline: see `paella_jax.pipelines.load.load`.

    Args:
      directory: a run folder, or a folder of converted weights.
      **options: of the loader of its method.

    Returns:
      A `Pipeline`: call it with a prompt.

    Raises:
      ValueError: an option that this kind of run does not have.
      CheckpointError: no run there, of a kind that draws nothing, incomplete or damaged.

    Example:
      >>> pipe = paella_jax.load("RUN")
      >>> muse = paella_jax.load("BASE", super_resolution="RUN")
    """
    from paella_jax.pipelines.load import LOADERS, load
    from paella_jax.runs.folder import read_config

    if read_config(directory).method in LOADERS:
        return load(directory, **options)
    # A method that was added to the registry, which imports all there is.
    from paella_jax.registry import FAMILIES

    loaders = {name: family.load for name, family in FAMILIES.items() if family.load is not None}
    return load(directory, loaders, **options)


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING", "annotations", "import_module"})
