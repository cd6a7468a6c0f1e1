"""NaN and infinity in arrays, found where these enter, without a copy of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

CHUNK = 2**20  # numbers looked at together
SHOWN = 3
# By type: whole numbers of its size, and the bits that are all set where it is not finite.
BITS: dict[str, tuple[type[np.unsignedinteger], int]] = {
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),
    "float32": (np.uint32, 0x7F800000),
    "float64": (np.uint64, 0x7FF0000000000000),
}


def is_finite(array: np.ndarray) -> bool:
    """Whether no number of an array is NaN or infinite; True of other types than floats."""
    if array.dtype.name not in BITS:
        return True
    kind, bits = BITS[array.dtype.name]
    flat = np.ascontiguousarray(array).reshape(-1).view(kind)
    mask = kind(bits)
    pieces = (flat[start : start + CHUNK] for start in range(0, flat.size, CHUNK))
    return not any(((piece & mask) == mask).any() for piece in pieces)


def describe_not_finite(arrays: Mapping[str, Any]) -> str:
    """Names of the arrays that are not finite, the first few; empty where all are."""
    found = [name for name, array in arrays.items() if not is_finite(np.asarray(array))]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more
