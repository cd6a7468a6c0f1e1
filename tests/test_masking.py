"""Masking of tokens: densities, exact counts, and that each sample depends on its own key alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.noise.masking import (
    add_mask,
    exact_mask,
    mask_randomly,
    mask_ratio,
    num_masked,
    sample_mask_ratio,
)
from paella_jax.noise.tokens import sample_keys

pytestmark = pytest.mark.usefixtures("keys_used_once")

MASK = 99


def keys(count, seed=0):
    return sample_keys(jax.random.key(seed), jnp.arange(count))


def test_cosine_ratios_have_the_arccos_density():
    """Share below r is (2 / pi) asin(r); the mean is 2 / pi (docs/models/muse.md 1.5)."""
    ratios = np.asarray(sample_mask_ratio(keys(20_000)))
    assert ratios.min() >= 0.0 and ratios.max() <= 1.0
    assert abs(ratios.mean() - 2 / np.pi) < 0.01
    for level in (0.2, 0.5, 0.8, 0.95):
        assert abs((ratios < level).mean() - 2 / np.pi * np.arcsin(level)) < 0.015
    np.testing.assert_allclose(mask_ratio(jnp.array([0.0, 2 / 3])), [1.0, 0.5], atol=1e-6)


def test_uniform_ratios_and_the_minimum():
    ratios = np.asarray(sample_mask_ratio(keys(4000), "uniform"))
    assert abs(ratios.mean() - 0.5) < 0.02 and abs(ratios.std() - 1 / np.sqrt(12)) < 0.02
    held = np.asarray(sample_mask_ratio(keys(4000), "uniform", minimum=0.4))
    np.testing.assert_allclose(held, np.maximum(ratios, 0.4))


def test_counts_round_half_to_even_and_are_at_least_one():
    ratios = jnp.array([0.0, 0.05, 0.25, 0.35, 0.95, 1.0])
    np.testing.assert_array_equal(num_masked(ratios, 10), [1, 1, 2, 4, 10, 10])
    np.testing.assert_array_equal(num_masked(jnp.array([0.125, 0.375]), 4), [1, 2])


def test_add_mask_masks_exactly_the_count():
    tokens = jax.random.randint(jax.random.key(1), (4, 5, 7), 0, 50)
    ratio = jnp.array([0.0, 0.3, 0.62, 1.0])
    masked, mask = add_mask(keys(4), tokens, ratio, MASK)
    np.testing.assert_array_equal(mask.sum((1, 2)), [1, 10, 22, 35])
    np.testing.assert_array_equal(masked, np.where(mask, MASK, tokens))
    assert masked.dtype == tokens.dtype


def test_every_position_is_masked_equally_often():
    uniform = jax.random.uniform(jax.random.key(2), (3000, 3, 4))
    mask = exact_mask(uniform, jnp.full(3000, 5))
    np.testing.assert_allclose(mask.mean(0), np.full((3, 4), 5 / 12), atol=0.04)


def test_a_sample_depends_on_its_own_key_alone():
    tokens = jax.random.randint(jax.random.key(1), (6, 4, 4), 0, 50)
    ratio = sample_mask_ratio(keys(6))
    masked, _ = add_mask(keys(6), tokens, ratio, MASK)
    part, _ = add_mask(keys(6)[3:5], tokens[3:5], ratio[3:5], MASK)
    np.testing.assert_array_equal(part, masked[3:5])
    np.testing.assert_array_equal(sample_mask_ratio(keys(6)[2:3]), ratio[2:3])
    other, _ = add_mask(keys(6, seed=1), tokens, ratio, MASK)
    assert (other != masked).any()


def test_random_masking_is_strict_and_takes_one_ratio_per_sample():
    tokens = jnp.zeros((2, 1, 3), jnp.int32)
    uniform = jnp.array([[[0.0, 0.5, 0.9]], [[0.0, 0.5, 0.9]]])
    masked, mask = mask_randomly(tokens, uniform, jnp.array([0.5, 0.0]), MASK)
    np.testing.assert_array_equal(mask, [[[True, False, False]], [[False, False, False]]])
    np.testing.assert_array_equal(masked == MASK, mask)
    _, all_masked = mask_randomly(tokens, uniform, 1.0, MASK)
    assert all_masked.all()


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"mask density must be one of .* got 'sine'"):
        sample_mask_ratio(keys(1), "sine")
    with pytest.raises(ValueError, match=r"minimum mask ratio 1\.5 must be in \[0, 1\]"):
        sample_mask_ratio(keys(1), minimum=1.5)
