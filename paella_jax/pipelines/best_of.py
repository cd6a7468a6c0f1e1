"""The best of several images of a prompt, by a score; CLIP's or whatever has its form.

MUSE shows the best of 16 by CLIP score (docs/models/muse.md 1.6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

# (images uint8 [N, height, width, 3], N prompts) -> float [N]; the more, the better they fit.
# A CLIP model's is `encoders/clip_judge.py:ClipJudge.score`.
Score = Callable[[np.ndarray, Sequence[str]], np.ndarray]


def best(score: Score, images: np.ndarray, prompts: Sequence[str]) -> tuple[int, float]:
    """The number of the image with the highest score, and that score.

    Raises:
      ValueError: the scores are not one finite number per image.
    """
    scores = np.asarray(score(images, prompts), np.float64)
    if scores.shape != (len(images),) or not np.isfinite(scores).all():
        raise ValueError(
            f"the score gave {scores.tolist()} for {len(images)} images; it must give one finite "
            "number each"
        )
    number = int(scores.argmax())
    return number, float(scores[number])
