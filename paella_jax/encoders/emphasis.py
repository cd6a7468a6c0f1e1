"""Attention weights for phrases of a prompt (docs/models/paella.md 2.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from paella_jax.encoders.byte_tokenizer import ByteTokenizer, PromptError
from paella_jax.encoders.words import WordTokenizer


def text_weights(
    tokenizer: Any, text: str, emphasis: Mapping[str, float], length: int
) -> np.ndarray:
    """One factor per token: a phrase's own where `emphasis` names it, 1 elsewhere.

    Args:
      tokenizer: the run's text tokenizer.
      text: the prompt.
      emphasis: phrase -> factor of the attention its tokens receive; above 1 stresses, below 1
        plays down. Every occurrence of the phrase counts.
      length: positions of the padded prompt.

    Returns:
      float32 [length].

    Raises:
      PromptError: a phrase does not occur, or a factor is not a finite number of at least 0.
    """
    weights = np.ones(length, np.float32)
    for phrase, factor in emphasis.items():
        if not np.isfinite(factor) or factor < 0:
            raise PromptError(f"emphasis of {phrase!r} is {factor}; give a number of at least 0")
        if not phrase or phrase not in text:
            raise PromptError(f"emphasis names {phrase!r}, which is not in the prompt {text!r}")
        starts = _token_starts(tokenizer, text)
        begin = text.find(phrase)
        while begin >= 0:
            inside = (starts >= begin) & (starts < begin + len(phrase))
            weights[: len(starts)][inside] = factor
            begin = text.find(phrase, begin + 1)
    return weights


def _token_starts(tokenizer: Any, text: str) -> np.ndarray:
    """The character each token of `text` starts in; the end token starts behind the text."""
    if isinstance(tokenizer, ByteTokenizer):
        owners = [i for i, letter in enumerate(text) for _ in letter.encode("utf-8")]
        return np.array([*owners, len(text)])
    if isinstance(tokenizer, WordTokenizer):
        return np.array(tokenizer.starts(text))
    offsets = tokenizer.inner(text, return_offsets_mapping=True)["offset_mapping"]
    # Special tokens have an empty span; they belong to no phrase.
    return np.array([start if end > start else len(text) for start, end in offsets])
