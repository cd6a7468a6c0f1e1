"""safetensors files, memory-mapped for reading and streamed for writing.

The format: the header's length as 8 little-endian bytes, a JSON header with every tensor's dtype,
shape and byte range, then the bytes. Neither direction ever holds more than one tensor in memory.
Files of ours have every tensor's digest in the header, as a note that other programs pass over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from paella_jax.files.atomic import atomic_path
from paella_jax.files.digests import in_threads
from paella_jax.files.finite import is_finite
from paella_jax.files.tensors import ConversionError
from paella_jax.outside import parse_object
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
DIGESTS = "paella_jax.sha256"  # the note's name
UNKNOWN = "0" * 64  # as long as a digest


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
        try:
            tensors[name] = raw[begin:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
        except (ValueError, OverflowError) as error:  # of no numbers, but of absurd sides
            raise ConversionError(f"{file}: {name} cannot be read: {error}") from error
    return tensors


def read_notes(file: Path) -> dict[str, str]:
    """The texts of a safetensors file that `map_safetensors` can read."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return json.loads(stream.read(length)).get("__metadata__") or {}


def differing_tensors(file: Path) -> list[str] | None:
    """Names of the tensors that are not what was written; None of a file without digests.

    Raises:
      ConversionError: as `map_safetensors`, or the digests cannot be read.
    """
    tensors = map_safetensors(file)
    note = read_notes(file).get(DIGESTS)
    if note is None:
        return None
    try:
        known = parse_object(note)
    except ValueError as error:
        raise ConversionError(f"cannot read {file}: its digests are damaged ({error})") from error
    names = sorted(known.keys() | tensors.keys())
    found = in_threads(lambda n: _digest(tensors[n]) if n in tensors else "", names)
    return [n for n, is_now in zip(names, found, strict=True) if known.get(n) != is_now]


def write_safetensors(
    file: Path,
    tensors: Tensors,
    dtype: np.dtype | None = None,
    report: Report = quiet,
    notes: Mapping[str, str] | None = None,
    digests: bool = False,
) -> None:
    """Writes tensors one after another; the file appears whole or not at all.

    Args:
      file: where to; its folder is made.
      tensors: name -> array in any layout, for example a transposed view of a mapped file.
      dtype: what to store them in, but for whole numbers; default each its own.
      report: called with the number of bytes after each tensor, for a progress bar.
      notes: texts by name, which other programs pass over.
      digests: note every tensor's digest too, for `differing_tensors`.

    Raises:
      ConversionError: a dtype the format does not have, values that `dtype` cannot hold, or NaN or
        infinity; nothing is written then.
    """
    known = dict.fromkeys(tensors, UNKNOWN) if digests else {}
    header = _header(tensors, dtype, dict(notes or {}), known)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as part, part.open("wb") as out:
        out.write(header)
        for name, tensor in tensors.items():
            stored = _stored(name, np.asarray(tensor), dtype)
            if not is_finite(stored):
                raise ConversionError(
                    f"{name} holds NaN or infinity: {file} is not written; look at where these "
                    "weights come from"
                )
            out.write(stored.reshape(-1).view(np.uint8).data)
            if digests:
                known[name] = _digest(stored.reshape(tensor.shape))  # scalars too
            report(stored.nbytes)
        if digests:  # of the same length as those that stood for them
            out.seek(0)
            out.write(_header(tensors, dtype, dict(notes or {}), known))


def _header(
    tensors: Tensors, dtype: np.dtype | None, notes: dict[str, str], digests: Mapping[str, str]
) -> bytes:
    """The file's beginning, length included."""
    if digests:
        notes[DIGESTS] = json.dumps(digests)
    header: dict[str, object] = {"__metadata__": {"format": "pt"} | notes}
    offset = 0
    for name, tensor in tensors.items():
        kind = _kind(tensor, dtype)
        if kind not in NAMES:
            raise ConversionError(f"{name} has dtype {kind}, which safetensors cannot store")
        span = [offset, offset := offset + tensor.size * kind.itemsize]
        header[name] = {"dtype": NAMES[kind], "shape": [*tensor.shape], "data_offsets": span}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data must begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _digest(stored: np.ndarray) -> str:
    """Of dtype and shape too: bits that flip in the header change what the bytes mean."""
    sha = hashlib.sha256(f"{NAMES[stored.dtype]} {list(stored.shape)} ".encode())
    sha.update(stored.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


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
