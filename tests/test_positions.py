"""Position vectors of small maps: their size, and that every place has its own."""

from __future__ import annotations

import numpy as np
import pytest

from paella_jax.models.positions import LONGEST, position_map


def test_formula():
    vectors = position_map(3, 5, 8)[0]
    slow = LONGEST**-0.5
    expected = np.sqrt(2) * np.array([
        np.sin(2), np.sin(2 * slow), np.cos(2), np.cos(2 * slow),
        np.sin(4), np.sin(4 * slow), np.cos(4), np.cos(4 * slow),
    ])  # fmt: skip
    np.testing.assert_allclose(vectors[2, 4], expected, rtol=1e-6)


@pytest.mark.parametrize("height, width, channels", [(4, 4, 128), (8, 8, 64), (24, 39, 64)])
def test_unit_size_and_different_everywhere(height, width, channels):
    vectors = np.asarray(position_map(height, width, channels))[0]
    assert vectors.shape == (height, width, channels) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.square(vectors).mean(-1), 1.0, rtol=1e-5)
    flat = vectors.reshape(-1, channels)
    apart = np.square(flat[:, None] - flat[None]).mean(-1) + 9 * np.eye(len(flat))
    assert apart.min() > 0.05


def test_larger_maps_continue_smaller_ones():
    np.testing.assert_array_equal(position_map(8, 8, 16)[:, :4, :6], position_map(4, 6, 16))


def test_odd_widths_are_refused():
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        position_map(4, 4, 6)
