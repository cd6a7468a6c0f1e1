"""Semantic compressor: torch names <-> our variables (docs/models/wuerstchen.md 3).

The name table is in `encoders/compressor_names.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from paella_jax.convert.released import DEFAULT, SHAPES, Beside, Found
from paella_jax.encoders.compressor_names import BACKBONE, MAPPER, NAMES
from paella_jax.families.stage_b import COMPRESSOR, compressor_variables, make_compressor
from paella_jax.files import weights_file
from paella_jax.files.tensors import ConversionError, Weights
from paella_jax.models.compressor import VARIANTS


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
