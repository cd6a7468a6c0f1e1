"""Opening downloaded weights: single files, diffusers folders and Hugging Face model folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from paella_jax.files.safetensors_file import map_safetensors, read_notes
from paella_jax.files.tensors import ConversionError, Weights
from paella_jax.files.torch_file import read_torch_file

CONFIG = "config.json"
# Hugging Face's weights, whole and sharded, the preferred form first.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
INDEX = "*.safetensors.index.json"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"  # beside it may be variants in float16

# Says of a tensor's name whether the model needs it; the others are never read.
Wanted = Callable[[str], bool]


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
    except ValueError as error:
        kind = ConversionError if isinstance(error, ConversionError) else ValueError
        raise kind(f"{path}: {error}") from error


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


def config_beside(weights: Weights) -> Path | None:
    """The config.json beside a diffusers model's weights, if there is one."""
    file = weights.files[0].parent / CONFIG
    return file if file.is_file() else None


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
        is_mapped = file.suffix == ".safetensors"
        found = map_safetensors(file) if is_mapped else read_torch_file(file)
        tensors.update({n: np.array(x) if is_mapped else x for n, x in found.items() if wanted(n)})
    return tensors


def weight_files(folder: Path, wanted: Wanted, model_class: str) -> list[Path]:
    """The files that `read_weights` reads. Raises as it does, but for damaged weights."""
    # Safetensors in either form come before torch's files.
    order = (folder / name for pair in zip(WEIGHTS, INDEXES, strict=True) for name in pair)
    index = next((file for file in order if file.is_file()), None)
    if index is None:
        raise FileNotFoundError(
            f"{folder} has no weights ({', '.join((*WEIGHTS, *INDEXES))}); download the whole "
            "model folder, or write it where torch is installed: "
            f"{model_class}.from_pretrained(MODEL).save_pretrained(FOLDER)"
        )
    if index.name in WEIGHTS:
        return [index]
    names = {file for name, file in _weight_map(index).items() if wanted(name)}
    if absent := sorted(name for name in names if not (folder / name).is_file()):
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(absent)}, named in {index.name}; download it"
        )
    return [folder / name for name in sorted(names)]


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> the shard that holds it."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ConversionError(f"{index} has no weight_map; download it again")
    return shards


def open_weights(path: str | Path, key: str | None = None) -> Weights:
    """Tensors of a weights file or folder, memory-mapped: nothing is read before it is used.

    Args:
      path: a safetensors file, a file of torch.save, or a folder with one of them or with
        safetensors shards and their index (Hugging Face and diffusers layouts). What a file is
        shows in its first bytes; the suffix does not matter.
      key: the entry of a torch file that holds the weights; see `read_torch_file`.

    Raises:
      ConversionError: nothing there, or not weights; the message names the file.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, key)
    if not path.is_file():
        raise ConversionError(f"{path} does not exist; give a weights file or a folder with one")
    with path.open("rb") as file:
        start = file.read(64)
    # A safetensors header can be of any length, so that its first byte may be a pickle's.
    is_safetensors = start[5:9] == b"\0\0\0{"
    if not is_safetensors and (start[:4] == b"PK\x03\x04" or start[:1] == b"\x80"):
        return read_torch_file(path, key)
    if is_safetensors or path.suffix == ".safetensors":
        _refuse_key(path, key)
        tensors = map_safetensors(path)
        return Weights(tensors, "safetensors file", (path,), notes=read_notes(path))
    what = f"neither a safetensors nor a torch file (it starts with {start[:12]!r})"
    if start.startswith(b"version https://git-lfs"):
        what = "a Git LFS pointer, not the file it stands for"
    elif start.lstrip()[:1] == b"<" or not start:
        what = "a web page, not a weights file" if start else "an empty file"
    raise ConversionError(f"{path}: {what}; download the weights file itself")


def _open_folder(folder: Path, key: str | None) -> Weights:
    if (folder / DIFFUSERS_WEIGHTS).is_file():
        return open_weights(folder / DIFFUSERS_WEIGHTS, key)
    indexes = sorted(folder.glob(INDEX))
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    if len(indexes) == 1:
        _refuse_key(folder, key)
        shards = _weight_map(indexes[0])
        parts = [folder / name for name in sorted(set(map(str, shards.values())))]
        if absent := [part.name for part in parts if not part.is_file() or part.parent != folder]:
            raise ConversionError(f"{folder} lacks {', '.join(absent)}, named in {indexes[0].name}")
        tensors = {n: tensor for part in parts for n, tensor in map_safetensors(part).items()}
        if lost := sorted(shards.keys() - tensors.keys()):
            raise ConversionError(
                f"{indexes[0]} names tensors that no shard has: {', '.join(lost)}"
            )
        return Weights(tensors, f"safetensors in {len(parts)} shards", parts)
    if len(files) == 1 and not indexes:
        return open_weights(files[0], key)
    found = ", ".join(file.name for file in (*indexes, *files)) or "none"
    raise ConversionError(
        f"{folder} must hold one weights file ({', '.join(SUFFIXES)}) or one shard index, found: "
        f"{found}; give the file itself"
    )


def _refuse_key(path: Path, key: str | None) -> None:
    if key is not None:
        raise ConversionError(f"{path} is safetensors, which has no entries; leave out --key {key}")
