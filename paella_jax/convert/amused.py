"""aMUSEd as released: its transformer alone, or in a pipeline's folder (docs/models/muse.md 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from paella_jax.convert import amused_folder, uvit
from paella_jax.convert.checks import check_clip
from paella_jax.convert.paella import carry_tokens
from paella_jax.convert.released import DEFAULT, DRAW, JSON, Found, Released, config_file
from paella_jax.families.cells import check_cell
from paella_jax.families.vqgan import make_vqgan
from paella_jax.files import weights_file
from paella_jax.files.tensors import ConversionError, Weights
from paella_jax.models.uvit import UViT


def _extra(weights: Weights, fields: Mapping[str, Any]) -> Found:
    file, count = config_file(weights), fields.get("micro_conds")
    if file is not None and count != uvit.MICRO_CONDS:  # a sixth would be the noise level's
        raise ConversionError(
            f"{file} has room for {count} micro-conditions, aMUSEd has "
            f"{uvit.MICRO_CONDS}: micro_cond_embed_dim must be {uvit.MICRO_CONDS} x "
            "micro_cond_encode_dim"
        )
    return {}


def _settle(config: ConfigDict, weights: Weights, tokenizer: ConfigDict | None) -> Found:
    """Pixels of the training images: the token map's side times the tokenizer's downsampling."""
    file = config_file(weights)
    known = {} if file is None else weights_file.read_json(file)
    side = int(known.get("sample_size", 32 if config.uvit.downsample else 16))
    # Whatever else may have been given is refused later.
    is_known = tokenizer is not None and tokenizer.method == "vqgan"
    pixels = make_vqgan(tokenizer).downsampling if is_known else amused_folder.DOWNSAMPLING
    return {"data.image_size": (side * pixels, DEFAULT if file is None else JSON)}


def _check(config: ConfigDict, weights: Weights, tokenizer: ConfigDict | None) -> None:
    check_cell(config)
    if tokenizer is not None:
        amused_folder.check_size(config, tokenizer)
    check_clip("--clip", config.clip.folder, *uvit.text_widths(weights, config))


def _check_run(config: ConfigDict) -> None:
    """Refuses runs that an AmusedPipeline cannot hold, with all reasons."""
    needed = {
        "cell.corruption": (config.cell.corruption, "mask"),
        "text.kind": (config.text.kind, "clip"),
        "uvit.micro_conds": (config.uvit.micro_conds, uvit.MICRO_CONDS),
    }
    problems = [
        f"{name} is {value!r}, it has {only!r} only"
        for name, (value, only) in needed.items()
        if value != only
    ]
    if problems:
        raise ConversionError(
            f"diffusers' AmusedPipeline cannot be this run: {'; '.join(problems)}"
        )


def _make(config: ConfigDict, tensors: Mapping[str, np.ndarray] | None = None) -> UViT:
    return uvit.make_uvit(config, *(uvit.text_widths(tensors, config) if tensors else ()))


AMUSED = Released(
    family="amused",
    title="aMUSEd masked transformer",
    usage=DRAW,
    marks=("embed.embeddings.weight", "encoder_proj.weight", "mlm_layer.conv2.weight"),
    runs={"method": "tokens", "cell.network": "uvit"},
    preset="muse:amused_256",
    make=_make,
    names=uvit.NAMES,
    own="predictor",
    infer=uvit.infer_uvit,
    block="uvit",
    heads=({"num_heads": "width", "conv_heads": "conv_width"}, uvit.HEAD_WIDTH),
    foreign=uvit.UVIT_CONFIG,
    told=None,
    forms=("diffusers",),
    extra=_extra,
    settle=_settle,
    needs={
        "tokenizer": ("tokenizer", "VQGAN_RUN"),
        "clip": ("clip.folder", "CLIP_FOLDER"),
    },
    together=True,
    tokenizer=("codebook_size", "codes"),
    check=_check,
    carry=carry_tokens,
    check_run=_check_run,
    open_folder=amused_folder.open_folder,
    open_run=amused_folder.open_run,
)
