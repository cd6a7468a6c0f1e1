"""How well images fit their captions by a CLIP model: CLIP score and PickScore."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from paella_jax.encoders.published import TEXT, load_clip_text_folder
from paella_jax.encoders.text import ClipTokenizer
from paella_jax.evaluation.features import BATCH, FeatureNetwork, load_features
from paella_jax.files.weights_file import read_weights
from paella_jax.typing import Array

LENGTH = 77


@dataclass(frozen=True)
class ClipJudge:
    """Both towers of a CLIP model with its tokenizer.

    Attributes:
      images: the vision tower, as any feature network.
      scale: exp of the trained temperature, by which PickScore multiplies the cosine.
    """

    images: FeatureNetwork
    scale: float
    _tokenize: ClipTokenizer
    _run: object

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> float32 [count, width], not of unit length. Long ones are cut."""
        parts = []
        for start in range(0, len(texts), BATCH):
            some = list(texts[start : start + BATCH])
            ids = self._tokenize([*some, *[""] * (BATCH - len(some))], LENGTH)[0]
            parts.append(np.asarray(self._run(ids))[: len(some)])  # type: ignore[operator]
        return np.concatenate(parts)


def load_clip_judge(folder: str | Path) -> ClipJudge:
    """Reads a Hugging Face folder of a whole CLIP model with its tokenizer (PickScore's too).

    Raises:
      FileNotFoundError, ConversionError, ValueError: files that are missing or do not fit.
    """
    images = load_features("clip", folder)
    tower, params = load_clip_text_folder(folder)
    if tower.projection != images.width:
        raise ValueError(f"{folder}: text and image embeddings differ in width")
    found = read_weights(Path(folder), lambda name: name == "logit_scale", TEXT.model_class)
    scale = float(np.exp(np.asarray(found.get("logit_scale", np.log(100.0)), np.float64)).item())
    placed = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    embed = jax.jit(lambda params, ids: tower.apply({"params": params}, ids).embedding)
    run = lambda ids: embed(placed, ids)
    return ClipJudge(images, scale, ClipTokenizer(folder).truncating(), run)


def cosines(images: np.ndarray | Array, texts: np.ndarray | Array) -> np.ndarray:
    """The CLIP score of every pair of embeddings [n, d]: their cosine, in [-1, 1]."""
    x, y = (np.asarray(v, np.float64) for v in (images, texts))
    return (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
