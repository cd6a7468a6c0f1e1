"""The released sizes, without computing anything: parameters, FLOPs, a sharded train step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from paella_jax.evaluation.sampling_speed import abstract_conditioning
from paella_jax.families.vqgan import make_vqgan
from paella_jax.models.clip_prior import ClipPrior
from paella_jax.models.paella import Paella

Shape = jax.ShapeDtypeStruct


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def gigaflops(function, *shapes):
    return jax.jit(function).lower(*shapes).cost_analysis()["flops"] / 1e9


def released(side, text_length):
    """The released predictor, and shapes of its parameters and inputs."""
    config = small.config_of("paella:1b")
    model = Paella(**config.model)
    cond = abstract_conditioning(1, text_length, config)
    inputs = (Shape((1, side, side), jnp.int32), Shape((1,), jnp.float32), cond)
    params = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x), *inputs)
    return model, params, inputs


def test_predictor_parameters():
    _, params, _ = released(8, 4)
    assert count(params) == 1_008_350_592


def test_tokenizer_parameters():
    model = make_vqgan(small.config_of("vqgan:f4"))
    images = Shape((1, 16, 16, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    assert count(variables["params"]) == 18_406_894


# reference/paella.md 7: GFLOP of one forward pass, matrix products and convolutions alone.
@pytest.mark.parametrize(
    "side, text_length, reference", [(32, 128, 172.4), (64, 64, 501.8), (128, 128, 2088.9)]
)
def test_predictor_flops(side, text_length, reference):
    model, params, inputs = released(side, text_length)
    ours = gigaflops(model.apply, params, *inputs)
    print(f"{side}x{side} tokens: {ours:.1f} GFLOP, reference {reference}")
    assert 0.97 * reference < ours < 1.03 * reference


def test_tokenizer_flops():
    """XLA also counts norms, activations and the shifted depthwise products: 5 % here."""
    model = make_vqgan(small.config_of("vqgan:f4"))
    images, tokens = Shape((1, 256, 256, 3), jnp.float32), Shape((1, 64, 64), jnp.int32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    for method, given, reference in (
        ("encode_tokens", images, 29.2 + 0.27),
        ("decode_tokens", tokens, 135.8),
    ):
        call = lambda v, x, method=method: model.apply(v, x, method=method)
        ours = gigaflops(call, variables, given)
        print(f"{method}: {ours:.1f} GFLOP, reference {reference}")
        assert reference < ours < 1.06 * reference


def test_prior_flops():
    model = ClipPrior()
    inputs = (
        Shape((1, 1024), jnp.float32),
        Shape((1,), jnp.float32),
        Shape((1, 1024), jnp.float32),
    )
    params = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x), *inputs)
    assert count(params) == 899_770_624
    assert abs(gigaflops(model.apply, params, *inputs) / 1.80 - 1) < 0.03
