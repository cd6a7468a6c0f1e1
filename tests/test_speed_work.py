"""`benchmark --work forward`, `tokenizer` and a CLIP prior's `sample`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from test_speed import config_of

from paella_jax.config import ConfigError
from paella_jax.evaluation.flops import count_flops
from paella_jax.speed.arrays import filled
from paella_jax.speed.forward import forward_case
from paella_jax.speed.plan import check_asked
from paella_jax.speed.prior import prior_sampling_case
from paella_jax.speed.tokenizer import tokenizer_cases

STAGE_B = {"model__widths": "(16,)", "model__depths": "(1,)", "model__cond_width": 16}
STAGE_C = {"model__width": 16, "model__depth": 1, "text__width": 8, "text__num_heads": 1,
           "text__hidden_dim": 8, "text__num_layers": 1}  # fmt: skip
SMALL = {
    "paella:tiny": config_of,
    "stage_b:tiny": lambda: small.config_of("stage_b:tiny", **STAGE_B),
    "stage_c:tiny": lambda: small.config_of("stage_c:tiny", **STAGE_C),
    "clip_prior:tiny": lambda: small.config_of("clip_prior:tiny"),
}


@pytest.mark.parametrize("name", SMALL)
def test_one_prediction_of_every_network(name):
    case = forward_case(SMALL[name](), 2)
    given = [filled(x) for x in case.arguments]
    out = case.function(*given)
    maps = case.arguments[1]
    assert case.name == "forward" and case.images == 2 and out.shape[: maps.ndim] == maps.shape
    assert np.isfinite(np.asarray(out)).all()
    assert count_flops(case.function, *case.arguments) > 0


def test_a_forward_pass_reads_its_conditions():
    """Its texts are encoded beforehand, but their keys and values are made in the pass."""
    case = forward_case(config_of(), 1)
    params, tokens, t, cond = (filled(x) for x in case.arguments)
    other = cond.replace(text=cond.text + jnp.linspace(0.0, 1.0, 16)[None, None])
    assert cond.text.shape[-1] == 16  # states of the encoder, which is no part of it
    first = case.function(params, tokens, t, cond)
    assert not np.array_equal(first, case.function(params, tokens, t, other))


@pytest.mark.parametrize("name", ["vqgan:tiny", "paella:tiny", "stage_b:tiny"])
def test_a_tokenizer_goes_there_and_back(name):
    config = SMALL.get(name, small.small_vqgan)()
    encode, decode = tokenizer_cases(config, 2)
    assert [encode.name, decode.name] == ["tokenizer: encode", "tokenizer: decode"]
    stored = jax.eval_shape(encode.function, *encode.arguments)
    assert (stored.dtype == np.int32) == (name != "stage_b:tiny")
    assert stored.shape == decode.arguments[1].shape
    images = jax.eval_shape(decode.function, *decode.arguments)
    assert images.shape == encode.arguments[1].shape == (2, *(config.data.image_size,) * 2, 3)


def test_a_prior_draws_embeddings():
    config = small.config_of("clip_prior:tiny", sampler__num_steps=3, sampler__guidance_scale=2.0)
    case, forward = prior_sampling_case(config, 2), forward_case(config, 2)
    assert case.name == "CLIP prior: 3 guided steps"
    given = [filled(x, i) for i, x in enumerate(case.arguments)]
    drawn = case.function(*given)
    assert drawn.shape == (2, 16) and np.isfinite(np.asarray(drawn)).all()
    assert case.counted is not None
    np.testing.assert_allclose(drawn, jax.jit(case.counted[0])(*given[:3]), rtol=1e-5, atol=1e-6)
    counted, arguments = case.counted
    predictions = count_flops(forward.function, *forward.arguments)
    assert count_flops(counted, *arguments) == 6 * predictions  # two of each step


def test_words_that_only_some_presets_have():
    vqgan = {"vqgan:tiny": small.config_of("vqgan:tiny")}
    (asked,) = check_asked(vqgan, "forward,sample,tokenizer,encode", "1", [])
    assert asked.work == ("tokenizer",)
    prior = {"clip_prior:tiny": small.config_of("clip_prior:tiny")}
    (asked,) = check_asked(prior, "forward,sample,tokenizer", "1", [])
    assert asked.work == ("forward", "sample")
    with pytest.raises(ConfigError, match="has that; there is tokenizer, train"):
        check_asked(vqgan, "sample,forward", "1", [])
