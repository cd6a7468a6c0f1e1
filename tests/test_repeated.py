"""Repeated blocks as one loop: the same parameters under the same names, the same results."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from paella_jax.encoders.clip_transformer import Transformer
from paella_jax.encoders.t5 import T5Encoder
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.paella import Paella

SIZES = {"codebook_size": 20, "token_width": 8, "widths": (16, 16), "depths": (1, 3),
         "num_heads": (0, 2), "patterns": ("CT", "CTA"), "cond_width": 16,
         "dropout": 0.0}  # fmt: skip


def random_like(shapes, seed=0):
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    draw = lambda key, leaf: 0.2 * jax.random.normal(key, leaf.shape)
    return tree.unflatten([draw(*pair) for pair in zip(keys, leaves, strict=True)])


def program_of(function, *given):
    return str(jax.make_jaxpr(function)(*given))


@pytest.mark.parametrize("remat", [small.slow(False), True])
def test_a_unet_s_levels(remat):
    plain, looped = Paella(**SIZES), Paella(**SIZES, loop=True, remat=remat)
    tokens = jax.random.randint(jax.random.key(1), (2, 8, 8), 0, 20)
    cond = Conditioning(text=jax.random.normal(jax.random.key(2), (2, 3, 12)))
    given = tokens, jnp.array([0.3, 0.8]), cond
    shapes = jax.eval_shape(plain.init, jax.random.key(0), *given)
    assert jax.eval_shape(looped.init, jax.random.key(0), *given) == shapes
    variables = random_like(shapes)
    loss = lambda model: lambda v: jnp.square(model.apply(v, *given)).mean()
    ours, theirs = (
        jax.jit(jax.value_and_grad(loss(model)))(variables) for model in (looped, plain)
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    for one, other in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(theirs[1]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * float(jnp.abs(other).max()))
    assert program_of(loss(looped), variables).count(" scan[") == 2  # of the deep level, both ways
    assert " scan[" not in program_of(loss(plain), variables)


def test_dropout_in_a_loop_differs_from_block_to_block():
    model = Paella(**SIZES | {"dropout": 0.5}, loop=True)
    given = (
        jnp.zeros((1, 8, 8), jnp.int32),
        jnp.array([0.3]),
        Conditioning(text=jnp.ones((1, 3, 12))),
    )
    variables = random_like(jax.eval_shape(model.init, jax.random.key(0), *given))
    draw = jax.jit(
        lambda seed: model.apply(
            variables, *given, deterministic=False, rngs={"dropout": jax.random.key(seed)}
        )
    )
    assert jnp.abs(draw(0) - draw(1)).max() > 1e-3
    np.testing.assert_array_equal(draw(0), draw(0))


def test_frozen_text_encoders():
    ids = jnp.array([[3, 4, 5, 0]])
    sizes = {"vocab_size": 9, "width": 16, "num_layers": 3, "num_heads": 2, "head_dim": 8,
             "hidden_dim": 24}  # fmt: skip
    plain, looped = T5Encoder(**sizes), T5Encoder(**sizes, loop=True)
    variables = random_like(jax.eval_shape(plain.init, jax.random.key(0), ids))
    np.testing.assert_allclose(looped.apply(variables, ids), plain.apply(variables, ids), atol=1e-5)
    assert len(looped.apply(variables, ids, all_hidden=True)) == 4
    assert " scan[" in program_of(lambda v: looped.apply(v, ids), variables)


def test_the_last_two_states_of_a_clip_tower():
    x = jax.random.normal(jax.random.key(1), (2, 5, 16))
    sizes = {"num_layers": 4, "num_heads": 2, "hidden_dim": 24, "activation": "gelu",
             "norm_epsilon": 1e-5}  # fmt: skip
    plain, looped = Transformer(**sizes), Transformer(**sizes, loop=True)
    variables = random_like(jax.eval_shape(plain.init, jax.random.key(0), x))
    ours, theirs = looped.apply(variables, x), plain.apply(variables, x)
    for one, other in zip(ours[-2:], theirs[-2:], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert (len(ours), len(theirs)) == (3, 5)
