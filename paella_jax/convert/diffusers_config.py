"""config.json of Würstchen's stages in diffusers' layout (reference/wuerstchen.md 1 and 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paella_jax.convert import hf_folder
from paella_jax.convert.tensors import ConversionError
from paella_jax.convert.wuerstchen import (
    stage_b_from_reference_config,
    stage_c_from_reference_config,
)
from paella_jax.models.stage_b import StageB
from paella_jax.models.stage_c import StageC

CLASSES = {"stage_b": "WuerstchenDiffNeXt", "stage_c": "WuerstchenPrior"}
# What the weights do not tell.
UNTOLD = {
    "stage_b": ("num_heads", "dropout", "patch_size", "latent_channels"),
    "stage_c": ("num_heads", "dropout"),
}


def read_untold_fields(file: Path, family: str) -> dict[str, Any]:
    """Fields of our network that a diffusers config.json tells and its weights do not.

    Raises:
      ConversionError: it is of another class, or lacks fields.
    """
    config = hf_folder.read_json(file)
    if config.get("_class_name") != CLASSES[family]:
        raise ConversionError(
            f"{file} is of a {config.get('_class_name')!r}, not of a {CLASSES[family]}"
        )
    make = {"stage_b": stage_b_from_reference_config, "stage_c": stage_c_from_reference_config}
    with hf_folder.errors_name(file):
        try:
            model = make[family](config)
        except KeyError as error:
            raise ConversionError(f"has no field {error}; download it again") from error
    return {name: getattr(model, name) for name in UNTOLD[family]}


def diffusers_stage_b_config(model: StageB, text_width: int) -> dict[str, Any]:
    """The inverse of `stage_b_from_reference_config`: what config.json holds.

    Raises:
      ConversionError: a network that diffusers' class cannot be.
    """
    _require_fixed("stage_b", {"self_attention": (model.self_attention, True)})
    return {
        "_class_name": CLASSES["stage_b"],
        "c_in": model.latent_channels,
        "c_out": model.latent_channels,
        "c_r": model.time_width,
        "patch_size": model.patch_size,
        "c_cond": model.cond_width,
        "c_hidden": list(model.widths),
        "nhead": [heads or -1 for heads in model.num_heads],
        "blocks": list(model.depths),
        "level_config": list(model.patterns),
        "inject_effnet": list(model.inject),
        "effnet_embd": model.guide_channels,
        "clip_embd": text_width,
        "kernel_size": model.kernel_size,
        "dropout": model.dropout,
    }


def diffusers_stage_c_config(model: StageC, text_width: int) -> dict[str, Any]:
    """The inverse of `stage_c_from_reference_config`: what config.json holds.

    Raises:
      ConversionError: a network that diffusers' class cannot be.
    """
    fixed = {
        "self_attention": (model.self_attention, True),
        "kernel_size": (model.kernel_size, 3),
    }
    _require_fixed("stage_c", fixed)
    return {
        "_class_name": CLASSES["stage_c"],
        "c_in": model.channels,
        "c": model.width,
        "c_cond": text_width,
        "c_r": model.time_width,
        "depth": model.depth,
        "nhead": model.num_heads,
        "latent_size": [32, 32],  # unused, the class's default
        "dropout": model.dropout,
    }


def _require_fixed(family: str, fields: Mapping[str, tuple[Any, Any]]) -> None:
    for name, (value, needed) in fields.items():
        if value != needed:
            raise ConversionError(
                f"model.{name} is {value!r}, diffusers' {CLASSES[family]} has {needed!r} only; use "
                "--export original"
            )
