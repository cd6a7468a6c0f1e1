"""OpenCLIP's names for CLIP's towers (ViT-H-14 and its like) <-> our parameters.

OpenCLIP joins query, key and value in one tensor and stores the projections as [width, out]. How
many heads there are cannot be seen in the tensors: `open_clip_settings` reads it from their config.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paella_jax.convert.clip import linear_entries, norm_entries, text_shapes, vision_shapes
from paella_jax.convert.hf_folder import errors_name, read_json, read_safetensors
from paella_jax.convert.tensors import ConversionError, Entry, export_tensors, import_tensors
from paella_jax.encoders.clip_text import ClipText
from paella_jax.encoders.clip_vision import ClipVision

Tree = dict[str, Any]
Tensors = Mapping[str, np.ndarray]

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
VISION = "visual."
PARTS = ("query", "key", "value")
# Of the training, and constants that some files hold.
NOT_WEIGHTS = ("logit_scale", "logit_bias", "attn_mask")


def _block_entries(prefix: str, num_layers: int) -> list[Entry]:
    entries = []
    for i in range(num_layers):
        name, path = f"{prefix}transformer.resblocks.{i}", ("transformer", f"block_{i}")
        entries += norm_entries(f"{name}.ln_1", *path, "attention_norm")
        for part in PARTS:
            kernel, bias = ((*path, "attention", part, leaf) for leaf in ("kernel", "bias"))
            entries.append(Entry(f"{name}.attn.in_proj_weight[{part}]", kernel, "linear"))
            entries.append(Entry(f"{name}.attn.in_proj_bias[{part}]", bias))
        entries += linear_entries(f"{name}.attn.out_proj", *path, "attention", "out")
        entries += norm_entries(f"{name}.ln_2", *path, "mlp_norm")
        entries += linear_entries(f"{name}.mlp.c_fc", *path, "mlp_in")
        entries += linear_entries(f"{name}.mlp.c_proj", *path, "mlp_out")
    return entries


def open_clip_text_entries(module: ClipText) -> list[Entry]:
    """The tensor table of a text tower, with the joint tensors split."""
    entries = [
        Entry("token_embedding.weight", ("token_embedding",)),
        Entry("positional_embedding", ("position_embedding",)),
        *_block_entries("", module.num_layers),
        *norm_entries("ln_final", "final_norm"),
    ]
    if module.projection is not None:
        entries.append(Entry("text_projection", ("to_embedding", "kernel")))
    return entries


def open_clip_vision_entries(module: ClipVision) -> list[Entry]:
    """The tensor table of a vision tower, with the joint tensors split."""
    entries = [
        Entry(f"{VISION}class_embedding", ("class_embedding",)),
        Entry(f"{VISION}conv1.weight", ("patch_kernel",), "conv"),
        Entry(f"{VISION}positional_embedding", ("position_embedding",)),
        *norm_entries(f"{VISION}ln_pre", "pre_norm"),
        *_block_entries(VISION, module.num_layers),
        *norm_entries(f"{VISION}ln_post", "post_norm"),
    ]
    if module.projection is not None:
        entries.append(Entry(f"{VISION}proj", ("to_embedding", "kernel")))
    return entries


def import_open_clip_text(tensors: Tensors, module: ClipText) -> Tree:
    """OpenCLIP tensors -> `module`'s parameters, values and dtypes unchanged; no vision tower's.

    Raises:
      ConversionError: listing every missing, unknown and misshapen tensor.
    """
    own = {name: array for name, array in tensors.items() if _is_text(name)}
    return import_tensors(open_clip_text_entries(module), _split(own), text_shapes(module))


def import_open_clip_vision(tensors: Tensors, module: ClipVision) -> Tree:
    """OpenCLIP tensors -> `module`'s parameters, values and dtypes unchanged; no text tower's.

    Raises:
      ConversionError: listing every missing, unknown and misshapen tensor.
    """
    own = {name: array for name, array in tensors.items() if name.startswith(VISION)}
    return import_tensors(open_clip_vision_entries(module), _split(own), vision_shapes(module))


def export_open_clip_text(params: Tree, module: ClipText) -> dict[str, np.ndarray]:
    """`module`'s parameters -> OpenCLIP tensors of the text tower, values unchanged."""
    return _joined(export_tensors(open_clip_text_entries(module), params))


def export_open_clip_vision(params: Tree, module: ClipVision) -> dict[str, np.ndarray]:
    """`module`'s parameters -> OpenCLIP tensors of the vision tower, values unchanged."""
    return _joined(export_tensors(open_clip_vision_entries(module), params))


