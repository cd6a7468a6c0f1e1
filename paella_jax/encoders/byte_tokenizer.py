"""Byte tokenizer of ByT5 and the checks every prompt passes before it reaches a model.

A token is one UTF-8 byte plus 3 (0 pads, 1 ends a text, 2 is unused), so there is no vocabulary
file: Xue et al. 2022, "ByT5", section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from paella_jax.config import UserError

PAD_ID = 0
EOS_ID = 1
BYTE_OFFSET = 3  # id of byte 0; ids 0..2 are special
VOCAB_SIZE = 384  # 256 bytes and 3 special ids, rounded up by the released models

# Padded lengths. Few of them, because every length is one more compilation.
BUCKETS = (32, 64, 96, 128, 192, 256, 384, 512, 768)


class PromptError(UserError, ValueError):
    """A prompt that cannot be used: the message names its position, what is wrong and the fix."""


def bucket_length(length: int, limit: int) -> int:
    """Static length to pad `length` ids to: the next bucket, never above `limit`."""
    for bucket in BUCKETS:
        if length <= bucket:
            return min(bucket, limit)
    step = BUCKETS[0]
    return min(-(-length // step) * step, limit)


def pad_rows(
    rows: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids -> int32 [rows, length] filled up with `pad_id`, and a mask, True at ids."""
    ids = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, True
    return ids, mask


def check_prompts(
    prompts: str | Iterable[str], max_length: int, allow_empty: bool = False
) -> list[str]:
    """Returns `prompts` as a list of usable texts.

    Args:
      prompts: one text or several.
      max_length: most ids a text may have, its end mark included.
      allow_empty: whether "" and blank texts pass; only the unconditional branch wants them.

    Raises:
      PromptError: no prompt at all, or one that is not a str, blank, too long or not valid Unicode.
    """
    if isinstance(prompts, str):
        prompts = [prompts]
    if isinstance(prompts, bytes) or not isinstance(prompts, Iterable):
        raise PromptError(
            f"prompts is of type {type(prompts).__name__}; give a str or a list of str"
        )
    texts = list(prompts)
    if not texts:
        raise PromptError("there are no prompts; give at least one text")
    for position, text in enumerate(texts):
        length = len(_utf8(text, position)) + 1
        if not allow_empty and not text.strip():
            raise PromptError(
                f'prompt {position} is empty; give a text to draw ("" is only for the '
                "unconditional branch)"
            )
        _check_length(length, max_length, position)
    return texts


class ByteTokenizer:
    """Text to ids and back, padded to a few static lengths.

    Args:
      max_length: most ids a text may have, its end mark included (Paella's reference: 768).
      truncate: cut longer texts, keeping the end mark, instead of refusing them. For training
        captions, where one long text must not stop the run; the cut may split a character, as the
        reference's does.
    """

    def __init__(self, max_length: int, truncate: bool = False):
        if max_length < 1:
            raise ValueError(f"max_length is {max_length}, but the end mark alone needs 1")
        self.max_length = max_length
        self.truncate = truncate

    def encode(self, text: str, position: int = 0) -> list[int]:
        """Ids of `text` and the end mark, unpadded; "" is the end mark alone.

        `position` only names the text in errors.

        Raises:
          PromptError: `text` is not a str, not valid Unicode, or longer than `max_length` ids.
        """
        data = _utf8(text, position)
        if self.truncate:
            data = data[: self.max_length - 1]
        _check_length(len(data) + 1, self.max_length, position)
        return [byte + BYTE_OFFSET for byte in data] + [EOS_ID]

    def __call__(
        self, texts: str | Sequence[str], pad_to: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [batch, length] and mask bool [batch, length], True at real ids.

        Without `pad_to` the length is the smallest of `BUCKETS` that holds the longest text
        (beyond the last bucket: a multiple of 32), at most `max_length`.

        Raises:
          PromptError: as `encode`, or no texts, or a text longer than `pad_to`.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise PromptError("there are no texts to tokenize; give at least one")
        rows = [self.encode(text, position) for position, text in enumerate(texts)]
        longest = max(len(row) for row in rows)
        length = bucket_length(longest, self.max_length) if pad_to is None else pad_to
        if longest > length:
            position = next(i for i, row in enumerate(rows) if len(row) > length)
            raise PromptError(
                f"prompt {position} has {len(rows[position])} ids but is to be padded to {length}; "
                "shorten it or raise pad_to"
            )
        return pad_rows(rows, length, PAD_ID)

    def cut(self, text: str) -> str:
        """The part of a text that fits into `max_length`, without half a character at its end."""
        return text.encode()[: self.max_length - 1].decode(errors="ignore")

    def decode(self, ids: Iterable[int]) -> str:
        """Text of one row of ids; special and unused ids and incomplete characters are dropped."""
        data = bytes(int(i) - BYTE_OFFSET for i in ids if 0 <= int(i) - BYTE_OFFSET < 256)
        return data.decode("utf-8", errors="ignore")


def _utf8(text: Any, position: int) -> bytes:
    if not isinstance(text, str):
        raise PromptError(f"prompt {position} is of type {type(text).__name__}; give a str")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"prompt {position} is not valid Unicode: half a surrogate pair at character "
            f"{error.start}; remove it or decode the text again"
        ) from None


def _check_length(length: int, limit: int, position: int) -> None:
    if length > limit:
        raise PromptError(
            f"prompt {position} has {length} ids (UTF-8 bytes and an end mark) but the limit is "
            f"{limit}; shorten it"
        )
