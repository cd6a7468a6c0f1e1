"""Paella token predictor: original names <-> our parameters (docs/models/paella.md 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.convert.blocks import (
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
)
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.paella import Paella


def paella_from_reference_config(constructor: Mapping[str, Any]) -> Paella:
    """Our module for the reference class's constructor arguments."""
    if constructor["c_in"] != constructor["c_out"]:
        raise ValueError("c_in and c_out must be equal (the classifier starts as the token table)")
    dropout = constructor["dropout"]
    return Paella(
        codebook_size=constructor["num_labels"],
        token_width=constructor["c_in"],
        patch_size=constructor["patch_size"],
        time_width=constructor["c_r"],
        cond_width=constructor["c_cond"],
        widths=tuple(constructor["c_hidden"]),
        depths=tuple(constructor["blocks"]),
        num_heads=tuple(constructor["nhead"]),
        patterns=tuple(constructor["level_config"]),
        clip_tokens=constructor["clip_seq_len"],
        kernel_size=constructor["kernel_size"],
        dropout=tuple(dropout) if isinstance(dropout, list | tuple) else dropout,
        self_attention=constructor["self_attn"],
    )


def paella_entries(model: Paella) -> list[Entry]:
    """The name table of one configuration of the token predictor."""
    return [
        Entry("in_mapper.0.weight", ("token_table",)),
        Entry("out_mapper.1.weight", ("classifier",), "conv1x1"),
        *linear_entries("embedding.1", "embedding", "proj", layout="conv1x1"),
        *linear_entries("clf.1", "output", "proj", layout="conv1x1"),
        *linear_entries("byt5_mapper", "conditioning", "text"),
        *linear_entries("clip_mapper", "conditioning", "clip_text"),
        *linear_entries("clip_image_mapper", "conditioning", "clip_image"),
        *level_entries(model.patterns, model.depths),
    ]


RELEASED_HEAD_WIDTH = 80
RELEASED = ("Paella", "paella_v3.pt")  # for error messages


def infer_paella(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Fields of `Paella` from a state dict's names and shapes.

    Not told by them: `dropout`, `self_attention`, `remat` and the number of heads. `num_heads` is
    there only where every level with attention can have heads 80 wide, as the released model's.

    Raises:
      ConversionError: tensors that carry the sizes are missing or do not belong together.
    """
    shape = lambda name, rank: needed_shape(tensors, name, rank, *RELEASED)
    codes, token_width = shape("in_mapper.0.weight", 2)
    cond_width = shape("byt5_mapper.weight", 2)[0]
    width, patched = shape("embedding.1.weight", 4)[:2]
    fields: dict[str, Any] = {"codebook_size": codes, "token_width": token_width}
    fields["patch_size"] = math.isqrt(patched // token_width)
    fields["cond_width"] = cond_width
    clip = next((n for n in ("clip_mapper", "clip_image_mapper") if f"{n}.weight" in tensors), None)
    if clip is not None:
        fields["clip_tokens"] = shape(f"{clip}.weight", 2)[0] // cond_width
    levels = block_kinds(tensors, RELEASED[0])
    downs = [f"down_blocks.{i}.0.1.weight" for i in range(1, len(levels))]
    widths = (width, *(shape(name, 4)[0] for name in downs))
    periods = [period(kinds) for kinds in levels]
    fields["widths"], fields["patterns"] = widths, tuple(periods)
    fields["depths"] = tuple(len(k) // len(p) for k, p in zip(levels, periods, strict=True))
    block = r"down_blocks\.\d+\.\d+"
    mappers = matching_shapes(tensors, rf"{block}\.mapper\.weight", 2)
    kernels = matching_shapes(tensors, rf"{block}\.depthwise\.weight", 4)
    fields |= {"time_width": mappers[0][1]} if mappers else {}
    fields |= {"kernel_size": kernels[0][3]} if kernels else {}
    attending = [width for width, pattern in zip(widths, periods, strict=True) if "A" in pattern]
    if all(width % RELEASED_HEAD_WIDTH == 0 for width in attending):
        pairs = zip(widths, periods, strict=True)
        fields["num_heads"] = tuple(w // RELEASED_HEAD_WIDTH if "A" in p else 0 for w, p in pairs)
    return fields


def abstract_paella(model: Paella, text_width: int, clip_width: int | None) -> dict[str, Any]:
    """Shapes of all parameters; nothing is computed.

    Every conditioning input of the release is present; `clip_width` None leaves out CLIP's.
    """
    size = model.grid_divisor
    has_clip = clip_width is not None
    cond = Conditioning(
        text=jnp.zeros((1, 1, text_width)),
        text_pooled=jnp.zeros((1, clip_width)) if has_clip else None,
        image_pooled=jnp.zeros((1, 1, clip_width)) if has_clip else None,
    )
    init = lambda: model.init(
        jax.random.key(0), jnp.zeros((1, size, size), jnp.int32), jnp.zeros((1,)), cond
    )
    return jax.eval_shape(init)["params"]


def condition_widths(tensors: Mapping[str, np.ndarray]) -> tuple[int, int | None]:
    """Widths of the text states and of CLIP's embeddings; None for a model without CLIP."""
    text = needed_shape(tensors, "byt5_mapper.weight", 2, *RELEASED)[1]
    if not any(name.startswith("clip_") for name in tensors):
        return text, None
    return text, needed_shape(tensors, "clip_mapper.weight", 2, *RELEASED)[1]


def import_paella(tensors: Mapping[str, np.ndarray], model: Paella) -> dict[str, Any]:
    """Original state dict -> our parameters. Raises ConversionError listing every misfit.

    A file without any tensor of the CLIP mappers gives a model without them.
    """
    has_clip = any(name.startswith("clip_") for name in tensors)
    text, clip = (
        (matching_shapes(tensors, rf"{name}\.weight", 2) or [(1, 1)])[0][1]
        for name in ("byt5_mapper", "clip_mapper")
    )
    expected = abstract_paella(model, text, clip if has_clip else None)
    present = set(flatten(expected))
    entries = [entry for entry in paella_entries(model) if has_clip or entry.path in present]
    return import_tensors(entries, tensors, expected)


def export_paella(
    params: Mapping[str, Any], model: Paella, copy: bool = True
) -> dict[str, np.ndarray]:
    """Our parameters -> original state dict; mappers the run never used are left out.

    Args:
      params: of the predictor.
      model: its network.
      copy: False gives transposed views, see `export_tensors`.

    Raises:
      ConversionError: parameters that the original network does not have.
    """
    present = set(flatten(params))
    entries = [entry for entry in paella_entries(model) if entry.path in present]
    extra = sorted("/".join(path) for path in present - {entry.path for entry in entries})
    if extra:
        raise ConversionError(f"the original Paella has no names for {', '.join(extra)}")
    return export_tensors(entries, params, copy)
