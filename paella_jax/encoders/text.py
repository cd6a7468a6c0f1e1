"""The text side of a run: tokenizers and a T5 encoder, trained jointly or frozen.

Tokenizers pad to static lengths and say in a mask which ids are real. An encoder given the mask
never looks at padding. Without it (T5Encoder's `mask=None`) padding ids are keys like any other, as
in references that pad without a mask. CLIP's text tower needs none: its padding comes last, and it
is causal.
"""

from __future__ import annotations

import copy
import re
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.encoders.byte_tokenizer import (
    VOCAB_SIZE,
    ByteTokenizer,
    PromptError,
    bucket_length,
    check_prompts,
    pad_rows,
)
from paella_jax.encoders.t5 import T5Encoder
from paella_jax.encoders.words import WordTokenizer
from paella_jax.outside import listed, shortened

TOKENIZER_FILES = (
    "tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
# What sets how many ids of a caption are read, in messages.
TEXT_LIMITS, CLIP_LIMITS = "text.max_length and text.pad_to", "as CLIP has it"
UNITS = {"bytes": VOCAB_SIZE, "words": 0}  # of the encoder that trains along: its table's rows


class Tokenizer(Protocol):
    """Texts -> int32 ids and bool mask, both [batch, length]; `pad_to` fixes the length."""

    max_length: int

    def __call__(
        self, texts: Sequence[str], pad_to: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]: ...

    def cut(self, text: str) -> str:
        """The part of a text that fits into `max_length`."""
        ...


@contextmanager
def readable_tokenizer(folder: str | Path) -> Iterator[None]:
    """Turns whatever transformers raises at a folder's damaged files into a ValueError.

    Raises:
      ValueError: naming the tokenizer's files that are there.
    """
    try:
        yield
    except Exception as error:  # tokenizers raise Exception itself
        there = [name for name in TOKENIZER_FILES if (Path(folder) / name).is_file()]
        reason = shortened(error) or type(error).__name__
        raise ValueError(
            f"{folder}: its tokenizer ({listed(there) or 'no file'}) cannot be read: {reason}; "
            "download these files again"
        ) from error


class HubTokenizer:
    """A transformers tokenizer read from a local folder, with our calling convention.

    Args:
      folder: holds the tokenizer's files.
      max_length: most ids a text may have, its end token included.
      truncate: cut longer texts, keeping the end token, instead of refusing them.
    """

    def __init__(self, folder: str | Path, max_length: int, truncate: bool = False) -> None:
        from transformers import AutoTokenizer

        self.max_length, self.truncate = max_length, truncate
        with readable_tokenizer(folder):
            self.inner = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)

    def __call__(
        self, texts: Sequence[str], pad_to: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Raises PromptError where a text is longer than the limit or `pad_to`."""
        limit = self.max_length if pad_to is None else min(pad_to, self.max_length)
        rows = [self._encode(text, limit) for text in texts]
        longest = max(len(row) for row in rows)
        if longest > limit:
            raise PromptError(f"a prompt has {longest} tokens, the limit is {limit}; shorten it")
        length = bucket_length(longest, limit) if pad_to is None else pad_to
        return pad_rows(rows, length, 0)

    def cut(self, text: str) -> str:
        """The part of a text that fits into `max_length`."""
        count = lambda part: len(self.inner(part, verbose=False)["input_ids"])
        return longest_part(text, lambda part: count(part) <= self.max_length)

    def _encode(self, text: str, limit: int) -> list[int]:
        # transformers cuts the text and keeps the marks; it would also warn of long texts.
        cut = {"truncation": True, "max_length": limit} if self.truncate else {}
        return self.inner(text, verbose=False, **cut)["input_ids"]


class ClipTokenizer:
    """CLIP's byte-pair tokenizer: start mark, text, end mark, then padding, 77 ids in all.

    Args:
      folder: holds `tokenizer.json`, or `vocab.json` and `merges.txt`.
      max_length: ids of every row, both marks included.
      truncate: cut longer texts, keeping the end mark, instead of refusing them.

    Raises:
      FileNotFoundError: the folder holds no tokenizer.
    """

    def __init__(self, folder: str | Path, max_length: int = 77, truncate: bool = False) -> None:
        from transformers import CLIPTokenizer

        has = lambda *names: all((Path(folder) / name).is_file() for name in names)
        if not has("tokenizer.json") and not has("vocab.json", "merges.txt"):
            raise FileNotFoundError(
                f"{folder} has neither tokenizer.json nor vocab.json and merges.txt; give a folder "
                "with CLIP's tokenizer files (ClipTokenizer.from_hub downloads them)"
            )
        with readable_tokenizer(folder):
            self._set(CLIPTokenizer.from_pretrained(str(folder), local_files_only=True), max_length)
        self.truncate = truncate

    @classmethod
    def from_hub(cls, name: str, max_length: int = 77, truncate: bool = False) -> ClipTokenizer:
        """The tokenizer of a model on the Hugging Face hub, e.g. "openai/clip-vit-large-patch14".

        Raises:
          OSError: there is no such model, or no network and no cached copy.
        """
        from transformers import CLIPTokenizer

        tokenizer = cls.__new__(cls)
        tokenizer._set(CLIPTokenizer.from_pretrained(name), max_length)
        tokenizer.truncate = truncate
        return tokenizer

    def _set(self, inner: Any, max_length: int) -> None:
        if max_length < 2:
            raise ValueError(f"max_length is {max_length}, but the two marks alone need 2")
        self.inner, self.max_length = inner, max_length
        # Some files name no padding token; the reference then pads with the end mark.
        self.pad_id = inner.eos_token_id if inner.pad_token_id is None else inner.pad_token_id

    def truncating(self) -> ClipTokenizer:
        """The same tokenizer, cutting texts that are too long."""
        return truncating(self, self.max_length)

    def cut(self, text: str) -> str:
        """The part of a text that fits into `max_length`."""
        return longest_part(text, lambda part: len(self._inside(part)) + 2 <= self.max_length)

    def __call__(
        self, texts: str | Sequence[str], pad_to: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [batch, pad_to or max_length] and mask bool, True from start to end mark.

        "" is the two marks alone.

        Raises:
          PromptError: no texts, one that is no valid Unicode str, or one that is too long.
        """
        texts = check_prompts(texts, sys.maxsize, allow_empty=True)
        length = self.max_length if pad_to is None else pad_to
        limit = min(length, self.max_length)
        rows = [self._encode(text, position, limit) for position, text in enumerate(texts)]
        return pad_rows(rows, length, self.pad_id)

    def _inside(self, text: str) -> list[int]:
        # Without `verbose` transformers would warn of what is an error or wanted here.
        return self.inner(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _encode(self, text: str, position: int, limit: int) -> list[int]:
        inside = self._inside(text)
        if len(inside) + 2 > limit and not self.truncate:
            raise PromptError(
                f"prompt {position} has {len(inside) + 2} CLIP tokens (both marks included) but "
                f"the limit is {limit}; shorten it"
            )
        return [self.inner.bos_token_id, *inside[: limit - 2], self.inner.eos_token_id]


def joint_text_encoder(text: ConfigDict, precision: str) -> T5Encoder:
    """A small T5 encoder of bytes or words that trains with the image model.

    Raises:
      ConfigError: `text.units` is neither, bytes without a layer, or a kernel of frozen encoders.
    """
    units = text.get("units", "bytes")  # runs may be older than the field
    if units not in UNITS:
        raise ConfigError(f"text.units must be bytes or words, got {units!r}")
    if units == "bytes" and text.num_layers < 1:
        raise ConfigError(
            "text.num_layers is 0, but single bytes say nothing; use text.units=words"
        )
    if text.get("attention", "xla") != "xla":
        raise ConfigError(
            f"text.attention={text.attention} is for frozen encoders; this one trains along (xla)"
        )
    values = text.get("values_from", "states")
    if values not in ("states", "words"):
        raise ConfigError(f"text.values_from must be states or words, got {values!r}")
    if (values, units) == ("words", "bytes"):
        raise ConfigError("text.values_from=words reads single words; it needs text.units=words")
    return T5Encoder(
        vocab_size=UNITS[units],
        width=text.width,
        num_layers=text.num_layers,
        num_heads=text.num_heads,
        head_dim=text.width // text.num_heads,
        hidden_dim=text.hidden_dim,
        dropout=text.dropout,
        local_start=True,
        word_values=values == "words",
        dtype=jnp.dtype(precision),
    )


def truncating(tokenizer: Any, length: int) -> Any:
    """The same tokenizer, cutting texts to a number of ids. Raises ValueError for less than one."""
    if length < 1:
        raise ValueError(f"max_length is {length}, but the end mark alone needs 1")
    other = copy.copy(tokenizer)
    other.max_length, other.truncate = length, True
    return other


def refusing(tokenizer: Any) -> Any:
    """The same tokenizer, which raises PromptError for texts that are too long."""
    other = copy.copy(tokenizer)
    other.truncate = False
    return other


def longest_part(text: str, fits: Callable[[str], bool]) -> str:
    """The longest beginning of a text that fits: whole words, or a part of the first one."""
    if fits(text):
        return text
    words = [match.end() for match in re.finditer(r"\S+", text)]
    too_long = lambda end: not fits(text[:end])
    count = bisect_left(words, True, key=too_long)
    if count:
        return text[: words[count - 1]]
    return text[: max(0, bisect_left(range(len(text)), True, key=too_long) - 1)]


def make_tokenizer(
    vocab_size: int, folder: str | Path, max_length: int, **options: Any
) -> Tokenizer:
    """Words without a vocabulary, bytes for ByT5's, otherwise the tokenizer files in `folder`."""
    if not vocab_size:
        return WordTokenizer(max_length, **options)
    if vocab_size == VOCAB_SIZE:
        return ByteTokenizer(max_length, **options)
    return HubTokenizer(folder, max_length, **options)
