"""Scoring generated shapes images with the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paella_jax.data.shapes import get_spec
from paella_jax.data.shapes_captions import parse_caption
from paella_jax.evaluation.oracle import OracleScore, score


def score_images(images: np.ndarray, captions: Sequence[str], spec_name: str) -> OracleScore:
    """Scores images [count, H, W, 3] in [0, 1] against the captions they were drawn from."""
    spec = get_spec(spec_name)
    return score(images, [parse_caption(text, spec) for text in captions], spec)


def summary(result: OracleScore) -> dict[str, Any]:
    """The rates of a score, without the per-image list and the confusion tables."""
    names = ("exact", "count", "position", "color", "shape", "size", "background")
    return {name: round(float(getattr(result, name)), 4) for name in names}
