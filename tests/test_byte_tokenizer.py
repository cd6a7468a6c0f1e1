"""Byte tokenizer: parity with transformers' ByT5, static lengths, refused prompts."""

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from paella_jax.encoders.byte_tokenizer import (
    BUCKETS,
    ByteTokenizer,
    PromptError,
    bucket_length,
    check_prompts,
)

TEXTS = [
    "",
    "a red circle above a blue square",
    "  spaces, tabs\tand\nnew lines  ",
    "Grüße aus Köln, déjà vu, naïve",
    "une pêche e\u0301 (combining)",
    "日本語のテキスト 中文 한국어",
    "🦩 👩‍👩‍👧 🇫🇷 \U0001f9ea",
    "\x00\x01 control \x7f",
    "مرحبا שלום",
]


@pytest.mark.parametrize("text", TEXTS)
def test_same_ids_as_transformers(text):
    assert ByteTokenizer(768).encode(text) == ByT5Tokenizer()(text)["input_ids"]


def test_truncation_is_that_of_transformers():
    text = "ü" * 40  # the cut falls inside a character
    reference = ByT5Tokenizer()(text, truncation=True, max_length=32)["input_ids"]
    assert ByteTokenizer(32, truncate=True).encode(text) == reference


def test_padded_batch_is_that_of_transformers():
    ids, mask = ByteTokenizer(768)(TEXTS, pad_to=128)
    reference = ByT5Tokenizer()(TEXTS, padding="max_length", max_length=128)
    np.testing.assert_array_equal(ids, reference["input_ids"])
    np.testing.assert_array_equal(mask, np.asarray(reference["attention_mask"], bool))


@pytest.mark.parametrize("text", TEXTS)
def test_decode_inverts_encode(text):
    ids, _ = ByteTokenizer(768)([text])
    assert ByteTokenizer(768).decode(ids[0]) == text


def test_special_words_are_plain_text():
    assert ByteTokenizer(64).encode("</s>") == [63, 50, 118, 65, 1]


@pytest.mark.parametrize(
    ("length", "limit", "padded"),
    [(1, 768, 32), (32, 768, 32), (33, 768, 64), (97, 100, 100), (700, 768, 768), (769, 1024, 800)],
)
def test_bucket_length(length, limit, padded):
    assert bucket_length(length, limit) == padded


def test_lengths_are_buckets():
    tokenizer = ByteTokenizer(768)
    shapes = {tokenizer(["x" * n])[0].shape for n in range(0, 768, 7)}
    assert shapes == {(1, bucket) for bucket in BUCKETS}


def test_batch_dtypes_and_mask():
    ids, mask = ByteTokenizer(64)(["ab", ""])
    assert ids.dtype == np.int32 and mask.dtype == bool
    np.testing.assert_array_equal(mask.sum(1), [3, 1])
    np.testing.assert_array_equal(ids[:, :4], [[100, 101, 1, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(ids[:1], ByteTokenizer(64)("ab")[0])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no texts"),
        (["fine", 7], "prompt 1 is of type int"),
        (["fine", None], "prompt 1 is of type NoneType"),
        (["fine", "x" * 32], "prompt 1 has 33 ids .* limit is 32; shorten it"),
        (["bad \ud800"], "prompt 0 is not valid Unicode.*character 4"),
    ],
)
def test_tokenizer_refuses(texts, message):
    with pytest.raises(PromptError, match=message):
        ByteTokenizer(32)(texts)


def test_pad_to_too_short():
    with pytest.raises(PromptError, match="prompt 1 has 21 ids but is to be padded to 16"):
        ByteTokenizer(64)(["x", "x" * 20], pad_to=16)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompts"),
        (None, "type NoneType"),
        (b"bytes", "type bytes"),
        ("", "prompt 0 is empty"),
        (["fine", " \n\t"], "prompt 1 is empty"),
        (["fine", 3.0], "prompt 1 is of type float"),
        (["é" * 16], "prompt 0 has 33 ids"),
        (["\udc80"], "not valid Unicode"),
    ],
)
def test_check_prompts_refuses(prompts, message):
    with pytest.raises(PromptError, match=message):
        check_prompts(prompts, 32)


def test_check_prompts_accepts():
    assert check_prompts("one", 32) == ["one"]
    assert check_prompts(("one", "two"), 32) == ["one", "two"]
    assert check_prompts(["", "x" * 31], 32, allow_empty=True) == ["", "x" * 31]


def test_max_length_must_hold_the_end_mark():
    with pytest.raises(ValueError, match="max_length is 0"):
        ByteTokenizer(0)
