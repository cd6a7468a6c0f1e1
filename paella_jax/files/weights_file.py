"""Opening downloaded weights, whatever kind of file or folder they are in."""

from __future__ import annotations

from pathlib import Path

from paella_jax.files.hf_folder import read_json
from paella_jax.files.safetensors_file import map_safetensors
from paella_jax.files.tensors import ConversionError, Weights
from paella_jax.files.torch_file import read_torch_file

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
INDEX = "*.safetensors.index.json"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"  # beside it may be variants in float16


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
        return Weights(map_safetensors(path), "safetensors file", (path,))
    raise ConversionError(f"{path}: {_what_it_is(start)}; download the weights file itself")


def _open_folder(folder: Path, key: str | None) -> Weights:
    if (folder / DIFFUSERS_WEIGHTS).is_file():
        return open_weights(folder / DIFFUSERS_WEIGHTS, key)
    indexes = sorted(folder.glob(INDEX))
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    if len(indexes) == 1:
        _refuse_key(folder, key)
        return _open_shards(indexes[0])
    if len(files) == 1 and not indexes:
        return open_weights(files[0], key)
    found = ", ".join(file.name for file in (*indexes, *files)) or "none"
    raise ConversionError(
        f"{folder} must hold one weights file ({', '.join(SUFFIXES)}) or one shard index, found: "
        f"{found}; give the file itself"
    )


def _open_shards(index: Path) -> Weights:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ConversionError(f"{index} has no weight_map; download it again")
    names = sorted(set(map(str, shards.values())))
    files = [index.parent / name for name in names]
    absent = [file.name for file in files if not file.is_file() or file.parent != index.parent]
    if absent:
        raise ConversionError(f"{index.parent} lacks {', '.join(absent)}, named in {index.name}")
    tensors = {n: tensor for file in files for n, tensor in map_safetensors(file).items()}
    lost = sorted(shards.keys() - tensors.keys())
    if lost:
        raise ConversionError(f"{index} names tensors that no shard has: {', '.join(lost)}")
    return Weights(tensors, f"safetensors in {len(files)} shards", files)


def _refuse_key(path: Path, key: str | None) -> None:
    if key is not None:
        raise ConversionError(f"{path} is safetensors, which has no entries; leave out --key {key}")


def _what_it_is(start: bytes) -> str:
    """What a file that is neither safetensors nor torch seems to be."""
    if not start:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file it stands for"
    if start.lstrip()[:1] == b"<":
        return "a web page, not a weights file"
    return f"neither a safetensors nor a torch file (it starts with {start[:12]!r})"
