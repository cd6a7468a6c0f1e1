"""Paella, Würstchen and MUSE-style text-to-image models in JAX.

`paella_jax.load(run_folder)` gives a pipeline; everything heavy is imported when it is used.
"""

from __future__ import annotations

from typing import Any

from paella_jax.files.absl_noise import silence

silence()  # before orbax and grain are imported

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(directory: Any, **options: Any) -> Any:
    """Loads a run folder as a pipeline: see `paella_jax.pipelines.load.load`.

    Args:
      directory: a run folder, or a folder of converted weights.
      **options: of the loader of its method.

    Raises:
      ValueError: an option that this kind of run does not have.
      CheckpointError: no run there, of a kind that draws nothing, incomplete or damaged.
    """
    from paella_jax.pipelines.load import LOADERS, load
    from paella_jax.runs.folder import read_config

    if read_config(directory).method in LOADERS:
        return load(directory, **options)
    # A method that was added to the registry, which imports all there is.
    from paella_jax.registry import FAMILIES

    loaders = {name: family.load for name, family in FAMILIES.items() if family.load is not None}
    return load(directory, loaders, **options)
