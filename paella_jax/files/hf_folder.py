"""Reading Hugging Face model folders: `config.json` and weights, single or sharded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from paella_jax.files.tensors import ConversionError
from paella_jax.files.torch_file import read_torch_file

CONFIG = "config.json"
# Whole and sharded, the preferred form first.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")

# Says of a tensor's name whether the model needs it; the others are never read.
Wanted = Callable[[str], bool]


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's `config.json`.

    Raises:
      FileNotFoundError: the folder or its config is not there.
      ConversionError: the config is not a JSON object.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the one with {CONFIG} in it")
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}; download the whole model folder")
    return read_json(folder / CONFIG)


def read_weights(folder: Path, wanted: Wanted, model_class: str) -> dict[str, np.ndarray]:
    """The wanted tensors of all weight files, in the file's dtype (so bfloat16 stays small).

    Args:
      folder: holds `model.safetensors`, or shards and their index. Without them torch's
        `pytorch_model.bin` does too, whole or sharded; it is memory-mapped.
      wanted: which tensors to read; a shard without any need not be there.
      model_class: transformers class that could save the weights anew, for the error message.

    Raises:
      FileNotFoundError: there are no weights, or a shard is missing.
      ConversionError: a file cannot be read.
    """
    tensors: dict[str, np.ndarray] = {}
    for file in weight_files(folder, wanted, model_class):
        if file.suffix == ".safetensors":
            tensors.update(read_safetensors(file, wanted))
        else:
            tensors.update({n: x for n, x in read_torch_file(file).items() if wanted(n)})
    return tensors


def read_safetensors(file: Path, wanted: Wanted) -> dict[str, np.ndarray]:
    """The wanted tensors of one file.

    Raises:
      ConversionError: the file cannot be read.
    """
    try:
        with safe_open(file, framework="numpy") as tensors:
            names = [name for name in tensors.keys() if wanted(name)]  # noqa: SIM118
            return {name: tensors.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size if file.is_file() else 0
        raise ConversionError(
            f"cannot read {file} ({size} bytes): {error}. It is cut short or not a "
            "safetensors file; download or copy it again"
        ) from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      ConversionError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConversionError(f"cannot read {file}: {error}; download it again") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{file} holds no JSON object; download it again")
    return content


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Puts `path` in front of the message of a ValueError or ConversionError raised inside."""
    try:
        yield
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def weight_files(folder: Path, wanted: Wanted, model_class: str) -> list[Path]:
    """The files that `read_weights` reads. Raises as it does, but for damaged weights."""
    whole = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    indexes = [folder / name for name in INDEXES if (folder / name).is_file()]
    # Safetensors in either form come before torch's files.
    found = sorted([*whole, *indexes], key=lambda file: ".bin" in file.name)
    if not found:
        raise FileNotFoundError(
            f"{folder} has no weights ({', '.join((*WEIGHTS, *INDEXES))}); download the whole "
            "model folder, or write it where torch is installed: "
            f"{model_class}.from_pretrained(MODEL).save_pretrained(FOLDER)"
        )
    if found[0] in whole:
        return found[:1]
    index = found[0]
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ConversionError(f"{index} has no weight_map; download it again")
    names = {file for name, file in shards.items() if wanted(name)}
    absent = sorted(name for name in names if not (folder / name).is_file())
    if absent:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(absent)}, named in {index.name}; download it"
        )
    return [folder / name for name in sorted(names)]
