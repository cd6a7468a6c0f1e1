"""Paella token predictor: original names <-> our parameters (reference/paella.md 6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.convert.tensors import Entry, export_tensors, flatten, import_tensors
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.paella import Paella


def paella_from_reference_config(constructor: Mapping[str, Any]) -> Paella:
    """Our module for the reference class's constructor arguments."""
    if constructor["c_in"] != constructor["c_out"]:
        raise ValueError("c_in and c_out must be equal (the classifier starts as the token table)")
    dropout = constructor["dropout"]
    return Paella(
        codebook_size=constructor["num_labels"],
        token_width=constructor["c_in"],
        patch_size=constructor["patch_size"],
        time_width=constructor["c_r"],
        cond_width=constructor["c_cond"],
        widths=tuple(constructor["c_hidden"]),
        depths=tuple(constructor["blocks"]),
        num_heads=tuple(constructor["nhead"]),
        patterns=tuple(constructor["level_config"]),
        clip_tokens=constructor["clip_seq_len"],
        kernel_size=constructor["kernel_size"],
        dropout=tuple(dropout) if isinstance(dropout, list | tuple) else dropout,
        self_attention=constructor["self_attn"],
    )


def _linear(name: str, *path: str, layout: str = "linear") -> list[Entry]:
    return [
        Entry(f"{name}.weight", (*path, "kernel"), layout),
        Entry(f"{name}.bias", (*path, "bias")),
    ]


def _mlp(name: str, path: str) -> list[Entry]:
    return [
        *_linear(f"{name}.0", path, "mlp", "expand"),
        Entry(f"{name}.2.gamma", (path, "mlp", "response_norm", "gamma"), "channel"),
        Entry(f"{name}.2.beta", (path, "mlp", "response_norm", "beta"), "channel"),
        *_linear(f"{name}.4", path, "mlp", "contract"),
    ]


def _block(kind: str, name: str, path: str) -> list[Entry]:
    if kind == "C":
        depthwise = _linear(f"{name}.depthwise", path, "depthwise", layout="conv")
        return [*depthwise, *_mlp(f"{name}.channelwise", path)]
    if kind == "T":
        return _linear(f"{name}.mapper", path, "mapper")
    if kind == "F":
        return _mlp(f"{name}.channelwise", path)
    attention = f"{name}.attention.attn"
    return [
        Entry(f"{attention}.in_proj_weight", (path, "attention", "in_kernel"), "linear"),
        Entry(f"{attention}.in_proj_bias", (path, "attention", "in_bias")),
        *_linear(f"{attention}.out_proj", path, "attention", "out"),
        *_linear(f"{name}.kv_mapper.1", path, "kv_mapper"),
    ]


def paella_entries(model: Paella) -> list[Entry]:
    """The name table of one configuration of the token predictor."""
    entries = [
        Entry("in_mapper.0.weight", ("token_table",)),
        Entry("out_mapper.1.weight", ("classifier",), "conv1x1"),
        *_linear("embedding.1", "embedding", "proj", layout="conv1x1"),
        *_linear("clf.1", "output", "proj", layout="conv1x1"),
        *_linear("byt5_mapper", "conditioning", "text"),
        *_linear("clip_mapper", "conditioning", "clip_text"),
        *_linear("clip_image_mapper", "conditioning", "clip_image"),
    ]
    levels = len(model.widths)
    for level in range(levels):
        kinds = model.patterns[level] * model.depths[level]
        # The reference keeps the downsampling as entry 0 of its level, the upsampling as the last.
        offset = 1 if level > 0 else 0
        theirs_up = levels - 1 - level
        if level > 0:
            down, up = f"down_{level}_downsample", f"up_{level}_upsample"
            entries += _linear(f"down_blocks.{level}.0.1", down, layout="conv")
            name = f"up_blocks.{theirs_up}.{len(kinds)}.1"
            entries += _linear(name, up, layout="conv_transpose")
        for index, kind in enumerate(kinds):
            name = f"down_blocks.{level}.{index + offset}"
            entries += _block(kind, name, f"down_{level}_block_{index}")
            name = f"up_blocks.{theirs_up}.{index}"
            entries += _block(kind, name, f"up_{level}_block_{index}")
    return entries


def abstract_paella(model: Paella, text_width: int, clip_width: int) -> dict[str, Any]:
    """Shapes of all parameters, with every conditioning input present; nothing is computed."""
    size = model.grid_divisor
    cond = Conditioning(
        text=jnp.zeros((1, 1, text_width)),
        text_pooled=jnp.zeros((1, clip_width)),
        image_pooled=jnp.zeros((1, 1, clip_width)),
    )
    init = lambda: model.init(
        jax.random.key(0), jnp.zeros((1, size, size), jnp.int32), jnp.zeros((1,)), cond
    )
    return jax.eval_shape(init)["params"]


def import_paella(tensors: Mapping[str, np.ndarray], model: Paella) -> dict[str, Any]:
    """Original state dict -> our parameters. Raises ConversionError listing every misfit."""
    text = np.shape(tensors.get("byt5_mapper.weight", np.zeros((1, 1))))[1]
    clip = np.shape(tensors.get("clip_mapper.weight", np.zeros((1, 1))))[1]
    return import_tensors(paella_entries(model), tensors, abstract_paella(model, text, clip))


def export_paella(params: Mapping[str, Any], model: Paella) -> dict[str, np.ndarray]:
    """Our parameters -> original state dict; mappers the run never used are left out."""
    present = set(flatten(params))
    entries = [entry for entry in paella_entries(model) if entry.path in present]
    return export_tensors(entries, params)
