"""Würstchen's Stages B and C: original and diffusers names <-> our parameters.

Source: docs/models/wuerstchen.md 6.

The two naming schemes differ in the attention only: diffusers keeps queries, keys and values as
three matrices. For its table our joint projection is split into three and joined again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.convert.blocks import (
    block_entries,
    block_kinds,
    level_entries,
    linear_entries,
    matching_shapes,
    needed_shape,
    period,
)
from paella_jax.files.tensors import (
    ConversionError,
    Entry,
    export_tensors,
    flatten,
    import_tensors,
    unflatten,
)
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.stage_b import StageB
from paella_jax.models.stage_c import StageC

RELEASED_HEAD_WIDTH = 64
RELEASED_PATCH_SIZE = 2
# Network and its released file, for error messages.
STAGE_B, STAGE_C = ("Stage B", "model_v2_stage_b.pt"), ("Stage C", "model_v2_stage_c.pt")
TEXT_B, TEXT_C = "clip_mapper.weight", "cond_mapper.0.weight"  # what the text goes through
PROJECTIONS = ("query", "key", "value")
# Tensors of the first release's Stage B, a Paella over tokens.
TOKEN_MODEL = ("in_mapper.0.weight", "out_mapper.1.weight", "byt5_mapper.weight")


def stage_b_from_reference_config(constructor: Mapping[str, Any]) -> StageB:
    """Our module for the constructor arguments of DiffNeXt, the original's or diffusers'."""
    if constructor["c_in"] != constructor["c_out"]:
        raise ValueError("c_in and c_out must be equal (the prediction is noise in the input)")
    return StageB(
        latent_channels=constructor["c_in"],
        patch_size=constructor["patch_size"],
        time_width=constructor["c_r"],
        cond_width=constructor["c_cond"],
        widths=tuple(constructor["c_hidden"]),
        depths=tuple(constructor["blocks"]),
        num_heads=tuple(max(heads, 0) for heads in constructor["nhead"]),
        patterns=tuple(constructor["level_config"]),
        inject=tuple(constructor["inject_effnet"]),
        guide_channels=constructor["effnet_embd"],
        kernel_size=constructor["kernel_size"],
        dropout=constructor["dropout"],
        self_attention=constructor.get("self_attn", True),
    )


def stage_c_from_reference_config(constructor: Mapping[str, Any]) -> StageC:
    """Our module for the constructor arguments of Prior, the original's or diffusers'."""
    return StageC(
        channels=constructor["c_in"],
        width=constructor["c"],
        depth=constructor["depth"],
        num_heads=constructor["nhead"],
        time_width=constructor["c_r"],
        dropout=constructor["dropout"],
    )


def stage_b_entries(model: StageB, diffusers: bool = False) -> list[Entry]:
    """The name table of one configuration; diffusers' is one of split parameters."""
    entries = [
        *linear_entries("clip_mapper", "text"),
        *linear_entries("embedding.1", "embedding", "proj", layout="conv1x1"),
        *linear_entries("clf.1", "output", "proj", layout="conv1x1"),
        *level_entries(model.patterns, model.depths),
    ]
    levels = len(model.widths)
    for level in range(levels):
        if model.inject[level]:
            # One list for both ways: the levels going down, then the levels going up.
            places = {"down": level, "up": 2 * levels - 1 - level}
            for side, place in places.items():
                name = f"effnet_mappers.{place}"
                entries += linear_entries(name, f"{side}_{level}_guide", layout="conv1x1")
    return _diffusers_entries(entries) if diffusers else entries


def stage_c_entries(model: StageC, diffusers: bool = False) -> list[Entry]:
    """The name table of one configuration; diffusers' is one of split parameters."""
    entries = [
        *linear_entries("projection", "projection", layout="conv1x1"),
        *linear_entries("cond_mapper.0", "text_in"),
        *linear_entries("cond_mapper.2", "text_out"),
        *linear_entries("out.1", "output", layout="conv1x1"),
    ]
    for index, kind in enumerate("CTA" * model.depth):
        entries += block_entries(kind, f"blocks.{index}", f"block_{index}")
    return _diffusers_entries(entries) if diffusers else entries


def _diffusers_entries(entries: list[Entry]) -> list[Entry]:
    renamed = []
    for entry in entries:
        block, attention, rest = entry.name.partition(".attention.attn.")
        if not attention:
            renamed.append(entry)
        elif rest.startswith("in_proj_"):
            kind = rest.removeprefix("in_proj_")
            renamed += [
                Entry(f"{block}.attention.to_{part[0]}.{kind}", (*entry.path, part), entry.layout)
                for part in PROJECTIONS
            ]
        else:
            name = f"{block}.attention.{rest.replace('out_proj', 'to_out.0')}"
            renamed.append(entry._replace(name=name))
    return renamed


