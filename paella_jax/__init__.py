"""Paella, Würstchen and MUSE-style text-to-image models in JAX.

`paella_jax.load(run_folder)` gives a pipeline; everything heavy is imported when it is used.

Example:
  >>> import paella_jax
  >>> pipe = paella_jax.load("RUN")
  >>> images = pipe("a red circle", num_images_per_prompt=4, seed=None)
  >>> images.save("circles")
  >>> pipe(paella_jax.Condition("a red circle", emphasis={"red": 1.5}))
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

from paella_jax.files.library_noise import silence

silence()  # before orbax, grain and transformers are imported

__version__ = "0.1.0"
__all__ = [
    "Condition",
    "Images",
    "Pipeline",
    "PromptEmbeds",
    "StopSampling",
    "__version__",
    "load",
    "push_to_hub",
]
# What is imported when it is asked for, and from where.
_LATER = {
    "Condition": "paella_jax.pipelines.prompts",
    "Images": "paella_jax.pipelines.drawn_images",
    "Pipeline": "paella_jax.pipelines.base",
    "PromptEmbeds": "paella_jax.pipelines.prompt_embeds",
    "StopSampling": "paella_jax.pipelines.watch",
}


def load(
    directory: str | Path, *, revision: str | None = None, offline: bool = False, **options: Any
) -> AnyPipeline:
    """Loads a run as a pipeline: see `paella_jax.pipelines.load.load`.

    Args:
      directory: a run folder, a shared one (`paella_jax.export`), a folder as Paella, Würstchen or
        aMUSEd are published, or OWNER/NAME on the Hugging Face hub.
      revision: branch, tag or commit of a repository on the hub.
      offline: take repositories from the hub's local cache.
      **options: of the loader of its method; for published folders also the networks that they
        lack (docs/sharing.md 3).

    Returns:
      A `Pipeline`: call it with a prompt.

    Raises:
      ValueError: an option that this kind of run does not have, or an argument of another type.
      CheckpointError: no run there, of a kind that draws nothing, incomplete or damaged.
      HubError: a repository that does not exist, is gated or cannot be reached.
      ConversionError: a published folder that cannot be converted.

    Example:
      >>> pipe = paella_jax.load("RUN")
      >>> muse = paella_jax.load("BASE", super_resolution="RUN")
    """
    from paella_jax.convert.found import run_folder
    from paella_jax.pipelines.load import LOADERS, load
    from paella_jax.runs.folder import read_config

    folder, options = run_folder(directory, revision, offline, options)
    if read_config(folder).method in LOADERS:
        return load(folder, **options)
    # A method that was added to the registry, which imports all there is.
    from paella_jax.registry import FAMILIES

    loaders = {name: family.load for name, family in FAMILIES.items() if family.load is not None}
    return load(folder, loaders, **options)


def push_to_hub(source: Any, name: str, **options: Any) -> str:
    """Uploads a shared folder or a pipeline to the hub: `paella_jax.sharing.hub.push_to_hub`.

    Args:
      source: folder that `paella_jax.export` or `pipe.save` wrote, or a loaded pipeline.
      name: OWNER/NAME.
      **options: `private`, `message`.

    Example:
      >>> paella_jax.push_to_hub(paella_jax.load("RUN"), "OWNER/NAME", private=True)
    """
    from paella_jax.sharing.hub import push_to_hub

    return push_to_hub(source, name, **options)


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    ours = {"Any", "TYPE_CHECKING", "annotations", "import_module", "silence"}
    return sorted({*globals(), *__all__} - ours)
