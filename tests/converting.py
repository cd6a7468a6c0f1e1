"""What tests of the convert command share."""

from __future__ import annotations

import sys

import jax
import numpy as np

from paella_jax.convert import __main__ as command


def run(*arguments):
    """The command, in this process."""
    saved, sys.argv = sys.argv, ["convert", *map(str, arguments)]
    try:
        assert command.main() == 0
    finally:
        sys.argv = saved


def same(a, b):
    """Equal trees, dtypes included."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(x, y)