def _split_projections(params: Mapping[str, Any]) -> dict[str, Any]:
    """Attention's joint input projections as {"query", "key", "value"}; views for numpy arrays."""
    flat: dict[tuple[str, ...], Any] = {}
    for path, leaf in flatten(params).items():
        if path[-1] in ("in_kernel", "in_bias"):
            width = leaf.shape[-1] // 3
            for i, part in enumerate(PROJECTIONS):
                flat[*path, part] = leaf[..., i * width : (i + 1) * width]
        else:
            flat[path] = leaf
    return unflatten(flat)


def _join_projections(params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_split_projections`."""
    flat = flatten(params)
    for path in [path for path in flat if path[-1] == PROJECTIONS[0]]:
        parts = [flat.pop((*path[:-1], part)) for part in PROJECTIONS]
        flat[path[:-1]] = np.concatenate(parts, axis=-1)
    return unflatten(flat)


def abstract_stage_b(model: StageB, text_width: int) -> dict[str, Any]:
    """Shapes of all parameters; nothing is computed."""
    size = model.grid_divisor
    return _abstract(model, (1, size, size, model.latent_channels), text_width)


def abstract_stage_c(model: StageC, text_width: int) -> dict[str, Any]:
    """Shapes of all parameters; nothing is computed."""
    return _abstract(model, (1, 1, 1, model.channels), text_width)


def _abstract(model: StageB | StageC, shape: tuple[int, ...], text_width: int) -> dict[str, Any]:
    cond = Conditioning(text=jnp.zeros((1, 1, text_width)))
    init = lambda: model.init(jax.random.key(0), jnp.zeros(shape), jnp.zeros((1,)), cond)
    return jax.eval_shape(init)["params"]


def import_stage_b(tensors: Mapping[str, np.ndarray], model: StageB) -> dict[str, Any]:
    """State dict with original or diffusers names -> our parameters.

    Raises:
      ConversionError: listing every misfit, or the file is the first release's token model.
    """
    refuse_token_model(tensors)
    expected = abstract_stage_b(model, text_width(tensors, TEXT_B))
    return _import(stage_b_entries(model, is_diffusers(tensors)), tensors, expected)


def import_stage_c(tensors: Mapping[str, np.ndarray], model: StageC) -> dict[str, Any]:
    """State dict with original or diffusers names -> our parameters.

    Raises:
      ConversionError: listing every misfit.
    """
    expected = abstract_stage_c(model, text_width(tensors, TEXT_C))
    return _import(stage_c_entries(model, is_diffusers(tensors)), tensors, expected)


def export_stage_b(
    params: Mapping[str, Any], model: StageB, diffusers: bool = False, copy: bool = True
) -> dict[str, np.ndarray]:
    """Our parameters -> original or diffusers state dict; `copy` as in `export_tensors`."""
    return _export(stage_b_entries(model, diffusers), params, diffusers, copy)


def export_stage_c(
    params: Mapping[str, Any], model: StageC, diffusers: bool = False, copy: bool = True
) -> dict[str, np.ndarray]:
    """Our parameters -> original or diffusers state dict; `copy` as in `export_tensors`."""
    return _export(stage_c_entries(model, diffusers), params, diffusers, copy)


def _import(
    entries: list[Entry], tensors: Mapping[str, np.ndarray], expected: Mapping[str, Any]
) -> dict[str, Any]:
    if not is_diffusers(tensors):
        return import_tensors(entries, tensors, expected)
    split = jax.eval_shape(_split_projections, expected)
    return _join_projections(import_tensors(entries, tensors, split))


def _export(
    entries: list[Entry], params: Mapping[str, Any], diffusers: bool, copy: bool
) -> dict[str, np.ndarray]:
    return export_tensors(entries, _split_projections(params) if diffusers else params, copy)


def is_diffusers(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether attention has diffusers' names."""
    return any(".attention.to_" in name for name in tensors)


def text_width(tensors: Mapping[str, np.ndarray], name: str) -> int:
    """Width of the text states that the layer TEXT_B or TEXT_C takes; 1 if it is not there."""
    shape = np.shape(tensors[name]) if name in tensors else ()
    return shape[1] if len(shape) == 2 else 1  # a misfit is reported with all the others


def refuse_token_model(tensors: Mapping[str, np.ndarray]) -> None:
    """Raises ConversionError for the first release's Stage B."""
    found = [name for name in TOKEN_MODEL if name in tensors]
    if found:
        raise ConversionError(
            f"this Stage B works on tokens (it has {', '.join(found)}): a Paella, as in the first "
            "Würstchen release; only the second release's is supported, give its "
            "model_v2_stage_b.pt or diffusers decoder"
        )


def infer_stage_b(
    tensors: Mapping[str, np.ndarray], head_width: int = RELEASED_HEAD_WIDTH
) -> dict[str, Any]:
    """Fields of `StageB` from a state dict's names and shapes, original or diffusers.

    Not told by them: `dropout`, `self_attention`, the number of heads and how the patched channels
    divide into patch and latent channels (the patch size is taken as the release's 2). `num_heads`
    is there only where every level with attention can have heads of `head_width`.

    Raises:
      ConversionError: tensors that carry the sizes are missing or do not belong together, or the
        file is the first release's token model.
    """
    refuse_token_model(tensors)
    shape = lambda name, rank: needed_shape(tensors, name, rank, *STAGE_B)
    width, patched = shape("embedding.1.weight", 4)[:2]
    if patched % RELEASED_PATCH_SIZE**2:
        raise ConversionError(
            f"not a Stage B: embedding.1.weight takes {patched} channels, which are no "
            f"{RELEASED_PATCH_SIZE}x{RELEASED_PATCH_SIZE} patches; give the model's config"
        )
    # Both schemes alike: attention is known by its input projection.
    named_alike = {_original_name(name): x for name, x in tensors.items()}
    levels = block_kinds(named_alike, STAGE_B[0])
    downs = [f"down_blocks.{level}.0.1.weight" for level in range(1, len(levels))]
    widths = (width, *(shape(name, 4)[0] for name in downs))
    patterns = tuple(period(kinds) for kinds in levels)
    inject = tuple(f"effnet_mappers.{level}.weight" in tensors for level in range(len(levels)))
    fields: dict[str, Any] = {
        "latent_channels": patched // RELEASED_PATCH_SIZE**2,
        "patch_size": RELEASED_PATCH_SIZE,
        "cond_width": shape("clip_mapper.weight", 2)[0],
        "widths": widths,
        "depths": tuple(len(k) // len(p) for k, p in zip(levels, patterns, strict=True)),
        "patterns": patterns,
        "inject": inject,
    }
    if any(inject):
        mapper = f"effnet_mappers.{inject.index(True)}.weight"
        fields["guide_channels"] = shape(mapper, 4)[1]
    fields |= _block_fields(tensors, r"down_blocks\.\d+\.\d+")
    pairs = list(zip(widths, patterns, strict=True))
    if all(width % head_width == 0 for width, pattern in pairs if "A" in pattern):
        fields["num_heads"] = tuple(w // head_width if "A" in p else 0 for w, p in pairs)
    return fields


def infer_stage_c(
    tensors: Mapping[str, np.ndarray], head_width: int = RELEASED_HEAD_WIDTH
) -> dict[str, Any]:
    """Fields of `StageC` from a state dict's names and shapes, original or diffusers.

    Not told by them: `dropout`, `self_attention` and the number of heads. `num_heads` is there
    only where the width can be heads of `head_width`.

    Raises:
      ConversionError: tensors that carry the sizes are missing.
    """
    shape = lambda name, rank: needed_shape(tensors, name, rank, *STAGE_C)
    width, channels = shape("projection.weight", 4)[:2]
    shape("blocks.0.depthwise.weight", 4)
    numbers = [re.match(r"blocks\.(\d+)\.", name) for name in tensors]
    blocks = 1 + max(int(number[1]) for number in numbers if number)
    fields: dict[str, int] = {
        "channels": channels,
        "width": width,
        "depth": -(-blocks // len("CTA")),
    }
    fields |= _block_fields(tensors, r"blocks\.\d+")
    if width % head_width == 0:
        fields["num_heads"] = width // head_width
    return fields


def _original_name(name: str) -> str:
    return name.replace(".attention.to_q.", ".attention.attn.in_proj_")


def _block_fields(tensors: Mapping[str, np.ndarray], block: str) -> dict[str, int]:
    """What the first T block and the first C block tell."""
    fields: dict[str, int] = {}
    for tensor, axis, rank, field in (
        ("mapper", 1, 2, "time_width"),
        ("depthwise", 3, 4, "kernel_size"),
    ):
        found = matching_shapes(tensors, rf"{block}\.{tensor}\.weight", rank)
        size = found[0][axis] if found else None
        fields |= {} if size is None else {field: size}
    return fields
