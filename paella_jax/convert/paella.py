"""Paella token predictor: original names <-> our parameters (reference/paella.md 6)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.convert.tensors import (
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


def _linear(name: str, *path: str, layout: str = "linear") -> list[Entry]:
    return [
        Entry(f"{name}.weight", (*path, "kernel"), layout),
        Entry(f"{name}.bias", (*path, "bias")),
    ]


def _mlp(name: str, path: str) -> list[Entry]:
    return [
        *_linear(f"{name}.0", path, "mlp", "expand"),
        Entry(f"{name}.2.gamma", (path, "mlp", "response_norm", "gamma"), "channel"),
        Entry(f"{name}.2.beta", (path, "mlp", "response_norm", "beta"), "channel"),
        *_linear(f"{name}.4", path, "mlp", "contract"),
    ]


def _block(kind: str, name: str, path: str) -> list[Entry]:
    if kind == "C":
        depthwise = _linear(f"{name}.depthwise", path, "depthwise", layout="conv")
        return [*depthwise, *_mlp(f"{name}.channelwise", path)]
    if kind == "T":
        return _linear(f"{name}.mapper", path, "mapper")
    if kind == "F":
        return _mlp(f"{name}.channelwise", path)
    attention = f"{name}.attention.attn"
    return [
        Entry(f"{attention}.in_proj_weight", (path, "attention", "in_kernel"), "linear"),
        Entry(f"{attention}.in_proj_bias", (path, "attention", "in_bias")),
        *_linear(f"{attention}.out_proj", path, "attention", "out"),
        *_linear(f"{name}.kv_mapper.1", path, "kv_mapper"),
    ]


def paella_entries(model: Paella) -> list[Entry]:
    """The name table of one configuration of the token predictor."""
    entries = [
        Entry("in_mapper.0.weight", ("token_table",)),
        Entry("out_mapper.1.weight", ("classifier",), "conv1x1"),
        *_linear("embedding.1", "embedding", "proj", layout="conv1x1"),
        *_linear("clf.1", "output", "proj", layout="conv1x1"),
        *_linear("byt5_mapper", "conditioning", "text"),
        *_linear("clip_mapper", "conditioning", "clip_text"),
        *_linear("clip_image_mapper", "conditioning", "clip_image"),
    ]
    levels = len(model.widths)
    for level in range(levels):
        kinds = model.patterns[level] * model.depths[level]
        # The reference keeps the downsampling as entry 0 of its level, the upsampling as the last.
        offset = 1 if level > 0 else 0
        theirs_up = levels - 1 - level
        if level > 0:
            down, up = f"down_{level}_downsample", f"up_{level}_upsample"
            entries += _linear(f"down_blocks.{level}.0.1", down, layout="conv")
            name = f"up_blocks.{theirs_up}.{len(kinds)}.1"
            entries += _linear(name, up, layout="conv_transpose")
        for index, kind in enumerate(kinds):
            name = f"down_blocks.{level}.{index + offset}"
            entries += _block(kind, name, f"down_{level}_block_{index}")
            name = f"up_blocks.{theirs_up}.{index}"
            entries += _block(kind, name, f"up_{level}_block_{index}")
    return entries


# What a block of each kind is known by: the first tensor below its name.
_KINDS = (
    (r"depthwise\.weight", "C"),
    (r"mapper\.weight", "T"),
    (r"attention\.attn\.in_proj_weight", "A"),
    (r"channelwise\.0\.weight", "F"),
)
RELEASED_HEAD_WIDTH = 80


def infer_paella(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Fields of `Paella` from a state dict's names and shapes.

    Not told by them: `dropout`, `self_attention`, `remat` and the number of heads. `num_heads` is
    there only where every level with attention can have heads 80 wide, as the released model's.

    Raises:
      ConversionError: tensors that carry the sizes are missing or do not belong together.
    """
    shape = lambda name, rank: _shape(tensors, name, rank)
    codes, token_width = shape("in_mapper.0.weight", 2)
    cond_width = shape("byt5_mapper.weight", 2)[0]
    width, patched = shape("embedding.1.weight", 4)[:2]
    fields: dict[str, Any] = {"codebook_size": codes, "token_width": token_width}
    fields["patch_size"] = math.isqrt(patched // token_width)
    fields["cond_width"] = cond_width
    clip = next((n for n in ("clip_mapper", "clip_image_mapper") if f"{n}.weight" in tensors), None)
    if clip is not None:
        fields["clip_tokens"] = shape(f"{clip}.weight", 2)[0] // cond_width
    levels = _block_kinds(tensors)
    downs = [f"down_blocks.{i}.0.1.weight" for i in range(1, len(levels))]
    widths = (width, *(shape(name, 4)[0] for name in downs))
    periods = [_period(kinds) for kinds in levels]
    fields["widths"], fields["patterns"] = widths, tuple(periods)
    fields["depths"] = tuple(len(k) // len(p) for k, p in zip(levels, periods, strict=True))
    block = r"down_blocks\.\d+\.\d+"
    mappers = _shapes(tensors, rf"{block}\.mapper\.weight", 2)
    kernels = _shapes(tensors, rf"{block}\.depthwise\.weight", 4)
    fields |= {"time_width": mappers[0][1]} if mappers else {}
    fields |= {"kernel_size": kernels[0][3]} if kernels else {}
    attending = [width for width, pattern in zip(widths, periods, strict=True) if "A" in pattern]
    if all(width % RELEASED_HEAD_WIDTH == 0 for width in attending):
        pairs = zip(widths, periods, strict=True)
        fields["num_heads"] = tuple(w // RELEASED_HEAD_WIDTH if "A" in p else 0 for w, p in pairs)
    return fields


def _shapes(tensors: Mapping[str, np.ndarray], pattern: str, rank: int) -> list[tuple[int, ...]]:
    shapes = [np.shape(x) for name, x in tensors.items() if re.fullmatch(pattern, name)]
    return [shape for shape in shapes if len(shape) == rank]


def _shape(tensors: Mapping[str, np.ndarray], name: str, rank: int) -> tuple[int, ...]:
    found = np.shape(tensors[name]) if name in tensors else None
    if found is None or len(found) != rank or 0 in found:
        state = "is missing" if found is None else f"has shape {found}"
        raise ConversionError(
            f"not a whole Paella: {name}, which tells its sizes, {state}; expected the state dict "
            "of paella_v3.pt or of a model of its kind"
        )
    return found


def _block_kinds(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """The blocks of every level of the way down, such as "CTCT"."""
    found: dict[int, dict[int, str]] = {}
    for name in tensors:
        place = re.match(r"down_blocks\.(\d+)\.(\d+)\.(.+)", name)
        for pattern, kind in _KINDS if place else ():
            assert place is not None
            blocks = found.setdefault(int(place[1]), {})
            # A C block has a "channelwise" too, so F never replaces what is there.
            if re.fullmatch(pattern, place[3]) and (kind != "F" or int(place[2]) not in blocks):
                blocks[int(place[2])] = kind
    levels = [found.get(level, {}) for level in range(max(found, default=-1) + 1)]
    for level, blocks in enumerate(levels):
        first = 1 if level else 0  # before it is the downsampling
        if not blocks or sorted(blocks) != list(range(first, first + len(blocks))):
            raise ConversionError(
                f"not a whole Paella: down_blocks.{level} has blocks of known kinds at "
                f"{sorted(blocks)}, they must be numbered from {first} without gaps"
            )
    if not levels:
        raise ConversionError("not a whole Paella: it has no down_blocks")
    return ["".join(blocks[i] for i in sorted(blocks)) for blocks in levels]


def _period(kinds: str) -> str:
    """The shortest pattern whose repetition gives `kinds`."""
    sizes = (n for n in range(1, len(kinds) + 1) if len(kinds) % n == 0)
    return next(kinds[:n] for n in sizes if kinds[:n] * (len(kinds) // n) == kinds)


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
    text = _shape(tensors, "byt5_mapper.weight", 2)[1]
    if not any(name.startswith("clip_") for name in tensors):
        return text, None
    return text, _shape(tensors, "clip_mapper.weight", 2)[1]


def import_paella(tensors: Mapping[str, np.ndarray], model: Paella) -> dict[str, Any]:
    """Original state dict -> our parameters. Raises ConversionError listing every misfit.

    A file without any tensor of the CLIP mappers gives a model without them.
    """
    has_clip = any(name.startswith("clip_") for name in tensors)
    text, clip = (
        (_shapes(tensors, rf"{name}\.weight", 2) or [(1, 1)])[0][1]
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
