"""Reading Hugging Face model folders: `config.json` and safetensors weights, single or sharded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from paella_jax.convert.tensors import ConversionError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

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
      folder: holds `model.safetensors`, or shards and their index.
      wanted: which tensors to read; a shard without any need not be there.
      model_class: transformers class that could save the weights anew, for the error message.

    Raises:
      FileNotFoundError: there are no safetensors weights, or a shard is missing.
      ConversionError: a file cannot be read.
    """
    tensors: dict[str, np.ndarray] = {}
    for file in _weight_files(folder, wanted, model_class):
        tensors.update(read_safetensors(file, wanted))
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


def _weight_files(folder: Path, wanted: Wanted, model_class: str) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}. If the model was published only as "
            "pytorch_model.bin, convert it where torch is installed: "
            f"{model_class}.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ConversionError(f"{folder / INDEX} has no weight_map; download it again")
    names = {file for name, file in shards.items() if wanted(name)}
    absent = sorted(name for name in names if not (folder / name).is_file())
    if absent:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(absent)}, named in {INDEX}; download it"
        )
    return [folder / name for name in sorted(names)]
