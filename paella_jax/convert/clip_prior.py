"""CLIP prior: original names <-> our parameters (docs/models/paella.md 4.3, 6)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.files.tensors import ConversionError, Entry, export_tensors, import_tensors
from paella_jax.models.clip_prior import ClipPrior


def clip_prior_entries(model: ClipPrior) -> list[Entry]:
    """The name table of one configuration: entry 0 is the input layer, the last the output."""
    entries = []
    for name, ours in (("blocks.0", "input"), (f"blocks.{model.num_blocks + 1}", "output")):
        entries += [
            Entry(f"{name}.weight", (ours, "kernel"), "linear"),
            Entry(f"{name}.bias", (ours, "bias")),
        ]
    for index in range(model.num_blocks):
        name, ours = f"blocks.{index + 1}", f"block_{index}"
        entries += [
            Entry(f"{name}.0.weight", (ours, "expand", "kernel"), "linear"),
            Entry(f"{name}.1.weight", (ours, "hidden_norm", "scale")),
            Entry(f"{name}.1.bias", (ours, "hidden_norm", "bias")),
            Entry(f"{name}.3.weight", (ours, "contract", "kernel"), "linear"),
            Entry(f"{name}.4.weight", (ours, "out_norm", "scale")),
            Entry(f"{name}.4.bias", (ours, "out_norm", "bias")),
        ]
    return entries


def infer_clip_prior(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Fields of `ClipPrior` from a state dict's shapes: they determine all of them.

    Raises:
      ConversionError: the tensors that carry the sizes are missing or do not belong together.
    """
    needed = ("blocks.0.weight", "blocks.1.0.weight")
    bad = [name for name in needed if name not in tensors or tensors[name].ndim != 2]
    if bad:
        raise ConversionError(
            f"not a CLIP prior: {' and '.join(bad)} missing or not a matrix; expected the state "
            "dict of prior_v1.pt (names blocks.N...)"
        )
    blocks = [name for name in tensors if re.fullmatch(r"blocks\.\d+\.0\.weight", name)]
    width, clip_width = np.shape(tensors["blocks.0.weight"])
    time_width = np.shape(tensors["blocks.1.0.weight"])[1] - width - clip_width
    if time_width < 4:
        raise ConversionError(
            f"not a CLIP prior: blocks.1.0.weight must take {width} + {clip_width} inputs and at "
            f"least 4 of the timestep embedding, it takes {time_width + width + clip_width}"
        )
    return {
        "clip_width": clip_width,
        "width": width,
        "time_width": time_width,
        "num_blocks": len(blocks),
    }


def abstract_clip_prior(model: ClipPrior) -> dict[str, Any]:
    """Shapes of all parameters; nothing is computed."""
    embedding = jnp.zeros((1, model.clip_width))
    init = lambda: model.init(jax.random.key(0), embedding, jnp.zeros((1,)), embedding)
    return jax.eval_shape(init)["params"]


def import_clip_prior(tensors: Mapping[str, np.ndarray], model: ClipPrior) -> dict[str, Any]:
    """Original state dict -> our parameters. Raises ConversionError listing every misfit."""
    return import_tensors(clip_prior_entries(model), tensors, abstract_clip_prior(model))


def export_clip_prior(params: Mapping[str, Any], model: ClipPrior) -> dict[str, np.ndarray]:
    """Our parameters -> original state dict."""
    return export_tensors(clip_prior_entries(model), params)
