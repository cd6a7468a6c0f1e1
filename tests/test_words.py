"""Whole words as text: ids by hash, fixed vectors, and prompts that are too long."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from paella_jax.config import ConfigError
from paella_jax.encoders.byte_tokenizer import EOS_ID, PAD_ID, PromptError
from paella_jax.encoders.emphasis import text_weights
from paella_jax.encoders.text import joint_text_encoder, make_tokenizer
from paella_jax.encoders.words import WordTokenizer, word_id, word_vectors


def test_ids_are_words_marks_and_an_end():
    ids, mask = WordTokenizer(24)(["A red cat, a RED cat", "猫 naïve it's", ""])
    red, cat = word_id("red"), word_id("cat")
    a, comma = word_id("a"), word_id(",")
    assert ids.shape == mask.shape == (3, 8)
    assert list(ids[0]) == [a, red, cat, comma, a, red, cat, EOS_ID]
    assert list(ids[1]) == [word_id("猫"), word_id("naïve"), word_id("it's"), EOS_ID, *[PAD_ID] * 4]
    assert list(ids[2]) == [EOS_ID, *[PAD_ID] * 7]
    assert list(mask.sum(1)) == [8, 4, 1]


def test_word_ids_never_change():
    assert word_id("red") == 2053201813
    assert min(word_id(str(n)) for n in range(1000)) >= 3


def test_vectors_are_fixed_and_nearly_orthogonal():
    ids = jnp.asarray([[word_id(f"word{n}") for n in range(200)]], jnp.int32)
    vectors = np.asarray(word_vectors(ids))[0]
    np.testing.assert_array_equal(vectors[7], np.asarray(jax.jit(word_vectors)(ids[:, 7:8]))[0, 0])
    assert set(np.unique(vectors)) == {-1.0, 1.0} and abs(vectors.mean()) < 0.01
    cosines = vectors @ vectors.T / vectors.shape[1]
    assert np.abs(cosines - np.eye(200)).max() < 0.25


@pytest.mark.parametrize(
    "texts, options, message",
    [
        ([], {}, "no texts"),
        ([3], {}, "prompt 0 is of type int"),
        (["a", "one two three four"], {}, "prompt 1 has 4 words and marks, with its end 5 ids"),
        (["one two three"], {"pad_to": 2}, "the limit is 2"),
    ],
)
def test_unusable_texts(texts, options, message):
    with pytest.raises(PromptError, match=message):
        WordTokenizer(4)(texts, **options)


def test_training_captions_are_cut_behind_a_word():
    ids, _ = WordTokenizer(3, truncate=True)(["one two three"])
    assert list(ids[0]) == [word_id("one"), word_id("two"), EOS_ID]
    assert WordTokenizer(3).cut(" one two, three") == " one two"
    assert WordTokenizer(1).cut("one") == ""


def test_no_room_for_the_end():
    with pytest.raises(ValueError, match="the end mark alone needs 1"):
        WordTokenizer(0)


def test_emphasis_finds_the_words_of_a_phrase():
    weights = text_weights(WordTokenizer(24), "a red cat, a red dog", {"red dog": 2.0}, 10)
    np.testing.assert_array_equal(weights, [1, 1, 1, 1, 1, 2, 2, 1, 1, 1])


def encoder_of(**fields):
    text = small.config_of("paella:tiny").text
    text.update({"units": "bytes", "values_from": "states"} | fields)
    return joint_text_encoder(text, "float32")


def test_an_encoder_of_words_has_no_table():
    encoder = encoder_of(units="words", values_from="states", num_layers=1)
    ids, mask = make_tokenizer(encoder.vocab_size, "", 24)(["a red cat", "a cat"])
    variables = encoder.init(jax.random.key(0), ids, mask)
    assert set(variables["params"]) == {"embedding", "block_0", "relative_bias", "final_norm"}
    states = encoder.apply(variables, ids, mask)
    assert states.shape == (2, 8, encoder.width)


def test_without_layers_each_word_is_read_by_itself():
    encoder = encoder_of(units="words", values_from="states", num_layers=0)
    red, cat, dog = (word_id(word) for word in ("red", "cat", "dog"))
    ids = jnp.asarray([[red, cat], [red, dog]])
    variables = encoder.init(jax.random.key(0), ids)
    assert set(variables["params"]) == {"embedding", "final_norm"}
    states = np.asarray(encoder.apply(variables, ids))
    np.testing.assert_array_equal(states[0, 0], states[1, 0])
    assert np.abs(states[0, 1] - states[1, 1]).max() > 0.1


def test_bytes_without_layers_and_unknown_units_are_refused():
    with pytest.raises(ConfigError, match="single bytes say nothing"):
        encoder_of(num_layers=0)
    with pytest.raises(ConfigError, match="must be bytes or words, got 'letters'"):
        encoder_of(units="letters")
