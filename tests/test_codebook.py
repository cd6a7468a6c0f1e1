"""The nearest code, searched in chunks, and the resize by two matrix products."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from paella_jax.ops.codebook import CHUNK, nearest_code
from paella_jax.ops.linear import dense
from paella_jax.ops.resize import resize_antialiased


def searched_at_once(vectors, codebook):
    norms = jnp.square(codebook).sum(-1).reshape((1,) * (vectors.ndim - 1) + (-1,))
    return jnp.argmin(norms - 2.0 * dense(vectors, codebook.T), axis=-1).astype(jnp.int32)


@pytest.mark.parametrize("codes", [CHUNK, CHUNK + 1, 3 * CHUNK])
def test_chunks_find_what_one_search_finds(codes):
    keys = jax.random.split(jax.random.key(codes))
    vectors = jax.random.normal(keys[0], (2, 8, 8, 4))
    codebook = jax.random.normal(keys[1], (codes, 4))
    found = jax.jit(nearest_code)(vectors, codebook)
    assert (found == jax.jit(searched_at_once)(vectors, codebook)).all()
    assert len(jnp.unique(found)) > 50


def test_of_equal_codes_the_first_is_taken():
    codebook = jnp.ones((2 * CHUNK, 4)).at[CHUNK + 3].set(2.0).at[7].set(2.0)
    assert nearest_code(2.0 * jnp.ones((1, 4)), codebook) == 7
    assert nearest_code(jnp.ones((1, 4)), codebook) == 0


def test_no_array_holds_all_distances():
    traced = jax.make_jaxpr(nearest_code)(jnp.zeros((2, 64, 64, 4)), jnp.zeros((8192, 4)))
    sizes = [variable.aval.size for equation in traced.jaxpr.eqns for variable in equation.outvars]
    (scan,) = (e for e in traced.jaxpr.eqns if e.primitive.name == "scan")
    body = scan.params["jaxpr"].jaxpr
    sizes += [variable.aval.size for equation in body.eqns for variable in equation.outvars]
    assert max(sizes) == 2 * 64 * 64 * CHUNK


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(9, 40), (30, 12), (61, 20)])
def test_resize_agrees_with_jax(method, size):
    images = jax.random.uniform(jax.random.key(0), (2, 30, 41, 3))
    theirs = jax.image.resize(images, (2, *size, 3), method, antialias=True)
    ours = resize_antialiased(images, *size, method)
    assert ours.shape == theirs.shape and jnp.abs(ours - theirs).max() < 1e-5
