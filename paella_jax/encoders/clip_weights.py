"""CLIP tower weights: Hugging Face names and folders <-> our parameters.

A tower's tensors may come alone or with the other tower's (a whole CLIPModel, whose other half is
not read), with the prefix "text_model." or "vision_model." (all older files) or without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.encoders.clip_text import ClipText, clip_text_from_hf_config
from paella_jax.encoders.clip_vision import ClipVision, clip_vision_from_hf_config
from paella_jax.files.hf_folder import CONFIG, errors_name, read_config, read_weights
from paella_jax.files.tensors import Entry, export_tensors, import_tensors

Tree = dict[str, Any]
Tensors = Mapping[str, np.ndarray]

TEXT, VISION = "text_model.", "vision_model."
TEXT_PROJECTION, VISION_PROJECTION = "text_projection.weight", "visual_projection.weight"
# Not weights: the numbers 0, 1, 2, ... in files of older transformers versions.
POSITION_IDS = "embeddings.position_ids"
# What of a whole CLIPModel a tower has no use for.
NOT_TEXT = (VISION, VISION_PROJECTION, "logit_scale")
NOT_VISION = (TEXT, TEXT_PROJECTION, "logit_scale")


def norm_entries(name: str, *path: str) -> list[Entry]:
    """The two tensors of a layer norm."""
    return [Entry(f"{name}.weight", (*path, "scale")), Entry(f"{name}.bias", (*path, "bias"))]


def linear_entries(name: str, *path: str) -> list[Entry]:
    """The two tensors of a linear layer."""
    kernel = Entry(f"{name}.weight", (*path, "kernel"), "linear")
    return [kernel, Entry(f"{name}.bias", (*path, "bias"))]


def _block_entries(prefix: str, num_layers: int) -> list[Entry]:
    entries = []
    for i in range(num_layers):
        name, path = f"{prefix}encoder.layers.{i}", ("transformer", f"block_{i}")
        entries += norm_entries(f"{name}.layer_norm1", *path, "attention_norm")
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out")):
            layer = f"{name}.self_attn.{theirs}_proj"
            entries += linear_entries(layer, *path, "attention", ours)
        entries += norm_entries(f"{name}.layer_norm2", *path, "mlp_norm")
        entries += linear_entries(f"{name}.mlp.fc1", *path, "mlp_in")
        entries += linear_entries(f"{name}.mlp.fc2", *path, "mlp_out")
    return entries


def clip_text_entries(module: ClipText, prefix: str = TEXT) -> list[Entry]:
    """The tensor table of a text tower: Hugging Face names to our paths."""
    entries = [
        Entry(f"{prefix}embeddings.token_embedding.weight", ("token_embedding",)),
        Entry(f"{prefix}embeddings.position_embedding.weight", ("position_embedding",)),
        *_block_entries(prefix, module.num_layers),
        *norm_entries(f"{prefix}final_layer_norm", "final_norm"),
    ]
    if module.projection is not None:
        entries.append(Entry(TEXT_PROJECTION, ("to_embedding", "kernel"), "linear"))
    return entries


def clip_vision_entries(module: ClipVision, prefix: str = VISION) -> list[Entry]:
    """The tensor table of a vision tower: Hugging Face names to our paths."""
    entries = [
        Entry(f"{prefix}embeddings.class_embedding", ("class_embedding",)),
        Entry(f"{prefix}embeddings.patch_embedding.weight", ("patch_kernel",), "conv"),
        Entry(f"{prefix}embeddings.position_embedding.weight", ("position_embedding",)),
        # The misspelling is theirs.
        *norm_entries(f"{prefix}pre_layrnorm", "pre_norm"),
        *_block_entries(prefix, module.num_layers),
        *norm_entries(f"{prefix}post_layernorm", "post_norm"),
    ]
    if module.projection is not None:
        entries.append(Entry(VISION_PROJECTION, ("to_embedding", "kernel"), "linear"))
    return entries


def text_shapes(module: ClipText) -> Tree:
    """`module`'s parameters as shapes, without computing anything."""
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def vision_shapes(module: ClipVision) -> Tree:
    """`module`'s parameters as shapes, without computing anything."""
    images = jnp.zeros((1, module.image_size, module.image_size, module.channels))
    return jax.eval_shape(module.init, jax.random.key(0), images)["params"]


