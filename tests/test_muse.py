"""MUSE's base transformer: sizes, what it reads, and its bad inputs."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import random_variables

from paella_jax.models.conditioning import Conditioning
from paella_jax.models.muse import MuseTransformer
from paella_jax.objectives.token_prediction import with_bias

Shape = jax.ShapeDtypeStruct
TEXT_WIDTH = 12
SMALL = {"codebook_size": 20, "grid": 4, "width": 32, "depth": 2, "num_heads": 4}


def small(**changes):
    return MuseTransformer(**{**SMALL, "feed_forward_width": 48, **changes})


@cache
def compiled(model, **fixed):
    """The model's call; compiled once per test run, which these tests' time is made of."""
    return jax.jit(partial(model.apply, **fixed))


@pytest.fixture(scope="module")
def inputs():
    """Tokens with some masks, noise levels, and texts of three and five words."""
    tokens = jax.random.randint(jax.random.key(0), (2, 4, 4), 0, 21)
    text = jax.random.normal(jax.random.key(1), (2, 5, TEXT_WIDTH))
    mask = jnp.arange(5)[None, :] < jnp.array([[3], [5]])
    return tokens, jnp.array([0.2, 0.9]), Conditioning(text=text, text_mask=mask)


def started(model, inputs, seed=2):
    """Variables far from the small initial ones, so that every part has a say."""
    return random_variables(model, *inputs, seed=seed)


# docs/models/muse.md 1.2: millions of parameters with a text width of 4096.
@pytest.mark.parametrize(
    "depth, width, feed_forward, published, ours",
    [
        (48, 2048, 8192, 3268, 3_268_190_208),
        (36, 1024, 4096, 626, 626_376_704),
        (24, 1280, 5120, 657, 657_423_360),
        (24, 1248, 4992, 626, 625_612_416),
        (16, 1536, 6144, 638, 638_269_440),
    ],
)
def test_parameters(depth, width, feed_forward, published, ours):
    model = MuseTransformer(depth=depth, width=width, feed_forward_width=feed_forward)
    shapes = (
        Shape((1, 16, 16), jnp.int32),
        Shape((1,), jnp.float32),
        Conditioning(text=Shape((1, 4, 4096), jnp.float32)),
    )
    params = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x), *shapes)["params"]
    count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
    assert count == ours
    assert round(count / 1e6) == published


def test_attributes():
    masked, uniform = small(), small(mask_row=False, time_width=8)
    assert (masked.mask_token, masked.vocabulary_size, masked.grid_divisor) == (20, 21, 4)
    assert (uniform.mask_token, uniform.vocabulary_size) == (None, 20)
    assert (masked.knows_noise_level, uniform.knows_noise_level) == (False, True)


@pytest.mark.parametrize("time_width", [0, 8])
def test_the_noise_level_is_read_where_it_is_an_input(inputs, time_width):
    model = small(time_width=time_width)
    variables = started(model, inputs)
    tokens, t, cond = inputs
    same = np.allclose(
        compiled(model)(variables, tokens, t, cond),
        compiled(model)(variables, tokens, 1.0 - t, cond),
    )
    assert same == (time_width == 0)


def test_hidden_text_is_not_read_and_absent_text_is_defined(inputs):
    model = small()
    variables = started(model, inputs)
    tokens, t, cond = inputs
    logits = compiled(model)(variables, tokens, t, cond)
    other = cond.replace(text=cond.text.at[0, 3:].add(5.0))
    np.testing.assert_array_equal(compiled(model)(variables, tokens, t, other), logits)
    seen = cond.replace(text=cond.text.at[0, 2].add(5.0))
    assert np.abs(compiled(model)(variables, tokens, t, seen) - logits)[0].max() > 1e-3
    absent = cond.replace(text_mask=jnp.zeros((2, 5), bool))
    without = compiled(model)(variables, tokens, t, absent)
    assert np.isfinite(without).all() and np.abs(without - logits).max() > 1e-3
    moved = absent.replace(text=cond.text + 5.0)
    np.testing.assert_array_equal(compiled(model)(variables, tokens, t, moved), without)


def test_positions_are_told_apart(inputs):
    """Without learned positions a constant map would give constant logits."""
    model = small()
    variables = started(model, inputs)
    _, t, cond = inputs
    logits = compiled(model)(variables, jnp.full((2, 4, 4), 20), t, cond)
    assert np.abs(logits - logits[:, :1, :1]).max() > 1e-2


@pytest.mark.parametrize("tied", [False, True])
def test_features_times_the_classifier_are_the_logits(inputs, tied):
    model = small(tied_head=tied)
    variables = started(model, inputs)
    features = compiled(model, return_features=True)(variables, *inputs)
    assert features.shape == (2, 4, 4, 32)
    logits = compiled(model)(variables, *inputs)
    assert logits.shape == (2, 4, 4, 20) and logits.dtype == jnp.float32
    features, classifier = with_bias(features, variables["params"])
    np.testing.assert_allclose(features @ classifier, logits, atol=1e-4)
    own = {"classifier", "classifier_bias", "head_norm"} & variables["params"].keys()
    assert own == ({"classifier_bias", "head_norm"} if tied else {"classifier"})


def test_half_precision_is_close(inputs):
    model = small()
    variables = started(model, inputs)
    wide = compiled(model)(variables, *inputs)
    narrow = compiled(model.clone(dtype=jnp.bfloat16))(variables, *inputs)
    assert narrow.dtype == jnp.float32
    error = np.abs(narrow - wide)
    assert 0 < error.max() < 0.1 * np.abs(wide).max()
    assert error.mean() < 0.02 * np.abs(wide).mean()


def test_recomputing_activations_changes_nothing(inputs):
    model, variables = small(), None
    variables = started(model, inputs)
    loss = lambda model: lambda v: model.apply(v, *inputs).var()
    plain, recomputed = (
        jax.jit(jax.grad(loss(small(remat=remat))))(variables) for remat in (False, True)
    )
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(plain))
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-6), plain, recomputed))


@pytest.mark.parametrize("remat", [False, True])
def test_layers_as_one_loop_have_the_same_parameters_and_results(inputs, remat):
    plain, looped = small(depth=3), small(depth=3, loop=True, remat=remat)
    variables = started(plain, inputs)
    shapes = lambda model: jax.eval_shape(model.init, jax.random.key(0), *inputs)
    assert jax.tree.map(jnp.shape, shapes(looped)) == jax.tree.map(jnp.shape, variables)
    loss = lambda model: lambda v: jnp.square(model.apply(v, *inputs)).mean()
    ours, theirs = (jax.jit(jax.value_and_grad(loss(m)))(variables) for m in (looped, plain))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    for one, other in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(theirs[1]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6, rtol=1e-4)
    jaxpr = str(jax.make_jaxpr(loss(looped))(variables))
    assert "scan" in jaxpr and len(jaxpr) < 0.6 * len(str(jax.make_jaxpr(loss(plain))(variables)))


def test_dropout_needs_training(inputs):
    model = small(dropout=0.5)
    variables = started(model, inputs)
    draw = lambda seed, off: model.apply(
        variables, *inputs, deterministic=off, rngs={"dropout": jax.random.key(seed)}
    )
    np.testing.assert_array_equal(draw(0, True), draw(1, True))
    assert np.abs(draw(0, False) - draw(1, False)).max() > 1e-3


def test_bad_inputs(inputs):
    tokens, t, cond = inputs
    cases = [
        (small(), tokens[:, :2], cond, "token map 2x4.*for 4x4 tokens only"),
        (small(num_heads=5), tokens, cond, "5 heads do not divide the width 32"),
        (small(), tokens, Conditioning(), "conditioned on text alone, got no text"),
        (small(), tokens, cond.replace(labels=jnp.zeros(2, jnp.int32)), "labels.*network=unet"),
    ]
    for model, given, condition, words in cases:
        with pytest.raises(ValueError, match=words):
            model.init(jax.random.key(0), given, t, condition)
