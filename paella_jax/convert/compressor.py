"""Semantic compressor: torch names <-> our variables (docs/models/wuerstchen.md 3).

`backbone.{0..7}` are the entries of torchvision's EfficientNet `features`, `mapper.{0,1}` the
convolution and BatchNorm behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.convert.released import DEFAULT, SHAPES, Beside, Found
from paella_jax.families.stage_b import COMPRESSOR, compressor_variables, make_compressor
from paella_jax.files import weights_file
from paella_jax.files.tensors import ConversionError, Entry, Names, Weights, batch_norm, linear
from paella_jax.models.compressor import VARIANTS, Compressor, Stage, expanded_width

BACKBONE, MAPPER = "backbone.", "mapper"


def infer_compressor(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Fields of `Compressor` from a state dict's names and shapes: S or L, and both widths.

    Raises:
      ConversionError: stem, head and mapper are not those of an S or L model. Other tables cannot
        be read off, because strides leave no trace in the shapes.
    """
    shape = lambda name: np.shape(tensors.get(name, 0))
    for variant, stages in VARIANTS.items():
        head, mapper = shape(f"{BACKBONE}{len(stages) + 1}.0.weight"), shape(f"{MAPPER}.0.weight")
        stem = shape(f"{BACKBONE}0.0.weight")
        fits = stem[:1] == (stages[0].inputs,) and head[1:2] == (stages[-1].outputs,)
        if fits and len(mapper) == 4:
            return {"variant": variant, "out_channels": mapper[0], "head_channels": head[0]}
    raise ConversionError(
        "not a compressor that can be recognised: backbone.* is neither EfficientNetV2-S nor -L, "
        "or mapper.0.weight is missing; expected the `effnet_state_dict` of a Stage B file"
    )


def _conv_norm(name: str, *path: str, layout: str = "conv") -> list[Entry]:
    """Convolution `name.0` and BatchNorm `name.1`."""
    kernel = linear(f"{name}.0", "params", *path, bias=False, layout=layout)
    return kernel + batch_norm(f"{name}.1", *path, "norm")


def _block(name: str, path: str, stage: Stage, inputs: int) -> list[Entry]:
    """torch numbers a block's layers in their order, so an absent one shifts the rest."""
    expands = expanded_width(inputs, stage.expansion) != inputs
    if stage.kind == "fused":
        layers, spatial = (["expand", "project"], "expand") if expands else (["conv"], "conv")
    else:
        layers, spatial = ["expand"] * expands + ["depthwise", "squeeze", "project"], "depthwise"
    entries = []
    for number, layer in enumerate(layers):
        if layer == "squeeze":
            for theirs, ours in (("fc1", "reduce"), ("fc2", "expand")):
                place = ("params", path, layer, ours)
                entries += linear(f"{name}.{number}.{theirs}", *place, layout="conv1x1")
        else:
            layout = "conv" if layer == spatial else "conv1x1"
            entries += _conv_norm(f"{name}.{number}", path, layer, layout=layout)
    return entries


def compressor_entries(model: Compressor) -> list[Entry]:
    """The name table of one configuration, over {"params", "batch_stats"}."""
    entries = _conv_norm(f"{BACKBONE}0", "stem")
    for index, stage in enumerate(model.stages, 1):
        for repeat in range(stage.repeats):
            inputs = stage.outputs if repeat else stage.inputs
            name, path = f"{BACKBONE}{index}.{repeat}.block", f"stage_{index}_block_{repeat}"
            entries += _block(name, path, stage, inputs)
    entries += _conv_norm(f"{BACKBONE}{len(model.stages) + 1}", "head", layout="conv1x1")
    return entries + _conv_norm(MAPPER, "mapper", layout="conv1x1")


NAMES = Names(compressor_entries, lambda model: (jnp.zeros((1, 32, 32, 3)),), whole=True)


def _found(compressor: Weights, named: set[str]) -> Found:
    mapper = np.shape(compressor.get(f"{MAPPER}.0.weight", 0))
    if "compressor.stages" in named and len(mapper) == 4:
        return {"compressor.head_channels": (mapper[1], SHAPES)}
    with weights_file.errors_name(compressor.files[0]):
        fields = infer_compressor(compressor)
    return {f"compressor.{name}": (fields[name], SHAPES) for name in ("variant", "head_channels")}


def _check(compressor: Weights, config: ConfigDict) -> None:
    makes, takes = len(compressor[f"{MAPPER}.0.weight"]), config.model.guide_channels
    if makes != takes:
        sizes = f"this compressor makes {makes} channels, Stage B takes {takes}"
        raise ConversionError(f"{sizes}; they do not belong together")


BESIDE_STAGE_B = Beside(
    name=COMPRESSOR, entry="effnet_state_dict", names=NAMES, make=make_compressor,
    found=_found, check=_check, of_run=compressor_variables,
    present={"compressor.train": (True, DEFAULT)}, without={"compressor.train": (False, DEFAULT)},
    missing="It has no compressor (no entry 'effnet_state_dict', and diffusers' folders have none)"
    ": it serves to draw from text, not to encode or reconstruct images, nor to train a Stage C. "
    "Convert again with --compressor FILE, which may be the original model_v2_stage_b.pt.",
)  # fmt: skip
