"""Config fields of aMUSEd's two networks, from their config.json or their shapes, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paella_jax.convert.amused import (
    MICRO_CONDS,
    UVIT_CLASS,
    UVIT_FIELDS,
    infer_uvit,
    shape_of,
    uvit_from_diffusers_config,
)
from paella_jax.convert.diffusers_config import read_model
from paella_jax.convert.vqmodel import VQMODEL_CLASS, infer_vqmodel, vqmodel_from_diffusers_config
from paella_jax.files import hf_folder
from paella_jax.files.tensors import ConversionError, Weights
from paella_jax.models.uvit import UViT

CODEBOOK = "quantize.embedding.weight"
# The text encoder says these, not the config.
TEXT_FIELDS = ("text_width", "pooled_width")
VQMODEL_FIELDS = (
    "widths", "blocks_per_level", "latent_channels", "code_channels", "codebook_size",
    "norm_groups", "middle_attention", "encoder_attention", "decoder_attention",
)  # fmt: skip
RELEASED_DOWNSAMPLING = 16  # of the tokenizer


def is_vqmodel(names: Mapping[str, Any]) -> bool:
    """Whether a tokenizer's tensors are those of a diffusers VQModel."""
    return CODEBOOK in names or "encoder.conv_in.weight" in names


def config_file(weights: Weights) -> Path | None:
    """The config.json beside a diffusers model's weights, if there is one."""
    file = weights.files[0].parent / hf_folder.CONFIG
    return file if file.is_file() else None


def uvit_fields(weights: Weights) -> dict[str, Any]:
    """Fields of `config.uvit`, and `codebook_size`.

    A config.json beside the weights says all of them, so that a layer that is missing from the file
    is noticed; without one they are told by the shapes, see `infer_uvit`.

    Raises:
      ConversionError: the config.json is of another class, or tensors that carry sizes are missing.
      ValueError: the config.json has an option that ours does not have.
    """
    file = config_file(weights)
    if file is None:
        fields = infer_uvit(weights)
    else:
        model = read_model(file, UVIT_CLASS, uvit_from_diffusers_config)
        if model.micro_conds != MICRO_CONDS:  # ours would take a sixth for the noise level
            raise ConversionError(
                f"{file} has room for {model.micro_conds} micro-conditions, aMUSEd has "
                f"{MICRO_CONDS}: micro_cond_embed_dim must be {MICRO_CONDS} x micro_cond_encode_dim"
            )
        fields = {name: getattr(model, name) for name in (*UVIT_FIELDS, "micro_conds")}
    return {name: value for name, value in fields.items() if name not in TEXT_FIELDS}


def vqmodel_fields(weights: Weights) -> dict[str, Any]:
    """Fields of `VQModel`; raises as `uvit_fields`."""
    file = config_file(weights)
    if file is None:
        shape_of(weights, "encoder.down_blocks.0.resnets.0.conv1.weight", 4, VQMODEL_CLASS)
        return infer_vqmodel(weights)
    model = read_model(file, VQMODEL_CLASS, vqmodel_from_diffusers_config)
    return {name: getattr(model, name) for name in VQMODEL_FIELDS}


def sample_size(weights: Weights, downsample: bool) -> int:
    """Side of the token map that a transformer was trained on; without a config.json aMUSEd's."""
    file = config_file(weights)
    known = {} if file is None else hf_folder.read_json(file)
    return int(known.get("sample_size", 32 if downsample else 16))


def text_widths(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> tuple[int, int]:
    """Widths of the text states and of the pooled text that a transformer takes.

    Args:
      tensors: of a UVit2DModel.
      config: of the run; its micro-conditions take the rest of the condition.

    Raises:
      ConversionError: the micro-conditions alone are wider than the condition.
    """
    text = shape_of(tensors, "encoder_proj.weight", 2, UVIT_CLASS)[1]
    condition = shape_of(tensors, "cond_embed.linear_1.weight", 2, UVIT_CLASS)[1]
    return text, _pooled(condition, config)


def uvit_of_run(params: Mapping[str, Any], config: Mapping[str, Any]) -> UViT:
    """The network of a run's parameters."""
    text = params["text"]["kernel"].shape[0]
    return make_uvit(config, text, _pooled(params["condition_in"]["kernel"].shape[0], config))


def make_uvit(config: Mapping[str, Any], text_width: int, pooled_width: int) -> UViT:
    """The network of a run's config, in float32."""
    codes, fields = config["model"]["codebook_size"], dict(config["uvit"])
    fields["vocabulary_size"] = fields["vocabulary_size"] or codes + 1
    return UViT(**fields, codebook_size=codes, text_width=text_width, pooled_width=pooled_width)


def _pooled(condition: int, config: Mapping[str, Any]) -> int:
    uvit = config["uvit"]
    count, width = uvit["micro_conds"], uvit["micro_width"]
    pooled = condition - count * width
    if pooled <= 0:
        raise ConversionError(
            f"cond_embed.linear_1.weight takes {condition} inputs, but {count} "
            f"micro-conditions of width {width} leave none for the text; give the "
            f"folder with its {hf_folder.CONFIG}, or --config.uvit.micro_width=N"
        )
    return pooled


def check_published(config: Mapping[str, Any]) -> None:
    """Refuses runs that an AmusedPipeline cannot hold.

    Raises:
      ConversionError: all reasons.
    """
    needed = {
        "cell.corruption": (config["cell"]["corruption"], "mask"),
        "text.kind": (config["text"]["kind"], "clip"),
        "uvit.micro_conds": (config["uvit"]["micro_conds"], MICRO_CONDS),
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
