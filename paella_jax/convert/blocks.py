"""The blocks of Paella and Würstchen's stages (docs/models: paella.md 6, wuerstchen.md 6)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from paella_jax.files.tensors import ConversionError, Entry, linear
from paella_jax.outside import shortened
from paella_jax.typing import Tensors

KINDS = (  # what a block of each kind is known by: the first tensor below its name
    (r"depthwise\.weight", "C"),
    (r"mapper\.weight", "T"),
    (r"attention\.(attn\.in_proj_|to_q\.)weight", "A"),  # original and diffusers
    (r"channelwise\.0\.weight", "F"),
)


def block_entries(kind: str, name: str, path: str) -> list[Entry]:
    """One block; `kind` is C (convolution), T (time), A (attention) or F (feed-forward)."""
    if kind == "T":
        return linear(f"{name}.mapper", path, "mapper")
    if kind == "A":
        theirs, ours = f"{name}.attention.attn", (path, "attention")
        return [
            Entry(f"{theirs}.in_proj_weight", (*ours, "in_kernel"), "linear"),
            Entry(f"{theirs}.in_proj_bias", (*ours, "in_bias")),
            *linear(f"{theirs}.out_proj", *ours, "out"),
            *linear(f"{name}.kv_mapper.1", path, "kv_mapper"),
        ]
    convolution = linear(f"{name}.depthwise", path, "depthwise", layout="conv")
    mlp = [
        *linear(f"{name}.channelwise.0", path, "mlp", "expand"),
        *response_norm(f"{name}.channelwise.2", path, "mlp"),
        *linear(f"{name}.channelwise.4", path, "mlp", "contract"),
    ]
    return convolution + mlp if kind == "C" else mlp


def response_norm(name: str, *path: str) -> list[Entry]:
    """The global response normalisation inside a block's MLP."""
    leaves = ("gamma", "beta")
    return [Entry(f"{name}.{x}", (*path, "response_norm", x), "channel") for x in leaves]


def level_entries(patterns: Sequence[str], depths: Sequence[int]) -> list[Entry]:
    """All levels of a U-shaped network: blocks, downsampling and upsampling."""
    entries: list[Entry] = []
    for level, (pattern, depth) in enumerate(zip(patterns, depths, strict=True)):
        kinds, theirs = pattern * depth, f"up_blocks.{len(patterns) - 1 - level}"
        # The reference keeps the downsampling as entry 0 of its level, the upsampling as the last.
        first = 1 if level > 0 else 0
        if level > 0:
            down, up = f"down_{level}_downsample", f"up_{level}_upsample"
            entries += linear(f"down_blocks.{level}.0.1", down, layout="conv")
            entries += linear(f"{theirs}.{len(kinds)}.1", up, layout="conv_transpose")
        for i, kind in enumerate(kinds):
            name = f"down_blocks.{level}.{i + first}"
            entries += block_entries(kind, name, f"down_{level}_block_{i}")
            entries += block_entries(kind, f"{theirs}.{i}", f"up_{level}_block_{i}")
    return entries


def split_attention(entries: list[Entry]) -> list[Entry]:
    """The original table -> diffusers', which keeps queries, keys and values as three matrices."""
    renamed = []
    for entry in entries:
        block, _, rest = entry.name.partition(".attention.attn.")
        if rest.startswith("in_proj_"):
            names = [f"{block}.attention.to_{x}.{rest.removeprefix('in_proj_')}" for x in "qkv"]
            renamed += [Entry(n, *entry[1:3], part=(i, 3)) for i, n in enumerate(names)]
        else:
            name = entry.name.replace(".attention.attn.out_proj", ".attention.to_out.0")
            renamed.append(entry._replace(name=name))
    return renamed


SPLIT_ATTENTION = (split_attention, ".attention.to_")  # in a name of diffusers' table alone


def _block_kinds(tensors: Tensors, network: str) -> list[str]:
    """The blocks of every level of the way down, such as "CTCT"; `network` is for the errors."""
    found: dict[int, dict[int, str]] = {}
    for name in tensors:
        place = re.match(r"down_blocks\.(\d+)\.(\d+)\.(.+)", name)
        for pattern, kind in KINDS if place else ():
            assert place is not None
            level, block = (index_in(place[i], name, tensors) for i in (1, 2))
            blocks = found.setdefault(level, {})
            # A C block has a "channelwise" too, so F never replaces what is there.
            if re.fullmatch(pattern, place[3]) and (kind != "F" or block not in blocks):
                blocks[block] = kind
    if not found:
        raise ConversionError(f"not a whole {network}: it has no down_blocks")
    levels = [found.get(level, {}) for level in range(max(found) + 1)]
    for level, blocks in enumerate(levels):
        first = 1 if level else 0  # before it is the downsampling
        if not blocks or sorted(blocks) != list(range(first, first + len(blocks))):
            raise ConversionError(
                f"not a whole {network}: down_blocks.{level} has blocks of known kinds at "
                f"{sorted(blocks)}, they must be numbered from {first} without gaps"
            )
    return ["".join(blocks[i] for i in sorted(blocks)) for blocks in levels]


