"""Paella, Würstchen and MUSE-style text-to-image models in JAX.

`paella_jax.load(run_folder)` gives a pipeline; everything heavy is imported when it is used.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from paella_jax.pipelines.load import load

        return load
    raise AttributeError(f"module 'paella_jax' has no attribute {name!r}")
