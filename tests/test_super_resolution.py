"""MUSE's super-resolution transformer: multi-axis attention, what reaches what, sizes, errors."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import random_variables

from paella_jax.models.conditioning import Conditioning
from paella_jax.models.multi_axis_attention import MultiAxisAttention, multi_axis_attention
from paella_jax.models.muse_super_resolution import SuperResolution
from paella_jax.models.transformer_layers import SeparateAttention

Shape = jax.ShapeDtypeStruct
SIDE, BLOCK, LOW = 6, 3, 2
ROW, COLUMN = (x.reshape(-1) for x in np.mgrid[:SIDE, :SIDE])
SAME_BLOCK = (ROW // BLOCK * SIDE + COLUMN // BLOCK)[:, None] == (
    ROW // BLOCK * SIDE + COLUMN // BLOCK
)[None, :]
SAME_PLACE = (ROW % BLOCK * SIDE + COLUMN % BLOCK)[:, None] == (
    ROW % BLOCK * SIDE + COLUMN % BLOCK
)[None, :]


def small(**changes):
    values = {
        "codebook_size": 20,
        "low_codebook_size": 11,
        "grid": SIDE,
        "low_grid": LOW,
        "low_depth": 1,
        "width": 32,
        "depth": 2,
        "num_heads": 4,
        "feed_forward_width": 48,
        "block_size": BLOCK,
    }
    return SuperResolution(**{**values, **changes})


@cache
def compiled(model, **fixed):
    """The model's call; compiled once per test run, which these tests' time is made of."""
    return jax.jit(partial(model.apply, **fixed))


@pytest.fixture(scope="module")
def inputs():
    """Tokens with masks, noise levels, and small maps with texts of three and five words."""
    keys = jax.random.split(jax.random.key(0), 3)
    tokens = jax.random.randint(keys[0], (2, SIDE, SIDE), 0, 21)
    cond = Conditioning(
        text=jax.random.normal(keys[1], (2, 5, 12)),
        text_mask=jnp.arange(5)[None, :] < jnp.array([[3], [5]]),
        low_tokens=jax.random.randint(keys[2], (2, LOW, LOW), 0, 11),
    )
    return tokens, jnp.array([0.2, 0.9]), cond


@pytest.fixture(scope="module")
def variables(inputs):
    """Far from the small initial values, so that every part has a say."""
    return random_variables(small(), *inputs)


def test_multi_axis_attention_is_masked_full_attention():
    shape = (2, SIDE * SIDE, 4, 8)
    query, key, value = (jax.random.normal(jax.random.key(n), shape) for n in range(3))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(8)
    visible = np.stack([SAME_BLOCK, SAME_BLOCK, SAME_PLACE, SAME_PLACE])
    assert (visible.sum(-1)[:2] == BLOCK**2).all()
    assert (visible.sum(-1)[2:] == (SIDE // BLOCK) ** 2).all()
    weights = jax.nn.softmax(np.where(visible[None], scores, -np.inf), axis=-1)
    expected = np.einsum("bhqk,bkhd->bqhd", weights, value)
    ours = multi_axis_attention(query, key, value, block_size=BLOCK)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_one_block_is_full_attention_in_its_heads():
    """A block as large as the map: half of the heads see everything, the others themselves."""
    shape = (1, 16, 2, 4)
    query, key, value = (jax.random.normal(jax.random.key(n), shape) for n in range(3))
    ours = multi_axis_attention(query, key, value, block_size=4)
    np.testing.assert_array_equal(ours[:, :, 1], value[:, :, 1])
    assert np.abs(ours[:, :, 0] - value[:, :, 0]).max() > 0.1


def test_one_attention_sees_block_and_place_and_nothing_else():
    module = MultiAxisAttention(4, block_size=BLOCK)
    x = jax.random.normal(jax.random.key(0), (1, SIDE * SIDE, 32))
    params, apply = random_variables(module, x, x), jax.jit(module.apply)
    before = apply(params, x, x)
    for changed in (0, 8, 21):
        moved = x.at[:, changed].add(3.0)
        after = apply(params, moved, moved)
        touched = np.abs(after - before).max((0, 2)) > 0
        np.testing.assert_array_equal(touched, SAME_BLOCK[changed] | SAME_PLACE[changed])


def test_multi_axis_attention_has_the_same_parameters_as_full_attention():
    x = jnp.zeros((1, SIDE * SIDE, 32))
    trees = [
        jax.jit(kind.init)(jax.random.key(1), x, x)
        for kind in (SeparateAttention(4), MultiAxisAttention(4, block_size=BLOCK))
    ]
    assert jax.tree.all(jax.tree.map(np.array_equal, *trees))


def test_two_layers_carry_a_token_everywhere(inputs, variables):
    tokens, t, cond = inputs
    before = compiled(small())(variables, *inputs)
    after = compiled(small())(variables, tokens.at[:, 0, 0].set(20 - tokens[:, 0, 0]), t, cond)
    assert before.shape == (2, SIDE, SIDE, 20) and before.dtype == jnp.float32
    assert (np.abs(after - before).max(-1) > 1e-6).all()


def test_small_picture_and_text_are_read(inputs, variables):
    tokens, t, cond = inputs
    logits = lambda c: compiled(small())(variables, tokens, t, c)
    before = logits(cond)
    changed = cond.replace(
        low_tokens=cond.low_tokens.at[0, 1, 1].set(10 - cond.low_tokens[0, 1, 1])
    )
    after = logits(changed)
    assert (np.abs(after - before)[0].max(-1) > 1e-6).all()
    np.testing.assert_array_equal(after[1], before[1])
    seen = logits(cond.replace(text=cond.text.at[0, 2].add(5.0)))
    assert np.abs(seen - before)[0].max() > 1e-3
    hidden = logits(cond.replace(text=cond.text.at[0, 3:].add(5.0)))
    np.testing.assert_array_equal(hidden, before)


def test_places_of_the_small_picture_are_told_apart(inputs, variables):
    """Attention alone would not see that two of its tokens changed places."""
    tokens, t, cond = inputs
    low = jnp.arange(4).reshape(1, 2, 2).repeat(2, 0)
    logits = lambda low: compiled(small())(variables, tokens, t, cond.replace(low_tokens=low))
    assert np.abs(logits(low) - logits(low[:, ::-1])).max() > 1e-3


def test_absent_text_is_defined_and_the_small_picture_stays(inputs, variables):
    tokens, t, cond = inputs
    absent = cond.replace(text_mask=jnp.zeros((2, 5), bool))
    logits = compiled(small())(variables, tokens, t, absent)
    assert np.isfinite(logits).all()
    other = absent.replace(text=cond.text + 5.0)
    np.testing.assert_array_equal(compiled(small())(variables, tokens, t, other), logits)
    enlarged = absent.replace(low_tokens=10 - cond.low_tokens)
    assert np.abs(compiled(small())(variables, tokens, t, enlarged) - logits).max() > 1e-3


def test_gradients_reach_every_parameter(inputs, variables):
    def loss(v, remat):
        logits = small(remat=remat).apply(v, *inputs)
        return -jax.nn.log_softmax(logits)[..., 3].mean()

    plain, recomputed = (
        jax.jit(jax.grad(loss), static_argnums=1)(variables, remat) for remat in (False, True)
    )
    for name, leaf in jax.tree_util.tree_leaves_with_path(plain):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(name)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-6), plain, recomputed))


def test_features_noise_level_and_half_precision(inputs, variables):
    tokens, t, cond = inputs
    model = small()
    logits = compiled(model)(variables, *inputs)
    features = compiled(model, return_features=True)(variables, *inputs)
    np.testing.assert_allclose(features @ variables["params"]["classifier"], logits, atol=1e-4)
    np.testing.assert_array_equal(compiled(model)(variables, tokens, 1.0 - t, cond), logits)
    told = small(time_width=8)
    start = random_variables(told, *inputs)
    assert (
        compiled(told)(start, tokens, 1 - t, cond) != compiled(told)(start, tokens, t, cond)
    ).any()
    narrow = compiled(model.clone(dtype=jnp.bfloat16))(variables, *inputs)
    assert 0 < np.abs(narrow - logits).max() < 0.1 * np.abs(logits).max()


def test_attributes():
    model, uniform = small(), small(mask_row=False, time_width=8)
    assert (model.codebook_size, model.mask_token, model.vocabulary_size) == (20, 20, 21)
    assert (uniform.mask_token, uniform.vocabulary_size) == (None, 20)
    assert model.grid_divisor == SIDE
    assert (model.knows_noise_level, uniform.knows_noise_level) == (False, True)


# docs/models/muse.md 1.3. Table 6 gives about 768 M without the 5 M of high-resolution positions
# and output layer; the 268 M partner of the 632 M base is a guess at its width.
@pytest.mark.parametrize(
    "width, published, ours", [(1024, 768, 773_199_872), (592, 268, 266_706_656)]
)
def test_parameters(width, published, ours):
    model = SuperResolution(width=width, feed_forward_width=4 * width)
    cond = Conditioning(
        text=Shape((1, 4, 4096), jnp.float32), low_tokens=Shape((1, 16, 16), jnp.int32)
    )
    inputs = (Shape((1, 64, 64), jnp.int32), Shape((1,), jnp.float32), cond)
    params = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x), *inputs)["params"]
    count = lambda tree: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))
    assert count(params) == ours
    assert abs(ours / 1e6 / published - 1) < 0.01
    if width == 1024:
        parts = {"low_layer": 201, "layer": 537}
        for name, millions in parts.items():
            layers = {k: v for k, v in params.items() if k.startswith(f"{name}_")}
            assert round(count(layers) / 1e6) == millions


def test_bad_inputs(inputs):
    tokens, t, cond = inputs
    wrong_map = cond.replace(low_tokens=jnp.zeros((2, 3, 2), jnp.int32))
    cases = [
        (small(), tokens[:, :3], cond, "token map 3x6.*for 6x6 tokens only"),
        (small(block_size=4), tokens, cond, r"block_size=4 must divide.*\[1, 2, 3, 6\]"),
        (small(block_size=0), tokens, cond, "block_size=0 must divide"),
        (small(num_heads=1), tokens, cond, "num_heads=1 must be even"),
        (small(num_heads=6), tokens, cond, "6 heads do not divide the width 32"),
        (small(), tokens, wrong_map, r"enlarges maps of 2x2 tokens: give \[batch, 2, 2\]"),
        (small(), tokens, cond.replace(low_tokens=None), "needs low_tokens"),
        (small(), tokens, cond.replace(text=None), "conditioned on text alone, got no text"),
    ]
    for model, given, condition, words in cases:
        with pytest.raises(ValueError, match=words):
            model.init(jax.random.key(0), given, t, condition)
