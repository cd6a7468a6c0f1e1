"""The semantic compressor's tensors as torch names them (docs/models/wuerstchen.md 3).

`backbone.{0..7}` are the entries of torchvision's EfficientNet `features`, `mapper.{0,1}` the
convolution and BatchNorm behind them.
"""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp

from paella_jax.files import weights_file
from paella_jax.files.tensors import Entry, Names, batch_norm, linear
from paella_jax.models.compressor import Compressor, Stage, expanded_width
from paella_jax.typing import Tree

BACKBONE, MAPPER = "backbone.", "mapper"
FEATURES, CLASSIFIER = "features.", "classifier."  # torchvision's


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


def _of_backbone(model: Compressor) -> list[Entry]:
    return [e for e in compressor_entries(model) if not e.name.startswith(MAPPER)]


NAMES = Names(compressor_entries, lambda model: (jnp.zeros((1, 32, 32, 3)),), whole=True)
BACKBONE_NAMES = Names(_of_backbone, NAMES.inputs, whole=True)


def read_backbone(file: str | Path, model: Compressor) -> Tree:
    """All of a compressor's variables but the mapper's, from torchvision's EfficientNetV2.

    Args:
      file: the weights of torchvision's classifier, such as `efficientnet_v2_s-dd5fe13b.pth`, whose
        last layer is left out.
      model: the compressor that starts from them.

    Raises:
      ConversionError: no such file, or another network's; every misfit is listed.
    """
    opened = weights_file.open_weights(file)
    named = {
        name.replace(FEATURES, BACKBONE, 1): x
        for name, x in opened.items()
        if not name.startswith(CLASSIFIER)
    }
    variables = NAMES.shapes(model)
    mapper = {kind: {MAPPER: tree[MAPPER]} for kind, tree in variables.items()}
    with weights_file.errors_name(Path(file)):
        return BACKBONE_NAMES.load(named, model, mapper)
