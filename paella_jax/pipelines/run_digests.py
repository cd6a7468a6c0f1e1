"""Short names of what a pipeline draws with, to tell one training from another.

Of each array they see the shape and some values: not enough to find a damage, which is what the
digests of a run folder are for (runs/digests.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from paella_jax.config import to_json
from paella_jax.families.form_of_here import without_form
from paella_jax.typing import Tree

SEEN = 4096  # values of each array that it is known by
END = 2**16  # bytes at each end of a file of weights
WEIGHTS = (".safetensors", ".bin", ".msgpack")
NOT_SEEN = ("folder", "attention")  # where an encoder came from, and its kernel
ENCODERS = ("text_encoder", "clip_text", "image_encoder")  # in the trees of weights


def run_digest(parts: dict[str, tuple[ConfigDict, Tree]]) -> str:
    """A name of the configs and weights of a pipeline's `parts`."""
    digest = hashlib.blake2b(digest_size=8)
    for name, (config, weights) in sorted(parts.items()):
        digest.update(f"{name} {to_json(without_form(config))}".encode())
        _see(digest, weights)
    return digest.hexdigest()


def encoders_digest(config: ConfigDict, weights: Sequence[Tree], blocks: Sequence[str]) -> str:
    """A name of the encoders that a run's prompts go through.

    Args:
      config: of the run.
      weights: trees with the networks' names at their top, such as the trained and the frozen one.
      blocks: of the config, that say what is encoded; those it lacks are left out.
    """
    fields = lambda block: {k: v for k, v in block.to_dict().items() if k not in NOT_SEEN}
    own = {name: fields(config[name]) for name in blocks if name in config}
    digest = hashlib.blake2b(to_json(ConfigDict(own)).encode(), digest_size=8)
    for tree in weights:
        _see(digest, {name: tree[name] for name in ENCODERS if name in tree})
    return digest.hexdigest()


def content_digest(path: str | Path) -> str:
    """A name of a file's bytes, or of the ends of all files of weights in a folder."""
    path, digest = Path(path), hashlib.blake2b(digest_size=8)
    if path.is_file():
        digest.update(path.read_bytes())
        return digest.hexdigest()
    for file in sorted(x for x in path.rglob("*") if x.is_file()):
        inside = file.relative_to(path)
        if file.suffix in WEIGHTS or inside.parts[0] == "checkpoints":
            digest.update(f"{inside} {file.stat().st_size}\n".encode())
            with file.open("rb") as opened:
                digest.update(opened.read(END))
                opened.seek(max(0, file.stat().st_size - END))
                digest.update(opened.read(END))
    return digest.hexdigest()


def _see(digest: Any, tree: Tree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        values = np.asarray(_here(leaf)).reshape(-1)
        some = values[:: max(1, values.size // SEEN)]
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(some).tobytes())


def _here(leaf: Any) -> Any:
    """An array, or the part of it that this process holds first."""
    whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
    return leaf if whole else leaf.addressable_shards[0].data