def open_clip_settings(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the tensors do not show, from an `open_clip_config.json` (or its inner `model_cfg`).

    Returns:
      `num_heads` and `activation` of the text tower and of the vision tower.

    Raises:
      ConversionError: the config has no such towers.
    """
    model = config.get("model_cfg", config)
    text, vision = model.get("text_cfg"), model.get("vision_cfg")
    if not isinstance(text, dict) or not isinstance(vision, dict) or "width" not in vision:
        raise ConversionError(
            "the OpenCLIP config lacks text_cfg, or vision_cfg with a width; give the "
            f"{CONFIG} of a model like ViT-H-14"
        )
    activation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    heads = vision["width"] // vision.get("head_width", 64)
    return (
        {"num_heads": text.get("heads", 8), "activation": activation},
        {"num_heads": heads, "activation": activation},
    )


def clip_text_from_open_clip(
    tensors: Tensors, num_heads: int, activation: str = "gelu"
) -> ClipText:
    """The text tower these tensors belong to. ViT-H-14 has 16 heads.

    Raises:
      ConversionError: the tensors that carry the sizes are missing.
    """
    tokens, positions = "token_embedding.weight", "positional_embedding"
    hidden = "transformer.resblocks.0.mlp.c_fc.weight"
    _require(tensors, (tokens, positions, hidden), "text")
    vocab_size, width = tensors[tokens].shape
    projection = tensors.get("text_projection")
    return ClipText(
        vocab_size=vocab_size,
        max_length=len(tensors[positions]),
        width=width,
        num_layers=_num_layers(tensors, ""),
        num_heads=num_heads,
        hidden_dim=len(tensors[hidden]),
        projection=None if projection is None else projection.shape[-1],
        activation=activation,
    )


def clip_vision_from_open_clip(
    tensors: Tensors, num_heads: int, activation: str = "gelu"
) -> ClipVision:
    """The vision tower these tensors belong to. ViT-H-14 has 16 heads.

    Raises:
      ConversionError: the tensors that carry the sizes are missing.
    """
    patches, positions = f"{VISION}conv1.weight", f"{VISION}positional_embedding"
    hidden = f"{VISION}transformer.resblocks.0.mlp.c_fc.weight"
    _require(tensors, (patches, positions, hidden), "vision")
    width, channels, patch_size, _ = tensors[patches].shape
    projection = tensors.get(f"{VISION}proj")
    return ClipVision(
        image_size=patch_size * round((len(tensors[positions]) - 1) ** 0.5),
        patch_size=patch_size,
        width=width,
        num_layers=_num_layers(tensors, VISION),
        num_heads=num_heads,
        hidden_dim=len(tensors[hidden]),
        projection=None if projection is None else projection.shape[-1],
        activation=activation,
        channels=channels,
    )


def load_open_clip_text(path: str | Path) -> tuple[ClipText, Tree]:
    """Reads the text tower of an OpenCLIP folder: its config and safetensors weights.

    Raises:
      FileNotFoundError: a file is not there.
      ConversionError: a file cannot be read, or is no such model.
    """
    folder = Path(path)
    settings, tensors = _read_folder(folder, 0)
    with errors_name(folder):
        module = clip_text_from_open_clip(tensors, **settings)
        return module, import_open_clip_text(tensors, module)


def load_open_clip_vision(path: str | Path) -> tuple[ClipVision, Tree]:
    """Reads the vision tower of an OpenCLIP folder: its config and safetensors weights.

    Raises:
      FileNotFoundError: a file is not there.
      ConversionError: a file cannot be read, or is no such model.
    """
    folder = Path(path)
    settings, tensors = _read_folder(folder, 1)
    with errors_name(folder):
        module = clip_vision_from_open_clip(tensors, **settings)
        return module, import_open_clip_vision(tensors, module)


def _read_folder(folder: Path, tower: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; download it from the model's page")
    with errors_name(folder / CONFIG):
        settings = open_clip_settings(read_json(folder / CONFIG))[tower]
    wanted = (lambda name: name.startswith(VISION)) if tower else _is_text
    return settings, read_safetensors(folder / WEIGHTS, wanted)


def _is_text(name: str) -> bool:
    return not name.startswith(VISION) and name not in NOT_WEIGHTS


def _split(tensors: Tensors) -> dict[str, np.ndarray]:
    """Joint projections as three tensors each, named "...in_proj_weight[query]" and so on."""
    split: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        if re.search(r"\.attn\.in_proj_(weight|bias)$", name) and len(array) % len(PARTS) == 0:
            pieces = np.split(array, len(PARTS))
            split |= {f"{name}[{part}]": piece for part, piece in zip(PARTS, pieces, strict=True)}
        else:
            split[name] = array
    return split


def _joined(tensors: Tensors) -> dict[str, np.ndarray]:
    """The inverse of `_split`."""
    joined: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        if name.endswith(f"[{PARTS[0]}]"):
            joint = name.removesuffix(f"[{PARTS[0]}]")
            joined[joint] = np.concatenate([tensors[f"{joint}[{part}]"] for part in PARTS])
        elif not name.endswith("]"):
            joined[name] = array
    return joined


def _num_layers(tensors: Tensors, prefix: str) -> int:
    pattern = re.escape(prefix) + r"transformer\.resblocks\.(\d+)\."
    found = (re.match(pattern, name) for name in tensors)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _require(tensors: Tensors, names: tuple[str, ...], tower: str) -> None:
    absent = [name for name in names if name not in tensors]
    if absent:
        raise ConversionError(
            f"no OpenCLIP {tower} tower: {', '.join(absent)} missing; expected the tensors of a "
            "model like ViT-H-14"
        )
