"""Opening downloaded weights: single files, diffusers folders and Hugging Face model folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from paella_jax.files.layouts import INDEX, STEMS, SUFFIXES, Layout, choose, is_plain_name
from paella_jax.files.safetensors_file import map_safetensors, read_notes
from paella_jax.files.tensors import ConversionError, Weights
from paella_jax.files.torch_file import read_torch_file
from paella_jax.files.wrappers import without_marks
from paella_jax.outside import listed, parse_object, shortened

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # Hugging Face's, the preferred form first
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"  # beside it may be variants in float16

# Says of a tensor's name whether the model needs it; the others are never read.
Wanted = Callable[[str], bool]


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      ConversionError: the file cannot be read, or holds something else.
    """
    try:
        return parse_object(file.read_bytes())
    except (ValueError, OSError) as error:
        raise ConversionError(f"cannot read {file}: {error}; download it again") from error


@contextmanager
def errors_name(path: Path, between: str = ": ") -> Iterator[None]:
    """Puts `path` in front of the message of a ValueError or ConversionError raised inside."""
    try:
        yield
    except ValueError as error:
        kind = ConversionError if isinstance(error, ConversionError) else ValueError
        raise kind(f"{path}{between}{error}") from error


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
      folder: holds weights in one of the forms of layouts.py; torch's files are memory-mapped.
      wanted: which tensors to read; a shard without any need not be there.
      model_class: transformers class that could save the weights anew, for the error message.

    Raises:
      FileNotFoundError: there are no weights, or a shard is missing.
      ConversionError: a file cannot be read, two have a tensor of one name, or an index names a
        file of another folder.
    """
    files = weight_files(folder, wanted, model_class)
    index = index_file(folder)
    found = _tensors_of_all(files, _weight_map(index[0]) if index else {}, wanted)
    is_mapped = any(file.suffix == ".safetensors" for file in files)
    return {n: np.array(x) for n, x in found.items()} if is_mapped else found


def weight_files(folder: Path, wanted: Wanted, model_class: str) -> list[Path]:
    """The files that `read_weights` reads. Raises as it does, but for damaged weights."""
    chosen = _chosen(folder, STEMS)
    if chosen is None:
        raise FileNotFoundError(
            f"{folder} has no weights ({', '.join(WEIGHTS)}, their variants, or shards and their "
            "index); download the whole model folder, or write it where torch is installed: "
            f"{model_class}.from_pretrained(MODEL).save_pretrained(FOLDER)"
        )
    layout, _ = chosen
    if not layout.index:
        return [folder / name for name in layout.files]
    shards = _weight_map(folder / layout.index)
    names = {file for name, file in shards.items() if wanted(name)}
    if absent := sorted(name for name in names if not (folder / name).is_file()):
        raise FileNotFoundError(
            f"{folder} lacks {listed(absent)}, named in {layout.index}; download it"
        )
    return [folder / name for name in sorted(names)]


def index_file(folder: Path) -> list[Path]:
    """The index of the weights that `weight_files` names, if they have one."""
    chosen = _chosen(folder, STEMS)
    return [folder / chosen[0].index] if chosen is not None and chosen[0].index else []


def _chosen(folder: Path, stems: Sequence[str] = ()) -> tuple[Layout, str] | None:
    """Which weights of a folder are read, and in words what else there is."""
    names = [file.name for file in folder.iterdir() if file.is_file()]
    named: set[str] = set()
    for index in filter(INDEX.fullmatch, names):
        with suppress(ConversionError):  # told where it is the one that is read
            named |= set(_weight_map(folder / index).values())
    with errors_name(folder, " "):
        return choose(names, stems, named)


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> the shard that holds it, a file beside the index."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ConversionError(f"{index} has no weight_map; download it again")
    if outside := [name for name in shards.values() if not is_plain_name(name)]:
        raise ConversionError(
            f"{index} names {outside[0]!r}, which is no file of its folder; download it again"
        )
    return shards


def _tensors_of(file: Path) -> dict[str, np.ndarray]:
    return map_safetensors(file) if file.suffix == ".safetensors" else read_torch_file(file)


def _tensors_of_all(
    files: Sequence[Path], shards: Mapping[str, str], wanted: Wanted = lambda name: True
) -> dict[str, np.ndarray]:
    """The wanted tensors of several files; of those that an index names, each from its own shard.

    Raises:
      ConversionError: two files have a tensor of one name.
    """
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        for name, tensor in _tensors_of(file).items():
            if not wanted(name) or shards.get(name, file.name) != file.name:
                continue
            if name in tensors:
                raise ConversionError(
                    f"{file}: another shard has {shortened(name)} too; download the folder again"
                )
            tensors[name] = tensor
    return tensors


def open_weights(path: str | Path, key: str | None = None) -> Weights:
    """Tensors of a weights file or folder, memory-mapped: nothing is read before it is used.

    Args:
      path: a safetensors file, a file of torch.save, or a folder with one of them or with
        safetensors shards and their index (Hugging Face and diffusers layouts). What a file is
        shows in its first bytes; the suffix does not matter.
      key: the entry of a torch file that holds the weights; see `read_torch_file`.

    Returns:
      The tensors, without what distributed and compiled modules put before every name.

    Raises:
      ConversionError: nothing there, or not weights; the message names the file.
    """
    path = Path(path)
    opened = _open_folder(path, key) if path.is_dir() else _open_file(path, key)
    with errors_name(path):
        tensors, told = without_marks(opened)
    source = opened.source + told
    return Weights(tensors, source, opened.files, opened.entries, opened.notes)


def _open_file(path: Path, key: str | None) -> Weights:
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
    chosen = _chosen(folder)
    if chosen is None:
        raise ConversionError(
            f"{folder} must hold one weights file ({', '.join(SUFFIXES)}) or one shard index, "
            "found: none; give the file itself"
        )
    layout, told = chosen
    if not layout.shards and not layout.index:
        weights = _open_file(folder / layout.files[0], key)
        weights.source += told
        return weights
    _refuse_key(folder, key)
    shards = _weight_map(folder / layout.index) if layout.index else {}
    names = sorted(set(shards.values())) or layout.files
    parts = [folder / name for name in names]
    if absent := [part.name for part in parts if not part.is_file()]:
        raise ConversionError(f"{folder} lacks {listed(absent)}, named in {layout.index}")
    tensors = _tensors_of_all(parts, shards)
    if lost := sorted(shards.keys() - tensors.keys()):
        raise ConversionError(
            f"{folder / layout.index} names tensors that no shard has: "
            f"{listed(f'{name} (of {shards[name]})' for name in lost)}"
        )
    kind = "safetensors" if layout.suffix == ".safetensors" else "torch files"
    return Weights(tensors, f"{kind} in {len(parts)} shards{told}", parts)


def _refuse_key(path: Path, key: str | None) -> None:
    if key is not None:
        raise ConversionError(f"{path} has no entries to choose; leave out --key {key}")
