"""A text that is found by one thing and read as another: keys and values in every attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from paella_jax.config import ConfigError
from paella_jax.encoders.text import joint_text_encoder
from paella_jax.encoders.words import WordTokenizer
from paella_jax.families.text_side import TextSide
from paella_jax.families.token_networks import TokenNetworks
from paella_jax.models.blocks import AttentionBlock
from paella_jax.models.conditioning import ConditionInputs
from paella_jax.models.context import KeysAndValues, both, joined, mapped
from paella_jax.models.layers import MultiHeadAttention
from paella_jax.models.transformer_layers import SeparateAttention


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


X, KEYS, VALUES = draw(0, 2, 6, 8), draw(1, 2, 5, 8), draw(2, 2, 5, 8)
ATTENTIONS = [
    MultiHeadAttention(2),
    MultiHeadAttention(2, self_attention=False),
    SeparateAttention(2),
]


@pytest.mark.parametrize("module", ATTENTIONS, ids=["joint", "cross", "separate"])
def test_equal_keys_and_values_are_one_context(module):
    variables = module.init(jax.random.key(3), X, KEYS)
    one = module.apply(variables, X, KEYS)
    two = module.apply(variables, X, KeysAndValues(KEYS, KEYS))
    np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("module", ATTENTIONS[1:], ids=["cross", "separate"])
def test_values_are_read_where_keys_are_found(module):
    """Values that are the same everywhere are read whatever the keys are; others are not."""
    variables = module.init(jax.random.key(3), X, KEYS)
    read = lambda keys, values: module.apply(variables, X, KeysAndValues(keys, values))
    same = jnp.broadcast_to(VALUES[:, :1], VALUES.shape)
    np.testing.assert_allclose(read(KEYS, same), read(2 * KEYS, same), atol=1e-6)
    assert np.abs(read(KEYS, VALUES) - read(2 * KEYS, VALUES)).max() > 0.01
    assert np.abs(read(KEYS, VALUES) - read(KEYS, 2 * VALUES)).max() > 0.01


def test_a_block_maps_values_by_a_layer_of_their_own():
    x = draw(4, 2, 2, 3, 8)
    block = AttentionBlock(2)
    one = block.init(jax.random.key(0), x, KEYS)["params"]
    two = block.init(jax.random.key(0), x, KeysAndValues(KEYS, VALUES))["params"]
    assert set(two) - set(one) == {"kv_mapper_values"}


def test_joined_and_mapped():
    context = joined([X, KeysAndValues(KEYS, VALUES)])
    assert both(context).keys.shape == both(context).values.shape == (2, 11, 8)
    np.testing.assert_array_equal(context.keys[:, :6], context.values[:, :6])
    np.testing.assert_array_equal(context.values[:, 6:], VALUES)
    assert joined([X, KEYS]).shape == (2, 11, 8)
    names = []
    result = mapped(context, lambda name, x: names.append(name) or -x, "text")
    np.testing.assert_array_equal(result.values, -context.values)
    assert names == ["text", "text_values"]


def word_encoder():
    text = small.config_of("paella:tiny").text
    text.update(units="words", values_from="words", num_layers=1)
    encoder = joint_text_encoder(text, "float32")
    ids, mask = WordTokenizer(8)(["red cat", "blue cat"])
    return encoder, encoder.init(jax.random.key(0), ids, mask), ids, mask


def test_values_are_the_words_alone():
    encoder, variables, ids, mask = word_encoder()
    states, words = encoder.apply(variables, ids, mask)
    np.testing.assert_array_equal(words[0, 1], words[1, 1])
    assert np.abs(states[0, 1] - states[1, 1]).max() > 0.01
    assert np.abs(words[0, 0] - words[1, 0]).max() > 0.1


def test_token_networks_and_stages_are_given_both():
    encoder, variables, ids, mask = word_encoder()
    states, words = encoder.apply(variables, ids, mask)
    params = {"text_encoder": variables["params"]}
    networks = TokenNetworks(None, encoder, None, None, frozenset(), text_is_joint=True)
    of_tokens = networks.condition(params, {}, ConditionInputs(text_ids=ids, text_mask=mask))
    of_stage = TextSide(encoder, None, 8)(params, {}, ids, mask, 2)
    for cond in (of_tokens, of_stage):
        np.testing.assert_array_equal(cond.text_context.keys, states)
        np.testing.assert_array_equal(cond.text_context.values, words)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"values_from": "words"}, "needs text.units=words"),
        ({"values_from": "letters", "units": "words"}, "must be states or words, got 'letters'"),
    ],
)
def test_refusals(fields, message):
    text = small.config_of("paella:tiny").text
    text.update({"units": "bytes", "values_from": "states"} | fields)
    with pytest.raises(ConfigError, match=message):
        joint_text_encoder(text, "float32")
