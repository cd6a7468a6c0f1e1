"""The text side of a run: a tokenizer and a T5 encoder, trained jointly or frozen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.encoders.byte_tokenizer import (
    VOCAB_SIZE,
    ByteTokenizer,
    PromptError,
    bucket_length,
)
from paella_jax.encoders.t5 import T5Encoder


class Tokenizer(Protocol):
    """Texts -> int32 ids and bool mask, both [batch, length]; `pad_to` fixes the length."""

    max_length: int

    def __call__(
        self, texts: Sequence[str], pad_to: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]: ...


class HubTokenizer:
    """A transformers tokenizer read from a local folder, with our calling convention."""

    def __init__(self, folder: str | Path, max_length: int) -> None:
        from transformers import AutoTokenizer

        self.max_length = max_length
        self.inner = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)

    def __call__(
        self, texts: Sequence[str], pad_to: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Raises PromptError where a text is longer than the limit."""
        rows = [self.inner(text)["input_ids"] for text in texts]
        longest = max(len(row) for row in rows)
        if longest > self.max_length:
            raise PromptError(
                f"a prompt has {longest} tokens, the limit is {self.max_length}; shorten it"
            )
        length = pad_to or bucket_length(longest, self.max_length)
        ids = np.zeros((len(rows), length), np.int32)
        mask = np.zeros((len(rows), length), bool)
        for index, row in enumerate(rows):
            kept = row[:length]
            ids[index, : len(kept)], mask[index, : len(kept)] = kept, True
        return ids, mask


def joint_text_encoder(text: ConfigDict, precision: str) -> T5Encoder:
    """A small byte-level T5 encoder that trains with the image model."""
    return T5Encoder(
        vocab_size=VOCAB_SIZE,
        width=text.width,
        num_layers=text.num_layers,
        num_heads=text.num_heads,
        head_dim=text.width // text.num_heads,
        hidden_dim=text.hidden_dim,
        dropout=text.dropout,
        local_start=True,
        dtype=jnp.dtype(precision),
    )


def make_tokenizer(
    vocab_size: int, folder: str | Path, max_length: int, **options: Any
) -> Tokenizer:
    """Bytes for a ByT5-sized vocabulary, otherwise the tokenizer files in `folder`."""
    if vocab_size == VOCAB_SIZE:
        return ByteTokenizer(max_length, **options)
    return HubTokenizer(folder, max_length)
