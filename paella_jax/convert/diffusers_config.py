"""config.json in diffusers' layout: reading any, and Würstchen's.

Source: docs/models/wuerstchen.md 1 and 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paella_jax.convert.wuerstchen import (
    stage_b_from_reference_config,
    stage_c_from_reference_config,
)
from paella_jax.files import hf_folder
from paella_jax.files.tensors import ConversionError
from paella_jax.models.stage_b import StageB
from paella_jax.models.stage_c import StageC

CLASSES = {"stage_b": "WuerstchenDiffNeXt", "stage_c": "WuerstchenPrior"}
# What the weights do not tell.
UNTOLD = {
    "stage_b": ("num_heads", "dropout", "patch_size", "latent_channels"),
    "stage_c": ("num_heads", "dropout"),
}


def read_model(file: Path, model_class: str, make: Callable[[Mapping[str, Any]], Any]) -> Any:
    """Our module for a diffusers config.json.

    Args:
      file: the config.json.
      model_class: diffusers' class it must be of.
      make: its content -> the module.

    Raises:
      ConversionError: it is of another class, or lacks fields.
      ValueError: it has an option that ours does not have.
    """
    config = hf_folder.read_json(file)
    if config.get("_class_name") != model_class:
        raise ConversionError(
            f"{file} is of a {config.get('_class_name')!r}, not of a {model_class}"
        )
    with hf_folder.errors_name(file):
        try:
            return make(config)
        except KeyError as error:
            raise ConversionError(f"has no field {error}; download it again") from error


def read_untold_fields(file: Path, family: str) -> dict[str, Any]:
    """Fields of a Würstchen stage that a diffusers config.json tells and its weights do not.

    Raises:
      ConversionError, ValueError: as `read_model`.
    """
    make = {"stage_b": stage_b_from_reference_config, "stage_c": stage_c_from_reference_config}
    model = read_model(file, CLASSES[family], make[family])
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
