"""Whole words as text: their ids and a fixed vector for each, without a vocabulary.

An id is a hash of the word; its vector is drawn with the id as the key. Vectors of different words
are then as good as orthogonal, so that a linear map of them is a table of all words there are: a
small encoder has nothing to read letter by letter before an image can be learned.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.encoders.byte_tokenizer import EOS_ID, PAD_ID, PromptError, pad_rows
from paella_jax.typing import Array

# A run of letters, digits and what joins them; any other mark alone. Spaces part.
WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
FIRST_ID = 3  # below are the end mark, padding and one that is unused, as in the byte tokenizer
WIDTH = 512  # of a word's vector: cosines between words stay below about 0.2
LENGTH_STEP = 8  # padded lengths are multiples of it


def word_id(word: str) -> int:
    """A number in [3, 2**31) for a word; upper and lower case are the same."""
    return FIRST_ID + zlib.crc32(word.lower().encode("utf-8")) % (2**31 - FIRST_ID)


def word_vectors(ids: Array) -> Array:
    """Fixed vectors of ids int32 [batch, length] -> float32 [batch, length, 512], of -1 and 1.

    They are the same on every device and in every run.
    """
    key = jax.random.key(0, impl="threefry2x32")
    draw = lambda one: jax.random.bits(jax.random.fold_in(key, one), (WIDTH // 32,))
    bits = jax.vmap(jax.vmap(draw))(ids)[:, :, None, :]
    bits = (bits >> jnp.arange(32, dtype=jnp.uint32)[None, None, :, None]) & 1
    return 2.0 * bits.reshape(*ids.shape, WIDTH).astype(jnp.float32) - 1.0


class WordTokenizer:
    """Text to word ids and an end mark, padded.

    Args:
      max_length: most ids a text may have, its end mark included.
      truncate: cut longer texts, keeping the end mark, instead of refusing them.
    """

    def __init__(self, max_length: int, truncate: bool = False) -> None:
        if max_length < 1:
            raise ValueError(f"max_length is {max_length}, but the end mark alone needs 1")
        self.max_length, self.truncate = max_length, truncate

    def __call__(
        self, texts: str | Sequence[str], pad_to: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [batch, length] and mask bool [batch, length], True at real ids.

        Raises:
          PromptError: no texts, one that is no str, or one that is longer than the limit.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise PromptError("there are no texts to tokenize; give at least one")
        limit = self.max_length if pad_to is None else min(pad_to, self.max_length)
        rows = [self._encode(text, position, limit) for position, text in enumerate(texts)]
        longest = max(len(row) for row in rows)
        length = min(-(-longest // LENGTH_STEP) * LENGTH_STEP, limit) if pad_to is None else pad_to
        return pad_rows(rows, length, PAD_ID)

    def cut(self, text: str) -> str:
        """The part of a text that fits into `max_length`."""
        ends = [match.end() for match in WORD.finditer(text)][: self.max_length - 1]
        return text[: ends[-1]] if ends else ""

    def starts(self, text: str) -> list[int]:
        """The character each id of `text` starts in; the end mark starts behind the text."""
        return [*(match.start() for match in WORD.finditer(text)), len(text)]

    def _encode(self, text: str, position: int, limit: int) -> list[int]:
        if not isinstance(text, str):
            raise PromptError(f"prompt {position} is of type {type(text).__name__}; give a str")
        ids = [word_id(word) for word in WORD.findall(text)]
        if len(ids) + 1 > limit and not self.truncate:
            raise PromptError(
                f"prompt {position} has {len(ids)} words and marks, with its end {len(ids) + 1} "
                f"ids, but the limit is {limit}; shorten it"
            )
        return [*ids[: limit - 1], EOS_ID]
