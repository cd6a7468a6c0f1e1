"""Precomputed CLIP embeddings: two arrays in one file, a row per captioned image."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paella_jax.files.arrays import read_npz
from paella_jax.files.safetensors_file import map_safetensors

VALIDATION_EVERY = 20  # one row in twenty is kept for validation
NAMES = ("text_embedding", "image_embedding")
FILES = ("embeddings.safetensors", "embeddings.npz")


@dataclass
class EmbeddingSource:
    """`embeddings.safetensors` or `embeddings.npz` of a folder, held in memory as stored.

    The file holds `text_embedding` and `image_embedding`, float [rows, width]. One row in twenty is
    kept for validation; fewer than twenty rows serve both splits.

    Raises:
      ValueError: no such file, damaged, an array missing, of another shape or type than the model
        needs, or not finite; the message names the array, its row and the fix.
    """

    folder: str
    width: int
    split: str = "train"
    arrays: dict[str, np.ndarray] = field(init=False, repr=False)
    rows: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        file = _find(self.folder)
        stored = _read(file)
        self.arrays = {name: _checked(stored, name, self.width, file) for name in NAMES}
        text, image = (len(self.arrays[name]) for name in NAMES)
        if text != image:
            raise ValueError(
                f"{file}: text_embedding has {text} rows, image_embedding {image}; row i of both "
                "must belong to the same captioned image"
            )
        held = np.arange(text) % VALIDATION_EVERY == VALIDATION_EVERY - 1
        rows = np.flatnonzero(held == (self.split != "train"))
        self.rows = rows if len(rows) else np.arange(text)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Sample: both arrays' row, float32 [width]."""
        row = self.rows[int(index)]
        return {name: array[row].astype(np.float32) for name, array in self.arrays.items()}


def embedding_transform(sample: dict[str, Any]) -> dict[str, np.ndarray]:
    """Keeps both embeddings."""
    return {name: sample[name] for name in NAMES}


def _find(folder: str) -> Path:
    for name in FILES:
        if folder and (Path(folder) / name).is_file():
            return Path(folder) / name
    raise ValueError(
        f"data.folder {folder!r} holds neither {' nor '.join(FILES)}; give a folder of precomputed "
        f"embeddings (arrays {' and '.join(NAMES)}, [rows, width])"
    )


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        if file.suffix == ".safetensors":
            return map_safetensors(file)
        return read_npz(file, NAMES)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}); write it again") from error


def _checked(stored: dict[str, np.ndarray], name: str, width: int, file: Path) -> np.ndarray:
    if name not in stored:
        raise ValueError(f"{file} has no array {name!r}; it needs {' and '.join(NAMES)}")
    array = stored[name]
    if array.ndim != 2 or array.shape[1] != width or not len(array):
        raise ValueError(
            f"{file}: {name} has shape {array.shape}, the model needs [rows, {width}] with at "
            "least one row; set --config.model.clip_width to the embeddings' width"
        )
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise ValueError(f"{file}: {name} has dtype {array.dtype}; store floats")
    broken = ~np.isfinite(array).all(axis=1)
    if broken.any():
        raise ValueError(
            f"{file}: {name} is not finite in {broken.sum()} of {len(array)} rows, first in row "
            f"{int(broken.argmax())}; leave those samples out"
        )
    return array
