"""How well images fit their captions by a CLIP model: CLIP score and PickScore.

PickScore is a CLIP with other weights, so that its folder works as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from paella_jax.encoders.feature_network import BATCH, FeatureNetwork, as_float32
from paella_jax.encoders.preprocess import CLIP_MEAN, CLIP_STD
from paella_jax.encoders.published import (
    TEXT,
    load_clip_text_folder,
    load_clip_vision_folder,
)
from paella_jax.encoders.text import ClipTokenizer
from paella_jax.files.weights_file import read_weights
from paella_jax.ops.resize import antialias_matrix
from paella_jax.typing import Array

USUAL_SCALE = 100.0  # of a model whose file has none


@dataclass(frozen=True)
class ClipJudge:
    """Both towers of a CLIP model with its tokenizer.

    Attributes:
      images: the vision tower, as any feature network.
      scale: exp of the trained temperature, by which PickScore multiplies the cosine.
      tokenize: texts -> ids, longer ones cut.
      run: ids -> embeddings, of the text tower.
    """

    images: FeatureNetwork
    scale: float
    tokenize: ClipTokenizer
    run: Callable[[np.ndarray], Array]

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> float32 [count, width], not of unit length. Long ones are cut."""
        size = min(BATCH, len(texts))  # the last batch is filled up: one program serves
        parts = []
        for start in range(0, len(texts), size):
            some = list(texts[start : start + size])
            ids = self.tokenize([*some, *[""] * (size - len(some))])[0]
            parts.append(np.asarray(self.run(ids))[: len(some)])
        return np.concatenate(parts)

    def score(self, images: Sequence[np.ndarray] | np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """The CLIP score of uint8 images [H, W, 3], each with its text: float64 [count]."""
        vectors = self.images.extract(images, min(BATCH, len(images))).vectors
        return cosines(vectors, self.embed_texts(texts))


def load_clip_judge(folder: str | Path) -> ClipJudge:
    """Reads a Hugging Face folder of a whole CLIP model with its tokenizer.

    Raises:
      FileNotFoundError, ConversionError: no such folder, or not all of that in it.
      ValueError: a tower without its projection, or towers that do not belong together.
    """
    images = load_clip_images(folder)
    tower, params = load_clip_text_folder(folder)
    if tower.projection != images.width:
        raise ValueError(
            f"{folder}: the towers project to {tower.projection} and {images.width}; a score needs "
            "a CLIP with both projections of one width"
        )
    found = read_weights(Path(folder), lambda name: name == "logit_scale", TEXT.model_class)
    logarithm = np.asarray(found.get("logit_scale", np.log(USUAL_SCALE)), np.float64)
    embed = jax.jit(lambda params, ids: tower.apply({"params": params}, ids).embedding)
    placed = as_float32(params)
    return ClipJudge(
        images,
        float(np.exp(logarithm).item()),
        ClipTokenizer(folder, tower.max_length, truncate=True),
        lambda ids: embed(placed, ids),
    )


def load_clip_images(folder: str | Path) -> FeatureNetwork:
    """The vision tower of a Hugging Face folder, whose features are the projected embeddings.

    Raises:
      FileNotFoundError, ConversionError: no such folder, or no vision tower in it.
      ValueError: a tower without its projection.
    """
    tower, params = load_clip_vision_folder(folder)
    if tower.projection is None:
        raise ValueError(f"{folder} has no visual projection; give a whole CLIP model")
    embed = jax.jit(lambda params, images: tower.apply({"params": params}, images).embedding)
    placed = as_float32(params)
    return FeatureNetwork(
        "clip",
        str(folder),
        tower.projection,
        lambda image: clip_image(image, tower.image_size),
        lambda batch: (embed(placed, batch), None),
    )


def clip_image(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [side, side, 3]: the numbers of `clip_preprocess`.

    On the host, so that images of many sizes need no program each.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    rows, columns = side * height // short, side * width // short
    down, across = (
        antialias_matrix(size, wanted, "bicubic")
        for size, wanted in ((height, rows), (width, columns))
    )
    resized = np.einsum("yh,hwc,xw->yxc", down, image / 255.0, across, optimize=True)
    top, left = round((rows - side) / 2), round((columns - side) / 2)
    square = resized[top : top + side, left : left + side]
    return ((square - np.asarray(CLIP_MEAN)) / np.asarray(CLIP_STD)).astype(np.float32)


def cosines(images: np.ndarray | Array, texts: np.ndarray | Array) -> np.ndarray:
    """The CLIP score of every pair of embeddings [n, d]: their cosine, in [-1, 1]."""
    x, y = (np.asarray(v, np.float64) for v in (images, texts))
    return (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
