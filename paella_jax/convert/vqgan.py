"""VQGAN: original and diffusers names <-> our variables (docs/models/paella.md 6)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.files.tensors import ConversionError, Entry, export_tensors, import_tensors
from paella_jax.models.vqgan import VQGAN

IGNORED = "num_batches_tracked"
CODEBOOK, DIFFUSERS_CODEBOOK = "vquantizer.codebook.weight", "vquantizer.embedding.weight"
DIFFUSERS_CLASS = "PaellaVQModel"


def vqgan_from_reference_config(constructor: Mapping[str, Any]) -> VQGAN:
    """Our module for the reference class's constructor arguments."""
    return VQGAN(
        levels=constructor["levels"],
        bottleneck_blocks=constructor["bottleneck_blocks"],
        width=constructor["c_hidden"],
        latent_channels=constructor["c_latent"],
        codebook_size=constructor["codebook_size"],
        scale_factor=constructor["scale_factor"],
    )


def vqgan_from_diffusers_config(config: Mapping[str, Any]) -> VQGAN:
    """Our module for a diffusers PaellaVQModel's config.json.

    Raises:
      ValueError: an option that our network does not have.
    """
    fixed = {"in_channels": 3, "out_channels": 3, "up_down_scale_factor": 2}
    for name, value in fixed.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name} {config[name]!r} is not supported, only {value}")
    return VQGAN(
        levels=config["levels"],
        bottleneck_blocks=config["bottleneck_blocks"],
        width=config["embed_dim"],
        latent_channels=config["latent_channels"],
        codebook_size=config["num_vq_embeddings"],
        scale_factor=config["scale_factor"],
    )


def diffusers_config(model: VQGAN) -> dict[str, Any]:
    """The inverse of `vqgan_from_diffusers_config`: what config.json holds."""
    return {
        "_class_name": DIFFUSERS_CLASS,
        "in_channels": 3,
        "out_channels": 3,
        "up_down_scale_factor": 2,
        "levels": model.levels,
        "bottleneck_blocks": model.bottleneck_blocks,
        "embed_dim": model.width,
        "latent_channels": model.latent_channels,
        "num_vq_embeddings": model.codebook_size,
        "scale_factor": model.scale_factor,
    }


def has_diffusers_names(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether a state dict is a diffusers PaellaVQModel's."""
    return DIFFUSERS_CODEBOOK in tensors


def infer_vqgan(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Fields of `VQGAN` from a state dict's names and shapes: all but `scale_factor`.

    Raises:
      ConversionError: the tensors that carry the sizes are missing.
    """
    count = lambda side: len([n for n in tensors if re.fullmatch(rf"{side}\.\d+\.gammas", n)])
    levels = count("down_blocks")
    codebook = DIFFUSERS_CODEBOOK if has_diffusers_names(tensors) else CODEBOOK
    latents = f"down_blocks.{2 * levels - 1}.0.weight"
    for name, rank in ((codebook, 2), (latents, 4)):
        if np.ndim(tensors.get(name, 0)) != rank:
            raise ConversionError(
                f"not a whole VQGAN: {name}, which tells its sizes, is missing or has another "
                "shape; expected the state dict of vqgan_f4.pt or of a model of its kind"
            )
    codes, channels = np.shape(tensors[codebook])
    return {
        "levels": levels,
        "bottleneck_blocks": count("up_blocks") - (levels - 1),
        "width": np.shape(tensors[latents])[1],
        "latent_channels": channels,
        "codebook_size": codes,
    }


def _block(name: str, path: str) -> list[Entry]:
    return [
        Entry(f"{name}.gammas", ("params", path, "gammas")),
        *_pair(f"{name}.depthwise.1", path, "depthwise", layout="conv"),
        *_pair(f"{name}.channelwise.0", path, "expand"),
        *_pair(f"{name}.channelwise.2", path, "contract"),
    ]


def _pair(name: str, *path: str, layout: str = "linear") -> list[Entry]:
    return [
        Entry(f"{name}.weight", ("params", *path, "kernel"), layout),
        Entry(f"{name}.bias", ("params", *path, "bias")),
    ]


def vqgan_entries(model: VQGAN, diffusers: bool = False) -> list[Entry]:
    """The name table of one configuration, over {"params", "batch_stats"}."""
    last = 2 * model.levels - 1  # the encoder's last entry: 1x1 convolution and BatchNorm
    codebook = DIFFUSERS_CODEBOOK if diffusers else CODEBOOK
    norm = f"down_blocks.{last}.1"
    entries = [
        *_pair("in_block.1", "encoder_in", layout="conv1x1"),
        Entry(f"down_blocks.{last}.0.weight", ("params", "encoder_out", "kernel"), "conv1x1"),
        Entry(f"{norm}.weight", ("params", "latent_norm", "scale")),
        Entry(f"{norm}.bias", ("params", "latent_norm", "bias")),
        Entry(f"{norm}.running_mean", ("batch_stats", "latent_norm", "mean")),
        Entry(f"{norm}.running_var", ("batch_stats", "latent_norm", "var")),
        Entry(codebook, ("params", "codebook")),
        *_pair("up_blocks.0.0", "decoder_in", layout="conv1x1"),
        *_pair("out_block.0", "decoder_out", layout="conv1x1"),
    ]
    for level in range(model.levels):
        entries += _block(f"down_blocks.{2 * level}", f"encoder_blocks_{level}")
    for index in range(model.bottleneck_blocks):
        entries += _block(f"up_blocks.{1 + index}", f"decoder_blocks_{index}")
    first = 1 + model.bottleneck_blocks
    for level in range(model.levels - 1):
        down, up = f"down_blocks.{2 * level + 1}", f"up_blocks.{first + 2 * level}"
        entries += _pair(down, f"encoder_downs_{level}", layout="conv")
        entries += _pair(up, f"decoder_ups_{level}", layout="conv_transpose")
        entries += _block(f"up_blocks.{first + 2 * level + 1}", f"decoder_level_blocks_{level}")
    return entries


def abstract_vqgan(model: VQGAN) -> dict[str, Any]:
    """Shapes of all variables; nothing is computed."""
    size = model.downsampling
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3))))


def import_vqgan(
    tensors: Mapping[str, np.ndarray], model: VQGAN, diffusers: bool = False
) -> dict[str, Any]:
    """State dict -> {"params", "batch_stats"}. Raises ConversionError listing every misfit."""
    ignore = [name for name in tensors if name.endswith(IGNORED)]
    entries = vqgan_entries(model, diffusers)
    return import_tensors(entries, tensors, abstract_vqgan(model), ignore=ignore)


def export_vqgan(
    variables: Mapping[str, Any], model: VQGAN, diffusers: bool = False, copy: bool = True
) -> dict[str, np.ndarray]:
    """Our variables -> state dict (without the batch counter, which nothing reads).

    `copy=False` gives transposed views, see `export_tensors`.
    """
    return export_tensors(vqgan_entries(model, diffusers), variables, copy)
