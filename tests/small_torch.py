"""Files as torch.save writes them, without torch."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_torch_file(file: Path, content: Mapping[str, Any]) -> Path:
    """What torch.save would write of nested dicts of float32 arrays."""
    storages: list[bytes] = []
    pickled = b"\x80\x02" + _dict(content, storages) + b"."
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, values in enumerate(storages):
            archive.writestr(f"archive/data/{key}", values)
    return file


def _dict(content: Mapping[str, Any], storages: list[bytes]) -> bytes:
    pickled = b"}"
    for name, value in content.items():
        inner = _tensor if isinstance(value, np.ndarray) else _dict
        pickled += _text(name) + inner(value, storages) + b"s"
    return pickled


def _tensor(array: np.ndarray, storages: list[bytes]) -> bytes:
    assert array.dtype == np.float32 and array.flags.c_contiguous
    key, strides = str(len(storages)), [step // 4 for step in array.strides]
    storages.append(array.tobytes())
    storage = _text("storage") + b"ctorch\nFloatStorage\n" + _text(key) + _text("cpu")
    pickled = b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + _number(array.size)
    pickled += b"tQ" + _number(0) + _tuple(array.shape) + _tuple(strides)
    return pickled + b"\x89NtR"


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _tuple(values: Any) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"
