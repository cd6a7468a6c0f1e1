"""safetensors files, memory-mapped for reading and streamed for writing.

The format: the header's length as 8 little-endian bytes, a JSON header with every tensor's dtype,
shape and byte range, then the bytes. Neither direction ever holds more than one tensor in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from paella_jax.files.atomic import atomic_path
from paella_jax.files.tensors import ConversionError
from paella_jax.typing import Tensors

KINDS = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
    "U16": np.uint16, "U32": np.uint32, "U64": np.uint64, "BOOL": np.bool_,
}  # fmt: skip
DTYPES: dict[str, np.dtype] = {name: np.dtype(kind) for name, kind in KINDS.items()}
Report = Callable[[int], object]  # told of bytes as they are read or written
quiet: Report = lambda size: None
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def map_safetensors(file: Path) -> dict[str, np.ndarray]:
    """name -> read-only view of the memory-mapped file; nothing is read before it is used.

    Raises:
      ConversionError: the file is missing, cut off, not safetensors, or of a dtype not in DTYPES.
    """
    try:
        with safe_open(file, framework="numpy"):
            pass  # checks the whole header: ranges, overlaps, the file's length
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size if file.is_file() else 0
        raise ConversionError(
            f"cannot read {file} ({size} bytes): {error}. It is cut short or not a "
            "safetensors file; download or copy it again"
        ) from error
    raw = np.asarray(np.memmap(file, np.uint8, "r"))
    length = int.from_bytes(bytes(raw[:8]), "little")
    header = json.loads(bytes(raw[8 : 8 + length]))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            kind = entry["dtype"]
            raise ConversionError(f"{file}: {name} has dtype {kind}, which is no weight's")
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = raw[begin:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def read_notes(file: Path) -> dict[str, str]:
    """The texts of a safetensors file that `map_safetensors` can read."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return json.loads(stream.read(length)).get("__metadata__", {})


def write_safetensors(
    file: Path,
    tensors: Tensors,
    dtype: np.dtype | None = None,
    report: Report = quiet,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Writes tensors one after another; the file appears whole or not at all.

    Args:
      file: where to; its folder is made.
      tensors: name -> array in any layout, for example a transposed view of a mapped file.
      dtype: what to store them in, but for whole numbers; default each its own.
      report: called with the number of bytes after each tensor, for a progress bar.
      notes: texts by name, which other programs pass over.

    Raises:
      ConversionError: a dtype the format does not have, or values that `dtype` cannot hold.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"} | dict(notes or {})}
    offset = 0
    for name, tensor in tensors.items():
        kind = _kind(tensor, dtype)
        if kind not in NAMES:
            raise ConversionError(f"{name} has dtype {kind}, which safetensors cannot store")
        span = [offset, offset := offset + tensor.size * kind.itemsize]
        header[name] = {"dtype": NAMES[kind], "shape": [*tensor.shape], "data_offsets": span}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data must begin at a multiple of 8
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as part, part.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            stored = _stored(name, np.asarray(tensor), dtype)
            out.write(stored.reshape(-1).view(np.uint8).data)
            report(stored.nbytes)


def _kind(tensor: np.ndarray, dtype: np.dtype | None) -> np.dtype:
    return np.dtype(tensor.dtype if dtype is None or tensor.dtype.kind in "biu" else dtype)


def _stored(name: str, tensor: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
    """The tensor in row order and in `dtype`."""
    if dtype is None or tensor.dtype == _kind(tensor, dtype):
        return np.ascontiguousarray(tensor)
    with np.errstate(over="ignore"):
        # Cast in the order of the file, then reorder the (mostly smaller) result.
        stored = np.ascontiguousarray(tensor.astype(dtype))
    if not np.isfinite(stored).all():
        raise ConversionError(
            f"{name} has values that are not finite in {np.dtype(dtype)}; choose --dtype bfloat16 "
            "or keep, and if that fails too, the file is damaged"
        )
    return stored
