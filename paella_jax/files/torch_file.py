"""PyTorch weight files (`.pt`, `.pth`, `.bin`), read without torch and without running anything.

Such a file is a pickle of nested dicts (files/torch_pickle.py) whose tensors point into raw
storages. Tensors become views of the memory-mapped file, so a large file is never copied.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paella_jax.files.tensors import ConversionError, Weights
from paella_jax.files.torch_pickle import MAX_PICKLE_BYTES, StoredTensor, TorchStorage, unpickle
from paella_jax.files.wrappers import is_averaged
from paella_jax.outside import listed

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# Where training scripts put the weights, the most trusted first; averaged ones come before all.
WRAPPERS = ("state_dict", "model_state_dict", "model", "ema_state_dict", "ema", "ema_model",
            "model_ema", "params", "params_ema", "module", "net", "weights")  # fmt: skip
DEEPEST = 4  # dicts in one another, the weights' own included
Places = Mapping[str, tuple[int, int]]  # a storage's key -> start and number of its bytes


def read_torch_file(file: str | Path, key: str | None = None) -> Weights:
    """Tensors of a file written by `torch.save`, zip (torch >= 1.6) or legacy.

    Args:
      file: its path; the suffix does not matter.
      key: the entry that holds the weights, when the file is a dict of several things. Default:
        the first of WRAPPERS that does, also in one another, but averaged weights before all
        others; `Weights.source` tells which.

    Returns:
      name -> read-only array, a view of the file where it lies there contiguously or strided.

    Raises:
      ConversionError: cut off, not written by torch, compressed or encrypted, a pickle that names
        anything but tensors, or no tensors inside. Nothing of the file is ever executed.
    """
    path = Path(file)
    try:
        if not path.is_file() or path.stat().st_size < 16:
            raise ConversionError("missing or empty; give a file written by torch.save")
        raw = np.asarray(np.memmap(path, np.uint8, "r"))
        is_zip = bytes(raw[:4]) == b"PK\x03\x04"
        content, starts = _read_zip(path, raw) if is_zip else _read_legacy(raw)
        tensors, note, entries = _state_dict(content, key)
        arrays = {name: _array(raw, tensor, starts) for name, tensor in tensors.items()}
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error
    source = f"torch file ({'zip' if is_zip else 'legacy'} format){note}"
    return Weights(arrays, source, (path,), entries)


def _read_zip(path: Path, raw: np.ndarray) -> tuple[Any, Places]:
    """The pickled object, and where each storage's bytes begin and how many they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise ConversionError(f"the zip is cut off or damaged ({error}); download again") from error
    pickles = [name for name in infos if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise ConversionError(
            "a zip archive, but not one of torch.save (no data.pkl inside); unpack it first and "
            "give the weights file"
        )
    root = pickles[0].removesuffix("data.pkl")
    record = lambda name: bytes(_piece(raw, *_stored(infos[root + name], raw)))
    if root + "byteorder" in infos and record("byteorder") != b"little":
        raise ConversionError("was written on a big-endian machine; save it again on a common one")
    start, size = _stored(infos[pickles[0]], raw)
    if size > MAX_PICKLE_BYTES:
        raise ConversionError(f"its pickle has {size} bytes, more than any model needs; refused")
    content, storages, _ = unpickle(bytes(_piece(raw, start, size)))
    names = {key: f"{root}data/{key}" for key in storages}
    return content, {k: _stored(infos[n], raw) for k, n in names.items() if n in infos}


def _stored(info: zipfile.ZipInfo, raw: np.ndarray) -> tuple[int, int]:
    """Start and size of a zip entry's bytes, which torch never compresses."""
    if info.flag_bits & 1:
        raise ConversionError(f"{info.filename} is encrypted; unlock the archive first")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ConversionError(
            f"{info.filename} is compressed, which torch.save never does; unpack the archive and "
            "pack it again without compression"
        )
    header = bytes(_piece(raw, info.header_offset, 30))
    if header[:4] != b"PK\x03\x04":
        raise ConversionError("the zip's table does not fit its content; download it again")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = info.header_offset + 30 + name_length + extra_length
    _piece(raw, start, info.file_size)
    return start, info.file_size


def _piece(raw: np.ndarray, start: int, size: int) -> np.ndarray:
    if start < 0 or size < 0 or start + size > raw.size:
        raise ConversionError(
            f"cut off: it has {raw.size} bytes and needs {start + size}; download it again"
        )
    return raw[start : start + size]


def _read_legacy(raw: np.ndarray) -> tuple[Any, Places]:
    """As `_read_zip`: magic number, protocol, system, object, storage keys, then the storages."""
    position = 0

    def load() -> tuple[Any, dict[str, TorchStorage]]:
        nonlocal position
        value, storages, length = unpickle(bytes(raw[position : position + MAX_PICKLE_BYTES]))
        position += length
        return value, storages

    if raw[0] != 0x80 or load()[0] != LEGACY_MAGIC or load()[0] != LEGACY_PROTOCOL:
        raise ConversionError("not a file of torch.save; give the weights file itself")
    system, _ = load()
    if not isinstance(system, dict) or not system.get("little_endian", True):
        raise ConversionError("was written on a big-endian machine; save it again on a common one")
    content, storages = load()
    keys, _ = load()
    starts: dict[str, tuple[int, int]] = {}
    for key in keys if isinstance(keys, list) else []:
        numel = struct.unpack("<q", bytes(_piece(raw, position, 8)))[0]
        if key not in storages:
            raise ConversionError(f"storage {key} belongs to no tensor; the file is damaged")
        size = numel * storages[key].dtype.itemsize
        _piece(raw, position + 8, size)
        starts[key] = (position + 8, size)
        position += 8 + size
    return content, starts


def _array(raw: np.ndarray, tensor: StoredTensor, starts: Places) -> np.ndarray:
    storage, size = tensor.storage, tensor.storage.dtype.itemsize
    if storage.key not in starts:
        raise ConversionError(f"storage {storage.key} is missing; download it again")
    start, length = starts[storage.key]
    begin, end = storage.start * size, (storage.start + storage.numel) * size
    if end > length:
        raise ConversionError(
            f"storage {storage.key} has {length} bytes where the pickle promises {end}; download "
            "it again"
        )
    numbers = raw[start + begin : start + end].view(storage.dtype)
    numbers, strides = numbers[tensor.offset :], [step * size for step in tensor.stride]
    return np.lib.stride_tricks.as_strided(numbers, tensor.size, strides, writeable=False)


def _state_dict(content: Any, key: str | None) -> tuple[dict[str, StoredTensor], str, list[str]]:
    """The dict of tensors inside what a training script saved, where it was, all such entries.

    An entry in another one has both names, with a dot between.
    """
    if not isinstance(content, dict):
        raise ConversionError(
            f"holds a {type(content).__name__.strip('_').lower()}, not a state dict; save "
            "model.state_dict() instead of the model"
        )
    inside = _dicts_of_tensors(content)
    plain = inside.pop("", {})
    if key is not None and key not in inside:
        raise ConversionError(f"has no weights under the key {key!r}; there are {sorted(inside)}")
    known = list(filter(_is_known, inside))
    most = max((len(inside[name]) for name in known), default=0)
    # What is kept beside an average, such as a count of steps, is no network.
    known.sort(key=lambda name: _rank(name, 2 * len(inside[name]) >= most))
    if key is None and plain and not known:
        return plain, "", []
    if key is None:
        chosen = known[:1] or [name for name in inside if "optim" not in name]
        if len(chosen) != 1:
            entries = listed(sorted(map(repr, filter(_is_name, content))))
            raise ConversionError(
                f"no single state dict inside; its entries are {entries}"
                + (f"; choose one of {listed(sorted(inside))} with --key" if inside else "")
            )
        key = chosen[0]
    others = ", ".join(repr(name) for name in known if name != key)
    note = f", weights under the key {key!r}" + (f" (also {others})" if others else "")
    return inside[key], note, list(inside)


def _is_known(name: str) -> bool:
    return all(part in WRAPPERS for part in name.split("."))


def _rank(name: str, is_whole: bool) -> list[int]:
    places = [WRAPPERS.index(part) for part in name.split(".")]
    return [not (is_whole and is_averaged(name)), *places]


def _is_name(key: Any) -> bool:
    return isinstance(key, str | int)


def _dicts_of_tensors(content: dict[Any, Any]) -> dict[str, dict[str, StoredTensor]]:
    """Tensors by the path of the dict that holds them, of the whole content at the path ""."""
    found: dict[str, dict[str, StoredTensor]] = {}
    seen: set[int] = set()  # one dict may be in many places
    level = {"": content}
    for _ in range(DEEPEST):
        below: dict[str, dict[Any, Any]] = {}
        for path, inner in level.items():
            seen.add(id(inner))
            tensors = {n: t for n, t in inner.items() if isinstance(t, StoredTensor)}
            if tensors and all(isinstance(name, str) for name in tensors):
                found[path] = tensors
            for name, value in inner.items():
                if isinstance(value, dict) and _is_name(name) and id(value) not in seen:
                    below[f"{path}.{name}" if path else str(name)] = value
        level = below
    return found