def import_clip_text(tensors: Tensors, module: ClipText) -> Tree:
    """Hugging Face tensors -> `module`'s parameters, values and dtypes unchanged.

    The vision tower's tensors are dropped.

    Raises:
      ConversionError: listing every missing, unknown and misshapen tensor.
    """
    kept, prefix = _own(tensors, NOT_TEXT), _prefix(tensors, TEXT)
    entries = clip_text_entries(module, prefix)
    return import_tensors(entries, kept, text_shapes(module), ignore=[prefix + POSITION_IDS])


def import_clip_vision(tensors: Tensors, module: ClipVision) -> Tree:
    """Hugging Face tensors -> `module`'s parameters, values and dtypes unchanged.

    The text tower's tensors are dropped.

    Raises:
      ConversionError: listing every missing, unknown and misshapen tensor.
    """
    kept, prefix = _own(tensors, NOT_VISION), _prefix(tensors, VISION)
    entries = clip_vision_entries(module, prefix)
    return import_tensors(entries, kept, vision_shapes(module), ignore=[prefix + POSITION_IDS])


def export_clip_text(params: Tree, module: ClipText, prefix: str = TEXT) -> dict[str, np.ndarray]:
    """`module`'s parameters -> Hugging Face tensors, values unchanged."""
    return export_tensors(clip_text_entries(module, prefix), params)


def export_clip_vision(
    params: Tree, module: ClipVision, prefix: str = VISION
) -> dict[str, np.ndarray]:
    """`module`'s parameters -> Hugging Face tensors, values unchanged."""
    return export_tensors(clip_vision_entries(module, prefix), params)


def load_clip_text_folder(path: str | Path) -> tuple[ClipText, Tree]:
    """Reads the text tower of a Hugging Face folder: config and weights, safetensors or
    .bin, single or sharded.

    The tower has a projection where the config or the weights say so.

    Returns:
      The module and its parameters (numpy, in the file's dtype).

    Raises:
      FileNotFoundError: the folder, its config or its weights are not there.
      ConversionError: a file cannot be read, or its tensors do not fit the config.
      ValueError: the config describes a model this tower is not.
    """
    folder = Path(path)
    config = read_config(folder)
    with errors_name(folder / CONFIG):
        module = clip_text_from_hf_config(config)
    wanted = lambda name: not name.startswith(NOT_TEXT)
    tensors = read_weights(folder, wanted, "CLIPTextModelWithProjection")
    if module.projection is None and TEXT_PROJECTION in tensors:
        module = module.clone(projection=len(tensors[TEXT_PROJECTION]))
    with errors_name(folder):
        return module, import_clip_text(tensors, module)


def load_clip_vision_folder(path: str | Path) -> tuple[ClipVision, Tree]:
    """Reads the vision tower of a Hugging Face folder, as `load_clip_text_folder` the text tower.

    Raises:
      FileNotFoundError, ConversionError, ValueError: as `load_clip_text_folder`.
    """
    folder = Path(path)
    config = read_config(folder)
    with errors_name(folder / CONFIG):
        module = clip_vision_from_hf_config(config)
    wanted = lambda name: not name.startswith(NOT_VISION)
    tensors = read_weights(folder, wanted, "CLIPVisionModelWithProjection")
    if module.projection is None and VISION_PROJECTION in tensors:
        module = module.clone(projection=len(tensors[VISION_PROJECTION]))
    with errors_name(folder):
        return module, import_clip_vision(tensors, module)


def _own(tensors: Tensors, foreign: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {name: array for name, array in tensors.items() if not name.startswith(foreign)}


def _prefix(tensors: Tensors, prefix: str) -> str:
    # Where neither form is complete the longer one makes the clearer list of missing tensors.
    bare = any(name.startswith(("embeddings.", "encoder.")) for name in tensors)
    return "" if bare else prefix
