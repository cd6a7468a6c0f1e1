"""The forward process on tokens: shares, edges, and one key per sample."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.noise.tokens import (
    add_noise,
    loss_weight,
    random_tokens,
    replace_tokens,
    sample_keys,
    sample_noise_level,
    uniform_map,
)

CODES = 64
noise = jax.jit(partial(add_noise, codebook_size=CODES))
levels = jax.jit(sample_noise_level, static_argnames="minimum")


def keys_for(count, seed=0):
    return sample_keys(jax.random.key(seed), jnp.arange(count))


def tokens_for(count, size=16):
    return jnp.asarray(np.random.default_rng(0).integers(0, CODES, (count, size, size)), jnp.int32)


def test_share_of_replaced_tokens_is_t():
    t = jnp.array([0.0, 0.001, 0.25, 0.5, 0.9, 1.0])
    tokens = tokens_for(6, 128)
    noised, mask = noise(keys_for(6), tokens, t)
    share, count = np.asarray(mask).mean((1, 2)), 128 * 128
    assert (np.abs(share - t) <= 5 * np.sqrt(t * (1 - t) / count) + 1 / count).all()
    np.testing.assert_array_equal(np.where(mask, -1, noised), np.where(mask, -1, tokens))
    assert mask[5].all() and mask.dtype == bool and noised.dtype == jnp.int32
    # A replaced token can by chance be the original one.
    assert abs((noised == tokens)[5].mean() - 1 / CODES) < 5 * np.sqrt(1 / CODES / count)


def test_replacement_is_uniform_over_the_codebook_and_independent_of_the_mask():
    noised, mask = noise(keys_for(1), jnp.full((1, 256, 256), 3), jnp.array([0.5]))
    drawn = np.asarray(noised)[np.asarray(mask)]
    wanted = drawn.size / CODES
    chi_square = ((np.bincount(drawn, minlength=CODES) - wanted) ** 2 / wanted).sum()
    assert abs(chi_square - (CODES - 1)) < 5 * np.sqrt(2 * (CODES - 1))


def test_the_edge_belongs_to_the_noise():
    """uniform <= t, so a uniform of exactly 0 is replaced even at t = 0."""
    uniform = jnp.array([[[0.0, 0.25, 0.5, 0.75]]])
    tokens, replacement = jnp.zeros((1, 1, 4), int), jnp.ones((1, 1, 4), int)
    for t, wanted in ((0.0, [1, 0, 0, 0]), (0.5, [1, 1, 1, 0]), (1.0, [1, 1, 1, 1])):
        for level in (jnp.float32(t), jnp.array([t])):
            noised, mask = replace_tokens(tokens, replacement, uniform, level)
            np.testing.assert_array_equal(noised[0, 0], wanted)
            np.testing.assert_array_equal(mask[0, 0], np.array(wanted, bool))


def test_a_samples_noise_depends_on_its_own_key_only():
    tokens, t, keys = tokens_for(8), jnp.linspace(0.1, 1.0, 8), keys_for(8)
    noised, mask = noise(keys, tokens, t)
    order = jnp.array([5, 2, 7, 0, 1, 6, 4, 3])
    permuted, _ = noise(keys[order], tokens[order], t[order])
    np.testing.assert_array_equal(permuted, noised[order])
    part, part_mask = noise(keys[3:5], tokens[3:5], t[3:5])
    np.testing.assert_array_equal(part, noised[3:5])
    np.testing.assert_array_equal(part_mask, mask[3:5])
    alone = levels(keys[6:7])
    np.testing.assert_array_equal(alone, levels(keys)[6:7])


def test_samples_and_base_keys_differ():
    keys = keys_for(4)
    assert len(np.unique(jax.random.key_data(keys), axis=0)) == 4
    maps = np.asarray(uniform_map(keys, (8, 8)))
    assert len(np.unique(maps)) == maps.size and maps.min() >= 0 and maps.max() < 1
    tokens = random_tokens(keys, (8, 8), CODES)
    assert tokens.dtype == jnp.int32 and not np.array_equal(tokens[0], tokens[1])
    other = random_tokens(keys_for(4, seed=1), (8, 8), CODES)
    assert not np.array_equal(other, tokens)
    np.testing.assert_array_equal(
        jax.random.key_data(sample_keys(jax.random.key(0), jnp.array([2]))),
        jax.random.key_data(keys[2:3]),
    )


@pytest.mark.parametrize("minimum", [0.001, 0.2])
def test_noise_levels_are_uniform_between_the_minimum_and_one(minimum):
    t = np.asarray(levels(keys_for(20_000), minimum=minimum))
    assert t.dtype == np.float32 and t.min() >= minimum and t.max() <= 1
    # (1 - U) + minimum, clipped: a share `minimum` lands exactly on one.
    assert abs((t == 1).mean() - minimum) < 5 * np.sqrt(minimum / 20_000)
    quantiles = np.quantile(t, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(
        quantiles, np.minimum(np.array([0.25, 0.5, 0.75]) + minimum, 1), atol=0.02
    )


def test_loss_weight_is_the_closed_form():
    mask = jnp.array([[[True, False]], [[True, False]], [[True, False]]])
    t = jnp.array([0.0, 0.25, 1.0])
    weight = loss_weight(mask, t)
    assert weight.dtype == jnp.float32
    np.testing.assert_allclose(weight[:, 0, 0], 1.0)
    np.testing.assert_allclose(weight[:, 0, 1], 0.3 + 0.7 * np.asarray(t), atol=1e-7)
    np.testing.assert_allclose(loss_weight(mask, t, 0.15)[0, 0], [1.0, 0.15], atol=1e-7)
    np.testing.assert_allclose(loss_weight(mask, t, 1.0), 1.0)
