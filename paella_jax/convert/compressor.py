"""Semantic compressor: torch names <-> our variables (docs/models/wuerstchen.md 3).

`backbone.{0..7}` are the entries of torchvision's EfficientNet `features`, `mapper.{0,1}` the
convolution and BatchNorm behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.files.tensors import (
    ConversionError,
    Entry,
    export_tensors,
    flatten,
    import_tensors,
    unflatten,
)
from paella_jax.models.compressor import VARIANTS, Compressor, Stage, expanded_width, stages_of

IGNORED = "num_batches_tracked"
BACKBONE, TORCHVISION, MAPPER = "backbone.", "features.", "mapper"
EPSILONS = {"backbone_bn_eps": 1e-3, "mapper_bn_eps": 1e-5}


def compressor_from_reference_config(config: Mapping[str, Any]) -> Compressor:
    """Our module for a recorded model's table of stages and widths.

    Raises:
      ValueError: a BatchNorm epsilon that our network does not have, or an impossible table.
    """
    for name, value in EPSILONS.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name} {config[name]!r} is not supported, only {value}")
    return Compressor(
        variant=stages_of(tuple(Stage(*row) for row in config["stages"])),
        out_channels=config["c_latent"],
        head_channels=config["last_channel"],
    )


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
    norm = f"{name}.1"
    return [
        Entry(f"{name}.0.weight", ("params", *path, "kernel"), layout),
        Entry(f"{norm}.weight", ("params", *path, "norm", "scale")),
        Entry(f"{norm}.bias", ("params", *path, "norm", "bias")),
        Entry(f"{norm}.running_mean", ("batch_stats", *path, "norm", "mean")),
        Entry(f"{norm}.running_var", ("batch_stats", *path, "norm", "var")),
    ]


def _squeeze(name: str, *path: str) -> list[Entry]:
    entries = []
    for theirs, ours in (("fc1", "reduce"), ("fc2", "expand")):
        layer = ("params", *path, ours)
        entries.append(Entry(f"{name}.{theirs}.weight", (*layer, "kernel"), "conv1x1"))
        entries.append(Entry(f"{name}.{theirs}.bias", (*layer, "bias")))
    return entries


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
            entries += _squeeze(f"{name}.{number}", path, layer)
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


def abstract_compressor(model: Compressor) -> dict[str, Any]:
    """Shapes of all variables; nothing is computed."""
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))


def import_compressor(tensors: Mapping[str, np.ndarray], model: Compressor) -> dict[str, Any]:
    """State dict -> {"params", "batch_stats"}. Raises ConversionError listing every misfit."""
    ignore = [name for name in tensors if name.endswith(IGNORED)]
    entries = compressor_entries(model)
    return import_tensors(entries, tensors, abstract_compressor(model), ignore=ignore)


def import_backbone(
    tensors: Mapping[str, np.ndarray], model: Compressor, fresh: Mapping[str, Any]
) -> dict[str, Any]:
    """torchvision's own EfficientNetV2 weights, where training a compressor starts from.

    Args:
      tensors: `features.*`; the `classifier.*` is dropped.
      model: the module.
      fresh: its variables at initialisation, which the mapper is taken from.

    Returns:
      {"params", "batch_stats"}.

    Raises:
      ConversionError: listing every misfit.
    """
    entries = [
        entry._replace(name=TORCHVISION + entry.name.removeprefix(BACKBONE))
        for entry in compressor_entries(model)
        if entry.name.startswith(BACKBONE)
    ]
    ignore = [n for n in tensors if n.endswith(IGNORED) or n.startswith("classifier.")]
    mine = lambda path: path[1] == "mapper"
    whole = flatten(fresh)
    expected = unflatten({path: leaf for path, leaf in whole.items() if not mine(path)})
    loaded = flatten(import_tensors(entries, tensors, expected, ignore=ignore))
    return unflatten(loaded | {path: leaf for path, leaf in whole.items() if mine(path)})


def export_compressor(
    variables: Mapping[str, Any], model: Compressor, copy: bool = True
) -> dict[str, np.ndarray]:
    """Our variables -> state dict (without the batch counter, which nothing reads).

    `copy=False` gives transposed views, see `export_tensors`.
    """
    return export_tensors(compressor_entries(model), variables, copy)
