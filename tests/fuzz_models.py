"""Small valid weights, model folders and configs from outside, for fuzzing.py."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import mutations as m
import numpy as np
import small
import small_amused
import small_clip
from fuzzing import Example
from safetensors.numpy import save_file
from small_torch import write_torch_file

import paella_jax
from paella_jax.config import apply_override, flatten_config, load_config, to_json
from paella_jax.convert.plan import check_frozen, plan_conversion
from paella_jax.convert.recognise import open_parts
from paella_jax.data.embeddings import EmbeddingSource
from paella_jax.encoders.published import (
    load_clip_text_folder,
    load_clip_vision_folder,
    load_t5_folder,
)
from paella_jax.files.safetensors_file import differing_tensors, write_safetensors
from paella_jax.files.weights_file import open_weights, read_weights
from paella_jax.runs.folder import read_config as read_run_config
from paella_jax.runs.frozen import carry_clip

GOLDEN = small.ROOT / "tests" / "golden"
JSON = (m.mutate_json,) * 4
DRAW = np.random.default_rng(0)


def folder_of(root: Path, name: str) -> Path:
    (root / name).mkdir(parents=True)
    return root / name


# --- weights


def _tensors() -> dict[str, np.ndarray]:
    return {
        "quantize.weight": np.ones((4, 2), np.float32), "bias": np.zeros(3, np.float16),
        "scalar": np.float32(2.0).reshape(()), "count": np.arange(3),
        "empty": np.zeros((0, 2), np.float32),
    }  # fmt: skip


def _sum_all(weights: Mapping[str, np.ndarray]) -> None:
    for array in weights.values():
        np.asarray(array, np.float64).sum()


def weights(root: Path) -> list[Example]:
    made = []
    for file in sorted((GOLDEN / "torch_files").glob("*.pt")):
        folder = folder_of(root, file.stem)
        shutil.copy(file, folder / file.name)
        way = (m.in_zip, m.in_zip) if file.read_bytes()[:2] == b"PK" else ()
        read = lambda place, name=file.name: _sum_all(open_weights(place / name))
        made.append(Example(file.stem, folder, {file.name: way}, read))
    folder = folder_of(root, "nested")
    arrays = {n: x for n, x in _tensors().items() if x.dtype == np.float32 and x.size > 1}
    write_torch_file(folder / "last.ckpt", {"state_dict": {"model": arrays}, "ema": arrays})
    made.append(Example("nested", folder, {"last.ckpt": (m.in_zip,)},
                        lambda place: _sum_all(open_weights(place / "last.ckpt"))))  # fmt: skip
    folder = folder_of(root, "safetensors")
    write_safetensors(folder / "x.safetensors", _tensors(), digests=True)
    made.append(Example("safetensors", folder, {"x.safetensors": (m.in_safetensors,) * 3},
                        _safetensors, 3.0))  # fmt: skip
    return [*made, *_embeddings(root)]


def _safetensors(folder: Path) -> None:
    file = folder / "x.safetensors"
    differing_tensors(file)
    _sum_all(open_weights(file))


def _embeddings(root: Path) -> list[Example]:
    arrays = {name: np.ones((3, 4), np.float32) for name in ("text_embedding", "image_embedding")}
    read = lambda place: EmbeddingSource(str(place), 4)[0]
    first, second = folder_of(root, "embeddings_st"), folder_of(root, "embeddings_npz")
    save_file(arrays, first / "embeddings.safetensors")
    np.savez(second / "embeddings.npz", **arrays)
    return [
        Example("embeddings_st", first, {"embeddings.safetensors": (m.in_safetensors,)}, read),
        Example("embeddings_npz", second, {"embeddings.npz": (m.in_zip,)}, read),
    ]


# --- folders and indexes


def folders(root: Path) -> list[Example]:
    made = []
    for name, suffix in (("sharded", ""), ("sharded_variant", ".fp16")):
        folder = folder_of(root, name)
        index = f"model.safetensors.index{suffix}.json"
        files = [f"model{suffix}-0000{i}-of-00002.safetensors" for i in (1, 2)]
        for number, file in enumerate(files):
            save_file({f"t{number}": np.ones(3, np.float32)}, folder / file)
        shards = {"weight_map": {"t0": files[0], "t1": files[1]}, "metadata": {"total_size": 24}}
        (folder / index).write_text(json.dumps(shards))
        made.append(Example(name, folder, {index: JSON, files[0]: (m.in_safetensors,)}, _weights))
    return [*made, *_hub_folders(root), *_amused(root)]


def _weights(folder: Path) -> None:
    _sum_all(open_weights(folder))
    read_weights(folder, lambda name: True, "T5EncoderModel")


def _hub_folders(root: Path) -> list[Example]:
    """Published encoders; of every twentieth input the weights are loaded too."""
    made = []
    readers = {"byt5": load_t5_folder, "clip_text_gelu": load_clip_text_folder,
               "clip_vision": load_clip_vision_folder}  # fmt: skip
    for name, read in readers.items():
        folder = folder_of(root, name)
        for file in ("config.json", "model.safetensors"):
            shutil.copy(GOLDEN / "text_encoders" / name / file, folder)
        made.append(Example(name, folder, {"config.json": JSON}, read, 0.2, (f"/{name}",)))
    folder = small_clip.write_clip_folder(root / "clip")
    files = {"config.json": JSON, "vocab.json": JSON, "merges.txt": (m.mutate_table,)}
    carry = lambda place: carry_clip(place, place.parent / "carried")
    return [*made, Example("clip", folder, files, _fresh(carry, "carried"), 0.1, ("/clip",))]


def _fresh(read: Callable[[Path], object], *written: str) -> Callable[[Path], None]:
    """A reader that writes beside the folder, and what it wrote taken away."""

    def both(place: Path) -> None:
        try:
            read(place)
        finally:
            for name in written:
                shutil.rmtree(place.parent / name, ignore_errors=True)

    return both


def _amused(root: Path) -> list[Example]:
    folder = small_amused.write_amused(root / "amused", root / "clip")
    files = [f.relative_to(folder).as_posix() for f in folder.rglob("*.json")]
    return [
        Example("amused", folder, dict.fromkeys(files, JSON), _convert_amused, 0.05, ("/amused",))
    ]


def _convert_amused(folder: Path) -> None:
    check_frozen(plan := plan_conversion(parts := open_parts(folder, "amused")), parts.weights)
    plan.fields()


# --- configs and overrides


def configs(root: Path) -> list[Example]:
    made = []
    for name, spec in (("paella", "paella:tiny"), ("stage_b", "stage_b:tiny")):
        folder = folder_of(root, name)
        (folder / "config.json").write_text(to_json(load_config(spec)))
        made.append(Example(name, folder, {"config.json": JSON}, read_run_config))
    folder = folder_of(root, "overrides")
    flat = flatten_config(load_config("paella:tiny"))
    lines = [f"--config.{name}={value}" for name, value in flat.items()]
    (folder / "overrides.txt").write_text("\n".join(lines))
    names = ("config field", "unknown argument", "config.", "data.")
    ways = (m.mutate_overrides,) * 8
    made.append(Example("overrides", folder, {"overrides.txt": ways}, _override, 2.0, names))
    return made


def drawn_from(root: Path) -> Example:
    """A whole run without digests, loaded as for drawing; made apart, as jax forks badly."""
    folder = root / "whole"
    child = os.fork()
    if not child:
        small.untrained(folder, small.small_paella())
        os._exit(0)
    os.waitpid(child, 0)
    (folder / "digests.json").unlink()
    files = {"config.json": JSON, "frozen/vqgan.json": JSON}
    read = lambda place: paella_jax.load(place).settings()
    return Example("whole", folder, files, read, 0.05, ("/whole",))


def _override(folder: Path) -> None:
    if not (folder / "overrides.txt").is_file():
        return
    config = load_config("paella:tiny")
    text = (folder / "overrides.txt").read_text("utf-8", "replace")
    with config.unlocked():
        for line in text.splitlines():
            apply_override(config, line)
