"""A run's config as others can read it: without the folders of the machine that it trained on."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from ml_collections import ConfigDict

from paella_jax.config import from_json, to_json
from paella_jax.files.atomic import write_atomically
from paella_jax.runs.derive import settled
from paella_jax.runs.folder import SOURCES
from paella_jax.runs.frozen import FROZEN

# Of these a shared config keeps the last name: where there is none, a super-resolution has no use
# for its low tokenizer. Other sources of networks are left out, as the networks go along.
NAMED = (
    "low_tokenizer",
    "data.folder", "data.validation_folder", "data.image_file", "data.shards",
    "data.array_record", "data.parquet", "data.tfds_folder", "data.validation_files",
    "objective.perceptual_file",
)  # fmt: skip
LEFT_OUT = {*SOURCES, "data.encoded"} - {*NAMED}


def portable(config: ConfigDict) -> ConfigDict:
    """The config of whole weights, of which no path says where anything lay."""
    config = settled(config)
    with config.unlocked():
        for name in LEFT_OUT:
            _change(config, name, lambda value: "")
        for name in NAMED:
            _change(config, name, last_name)
    return config


def last_name(value: Any) -> Any:
    """The last part of a path; of several paths, of each."""
    if isinstance(value, tuple | list):
        return tuple(map(last_name, value))
    is_place = isinstance(value, str) and PurePath(value).is_absolute()
    return PurePath(value).name if is_place else value


def portable_frozen(folder: Path) -> None:
    """Does the same to the configs of the networks that a run carries."""
    for file in (folder / FROZEN).rglob("*.json"):
        if file.name in ("vqgan.json", "stage_b.json"):
            write_atomically(file, to_json(portable(from_json(file.read_text()))))


def _change(config: ConfigDict, name: str, change: Any) -> None:
    *parents, last = name.split(".")
    node: Any = config
    for parent in parents:
        node = node.get(parent) if node is not None else None
    if node is not None and node.get(last) is not None:
        node[last] = change(node[last])