def _period(kinds: str) -> str:
    """The shortest pattern whose repetition gives `kinds`."""
    sizes = (n for n in range(1, len(kinds) + 1) if len(kinds) % n == 0)
    return next(kinds[:n] for n in sizes if kinds[:n] * (len(kinds) // n) == kinds)


def level_fields(
    tensors: Tensors, width: int, released: tuple[str, str], head_width: int | Sequence[int]
) -> dict[str, Any]:
    """Fields of a U-shaped network that its levels tell.

    `num_heads` (0 for a level without attention) is there only where heads of `head_width` divide
    the widths.

    Args:
      tensors: a state dict, original or diffusers.
      width: of the first level.
      released: network and its released file, for error messages.
      head_width: of all levels, or one per level.

    Raises:
      ConversionError: there are no blocks, gaps between them, or as `needed_shape`.
    """
    levels = _block_kinds(tensors, released[0])
    downs = [f"down_blocks.{level}.0.1.weight" for level in range(1, len(levels))]
    widths = (width, *(needed_shape(tensors, name, 4, *released)[0] for name in downs))
    patterns = tuple(_period(kinds) for kinds in levels)
    depths = tuple(len(k) // len(p) for k, p in zip(levels, patterns, strict=True))
    fields: dict[str, Any] = {"widths": widths, "patterns": patterns, "depths": depths}
    fields |= block_fields(tensors, r"down_blocks\.\d+\.\d+")
    per_level = [head_width] * len(widths) if isinstance(head_width, int) else head_width
    attends = ["A" in pattern for pattern in patterns]
    sizes = list(zip(widths, per_level, attends, strict=True))
    if any(attended and width % head for width, head, attended in sizes):
        return fields
    return fields | {
        "num_heads": tuple(w // head if attended else 0 for w, head, attended in sizes)
    }


def block_fields(tensors: Tensors, block: str) -> dict[str, int]:
    """What the first T block and the first C block tell; `block` matches their names."""
    fields: dict[str, int] = {}
    for layer, axis, field in (("mapper", 1, "time_width"), ("depthwise", 3, "kernel_size")):
        names = [name for name in tensors if re.fullmatch(rf"{block}\.{layer}\.weight", name)]
        found = [shape for name in names if len(shape := np.shape(tensors[name])) == axis + 1]
        fields |= {field: found[0][axis]} if found else {}
    return fields


def index_count(tensors: Tensors, pattern: str) -> int:
    """One more than the largest number `pattern` finds in a tensor's name; 0 without any.

    Raises:
      ConversionError: as `index_in`.
    """
    matches = filter(None, (re.match(pattern, name) for name in tensors))
    return 1 + max((index_in(found[1], found.string, tensors) for found in matches), default=-1)


def index_in(digits: str, name: str, tensors: Tensors) -> int:
    """A block's number in the name of one of its tensors.

    Raises:
      ConversionError: it is so large that a network with that many blocks has more tensors.
    """
    most = len(tensors)
    if len(digits.lstrip("0")) > len(str(most)) or int(digits) >= most:
        raise ConversionError(
            f"{shortened(name)} has an index that no network of {most} tensors can have; download "
            "the file again"
        )
    return int(digits)


def width_into(tensors: Tensors, name: str) -> int:
    """Inputs of a linear layer by its weight's name; 1 if it is not there.

    A misfit is reported with all the others.
    """
    shape = np.shape(tensors[name]) if name in tensors else ()
    return shape[1] if len(shape) == 2 else 1


def needed_shape(
    tensors: Tensors, name: str, rank: int, network: str, file: str = ""
) -> tuple[int, ...]:
    """Shape of a tensor that tells sizes.

    Args:
      tensors: a state dict.
      name: of the tensor.
      rank: its number of axes.
      network: what the state dict should be, and
      file: the released file with one such, both for the error message; default a diffusers class.

    Raises:
      ConversionError: it is missing, of another rank or empty.
    """
    found = np.shape(tensors[name]) if name in tensors else None
    if found is None or len(found) != rank or 0 in found:
        state = "is missing" if found is None else f"has shape {found}"
        kind = f"the state dict of {file} or of a model of its kind"
        kind = kind if file else f"a diffusers {network}'s state dict"
        raise ConversionError(
            f"not a whole {network}: {name}, which tells its sizes, {state}; expected {kind}"
        )
    return found
