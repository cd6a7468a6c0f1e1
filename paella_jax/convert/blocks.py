"""Name tables and sizes of the blocks that Paella and Würstchen's stages are made of.

Facts: docs/models/paella.md 6 and docs/models/wuerstchen.md 6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from paella_jax.files.tensors import ConversionError, Entry

# What a block of each kind is known by: the first tensor below its name.
KINDS = (
    (r"depthwise\.weight", "C"),
    (r"mapper\.weight", "T"),
    (r"attention\.attn\.in_proj_weight", "A"),
    (r"channelwise\.0\.weight", "F"),
)


def linear_entries(name: str, *path: str, layout: str = "linear") -> list[Entry]:
    """Weight and bias of a linear layer or convolution."""
    return [
        Entry(f"{name}.weight", (*path, "kernel"), layout),
        Entry(f"{name}.bias", (*path, "bias")),
    ]


def block_entries(kind: str, name: str, path: str) -> list[Entry]:
    """One block; `kind` is C (convolution), T (time), A (attention) or F (feed-forward)."""
    if kind == "C":
        depthwise = linear_entries(f"{name}.depthwise", path, "depthwise", layout="conv")
        return [*depthwise, *_mlp_entries(f"{name}.channelwise", path)]
    if kind == "T":
        return linear_entries(f"{name}.mapper", path, "mapper")
    if kind == "F":
        return _mlp_entries(f"{name}.channelwise", path)
    attention = f"{name}.attention.attn"
    return [
        Entry(f"{attention}.in_proj_weight", (path, "attention", "in_kernel"), "linear"),
        Entry(f"{attention}.in_proj_bias", (path, "attention", "in_bias")),
        *linear_entries(f"{attention}.out_proj", path, "attention", "out"),
        *linear_entries(f"{name}.kv_mapper.1", path, "kv_mapper"),
    ]


def _mlp_entries(name: str, path: str) -> list[Entry]:
    return [
        *linear_entries(f"{name}.0", path, "mlp", "expand"),
        Entry(f"{name}.2.gamma", (path, "mlp", "response_norm", "gamma"), "channel"),
        Entry(f"{name}.2.beta", (path, "mlp", "response_norm", "beta"), "channel"),
        *linear_entries(f"{name}.4", path, "mlp", "contract"),
    ]


def level_entries(patterns: Sequence[str], depths: Sequence[int]) -> list[Entry]:
    """All levels of a U-shaped network: blocks, downsampling and upsampling."""
    entries: list[Entry] = []
    for level, (pattern, depth) in enumerate(zip(patterns, depths, strict=True)):
        kinds = pattern * depth
        # The reference keeps the downsampling as entry 0 of its level, the upsampling as the last.
        offset = 1 if level > 0 else 0
        theirs_up = len(patterns) - 1 - level
        if level > 0:
            down, up = f"down_{level}_downsample", f"up_{level}_upsample"
            entries += linear_entries(f"down_blocks.{level}.0.1", down, layout="conv")
            name = f"up_blocks.{theirs_up}.{len(kinds)}.1"
            entries += linear_entries(name, up, layout="conv_transpose")
        for index, kind in enumerate(kinds):
            name = f"down_blocks.{level}.{index + offset}"
            entries += block_entries(kind, name, f"down_{level}_block_{index}")
            name = f"up_blocks.{theirs_up}.{index}"
            entries += block_entries(kind, name, f"up_{level}_block_{index}")
    return entries


def block_kinds(tensors: Mapping[str, np.ndarray], network: str) -> list[str]:
    """The blocks of every level of the way down, such as "CTCT".

    Args:
      tensors: a state dict.
      network: what it should be, for the error message.

    Raises:
      ConversionError: there are none, or gaps between them.
    """
    found: dict[int, dict[int, str]] = {}
    for name in tensors:
        place = re.match(r"down_blocks\.(\d+)\.(\d+)\.(.+)", name)
        for pattern, kind in KINDS if place else ():
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
                f"not a whole {network}: down_blocks.{level} has blocks of known kinds at "
                f"{sorted(blocks)}, they must be numbered from {first} without gaps"
            )
    if not levels:
        raise ConversionError(f"not a whole {network}: it has no down_blocks")
    return ["".join(blocks[i] for i in sorted(blocks)) for blocks in levels]


def period(kinds: str) -> str:
    """The shortest pattern whose repetition gives `kinds`."""
    sizes = (n for n in range(1, len(kinds) + 1) if len(kinds) % n == 0)
    return next(kinds[:n] for n in sizes if kinds[:n] * (len(kinds) // n) == kinds)


def needed_shape(
    tensors: Mapping[str, np.ndarray], name: str, rank: int, network: str, file: str
) -> tuple[int, ...]:
    """Shape of a tensor that tells sizes.

    Args:
      tensors: a state dict.
      name: of the tensor.
      rank: its number of axes.
      network: what the state dict should be, and
      file: the released file with one such, both for the error message.

    Raises:
      ConversionError: it is missing, of another rank or empty.
    """
    found = np.shape(tensors[name]) if name in tensors else None
    if found is None or len(found) != rank or 0 in found:
        state = "is missing" if found is None else f"has shape {found}"
        raise ConversionError(
            f"not a whole {network}: {name}, which tells its sizes, {state}; expected the state "
            f"dict of {file} or of a model of its kind"
        )
    return found


def matching_shapes(
    tensors: Mapping[str, np.ndarray], pattern: str, rank: int
) -> list[tuple[int, ...]]:
    """Shapes of the tensors of a rank whose whole names match a regular expression."""
    shapes = [np.shape(x) for name, x in tensors.items() if re.fullmatch(pattern, name)]
    return [shape for shape in shapes if len(shape) == rank]
