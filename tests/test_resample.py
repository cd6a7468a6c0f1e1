"""Mask-free editing: how many tokens a round draws again, from what, and what stays."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.noise.tokens import sample_keys
from paella_jax.sampling.filters import top_k_filter
from paella_jax.sampling.guidance import guide, mix
from paella_jax.sampling.resample import ResampleSettings, choose, resample
from paella_jax.sampling.token_loop import Known, Ramps, Vocabulary

pytestmark = pytest.mark.usefixtures("keys_used_once")

CODES, MASK = 40, 40
SHAPE = (3, 4, 6)
POSITIONS = 24
SETTINGS = ResampleSettings(rounds=6, share=0.2)
IMAGE = jax.random.randint(jax.random.key(1), SHAPE, 0, CODES)
# A fixed preference per position and code: what a network would predict.
TABLE = jax.random.normal(jax.random.key(2), (*SHAPE[1:], CODES))


def denoise(tokens, t, scale):
    """Depends on the tokens and the level, so that a round changes what the next one sees."""
    seen = (tokens % 7).sum((1, 2), keepdims=True)[..., None] * 0.01
    logits = TABLE[None] * (1.0 + seen + t.reshape(-1, 1, 1, 1))
    return logits if scale is None else logits * scale


def run(
    settings=SETTINGS, predict=denoise, mask_token=MASK, image=IMAGE, key=0, index=None, **options
):
    vocabulary, key = Vocabulary(CODES, mask_token), jax.random.key(key)
    if index is not None:
        key = sample_keys(key, index)
    draw = lambda key: resample(predict, key, image, settings, vocabulary, **options)
    return jax.tree.map(np.asarray, jax.jit(draw)(key))


def count_masks(tokens, t, scale):
    """Predicts, everywhere, the number of masked tokens that it sees."""
    del t, scale
    masked = (tokens == MASK).sum((1, 2))
    return 99.0 * jax.nn.one_hot(jnp.broadcast_to(masked[:, None, None], tokens.shape), CODES)


def count_level(tokens, t, scale):
    """Predicts the number of corrupted tokens that it is told."""
    del scale
    told = jnp.round(t * POSITIONS).astype(jnp.int32)
    return 99.0 * jax.nn.one_hot(jnp.broadcast_to(told[:, None, None], tokens.shape), CODES)


@pytest.mark.parametrize("predict, mask_token", [(count_masks, MASK), (count_level, None)])
@pytest.mark.parametrize("share, count", [(0.2, 5), (0.08, 2), (0.01, 1), (1.0, 24)])
def test_each_round_draws_the_rounded_share(predict, mask_token, share, count):
    """Every drawn token says how many there were; nothing else changes in that round."""
    image = jnp.full(SHAPE, 39)
    settings = ResampleSettings(rounds=5, share=share, top_k=1)
    final, states = run(settings, predict, mask_token, image, trace=True)
    assert states.shape == (5, *SHAPE) and states.dtype == np.int32
    np.testing.assert_array_equal(((states[0] != 39).sum((1, 2))), [count] * 3)
    assert set(np.unique(states)) <= {39, count}
    for before, after in pairwise(states):
        assert ((before != after).sum((1, 2)) <= count).all()
    np.testing.assert_array_equal(final, states[-1])
    if count == 5:
        assert (states[1] != states[0]).any() and (states[0][0] != states[0][1]).any()


def test_uniform_corruption_shows_the_network_random_tokens():
    """Exactly the chosen tokens, replaced by codes; the others as they are."""
    seen = []

    def spy(tokens, t, scale):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), tokens)
        return denoise(tokens, t, scale)

    image = jnp.full(SHAPE, 39)
    final = run(replace(SETTINGS, rounds=1, top_k=CODES), spy, None, image)
    jax.effects_barrier()
    (tokens,) = seen
    replaced = tokens != 39
    assert 0 < replaced.sum() <= 15 and tokens.min() >= 0 and tokens.max() < CODES
    assert len(np.unique(tokens[replaced])) > 3
    assert ((final != 39).sum((1, 2)) <= 5).all() and ((final != 39) & ~replaced).sum() <= 2


def test_only_the_most_probable_tokens_are_drawn_and_all_of_them():
    flat = lambda tokens, t, scale: jnp.broadcast_to(TABLE[None] * 0.01, (*SHAPE, CODES))
    best = np.argsort(-np.asarray(TABLE), axis=-1)[..., :3]
    settings = ResampleSettings(rounds=40, share=1.0)
    _, states = run(settings, flat, trace=True)
    ranks = (states[..., None] == best).astype(int)
    assert (ranks.sum(-1) == 1).all()
    shares = ranks.reshape(-1, 3).mean(0)  # nearly equal logits: a third each
    np.testing.assert_allclose(shares, 1 / 3, atol=0.05)


def test_top_k_filter():
    logits = jnp.array([[0.5, 3.0, -1.0, 2.0], [1.0, 1.0, 0.0, 1.0]], jnp.bfloat16)
    kept = np.isfinite(top_k_filter(logits, 2))
    np.testing.assert_array_equal(kept, [[0, 1, 0, 1], [1, 1, 0, 1]])  # ties are kept
    assert top_k_filter(logits, 2).dtype == jnp.float32
    for count in (4, 9):
        np.testing.assert_array_equal(top_k_filter(logits, count), logits.astype(jnp.float32))
    with pytest.raises(ValueError, match="top_k=0"):
        top_k_filter(logits, 0)


def test_one_round_of_everything_is_a_fresh_drawing():
    """Of an image nothing is left then, and the draw follows the whole distribution."""
    settings = ResampleSettings(rounds=1, share=1.0, top_k=CODES, guidance_scale=(1.0, 1.0))
    one = run(settings)
    np.testing.assert_array_equal(one, run(settings, image=(IMAGE + 7) % CODES))
    all_masks = jnp.full(SHAPE, MASK)
    logits = denoise(all_masks, jnp.ones(3), None)
    shape = (2000, 1, 6)
    single = lambda tokens, t, scale: jnp.broadcast_to(logits[:1, :1], (*shape, CODES))
    drawn = run(settings, single, image=jnp.zeros(shape, jnp.int32))
    share = np.stack([np.bincount(column, minlength=CODES) for column in drawn[:, 0].T]) / 2000
    np.testing.assert_allclose(share, jax.nn.softmax(logits[0, 0]), atol=0.05)


def test_kept_tokens_stay_and_the_share_is_of_the_others():
    kept, generate = jnp.full(SHAPE, 38), np.zeros(SHAPE, bool)
    generate[0, :2], generate[1, 0, 0] = True, True  # 12, 1 and none to draw
    image = jnp.full(SHAPE, 39)
    settings = ResampleSettings(rounds=7, share=0.25, top_k=1)
    _, states = run(settings, count_masks, image=image, known=Known(kept, generate), trace=True)
    np.testing.assert_array_equal(states[:, ~generate], 38)
    np.testing.assert_array_equal((states[0] == 3).sum((1, 2)), [3, 0, 0])
    assert (states[:, 1, 0, 0] == 1).all() and set(np.unique(states[:, 0])) == {3, 38, 39}


def test_choice_is_even():
    uniform = jax.random.uniform(jax.random.key(0), (4000, 4, 6))
    chosen = np.asarray(choose(uniform, jnp.ones(uniform.shape, bool), 0.25))
    assert (chosen.sum((1, 2)) == 6).all()
    np.testing.assert_allclose(chosen.mean(0), 0.25, atol=0.03)


def test_guidance_temperature_and_mixing():
    """The scale reaches every round's prediction; (1, 1) switches guidance off."""
    weights = jnp.array([[0.25, 0.75]] * 3)
    one = lambda tokens, t: jnp.broadcast_to(TABLE[None], (*SHAPE, CODES))
    other = lambda tokens, t: -one(tokens, t)[..., ::-1]
    mixed = mix([one, other], weights)
    guided = guide(mixed, other)
    settings = ResampleSettings(rounds=1, share=1.0, top_k=1, guidance_scale=(4.0, 4.0))
    table = np.asarray(TABLE)
    flipped = -table[..., ::-1]
    conditional = 0.25 * table + 0.75 * flipped
    wanted = np.argmax(4.0 * conditional - 3.0 * flipped, -1)
    plain = np.argmax(conditional, -1)
    assert (wanted != plain).any()
    np.testing.assert_array_equal(run(settings, guided), np.stack([wanted] * 3))
    off = replace(settings, guidance_scale=(1.0, 1.0))
    np.testing.assert_array_equal(run(off, guided), np.stack([plain] * 3))
    ramp = replace(SETTINGS, guidance_scale=(1.0, 3.0), temperature=(0.9, 0.2))
    given = Ramps(*(jnp.asarray(x) for x in ramp.ramps()))
    np.testing.assert_array_equal(run(ramp.without_ramps(), ramps=given), run(ramp))
    assert ramp.without_ramps() == SETTINGS.without_ramps()
    assert (run(replace(ramp, temperature=(9.0, 9.0))) != run(ramp)).any()


def test_a_sample_depends_on_its_index_alone():
    whole = run()
    index = jnp.array([2, 0])
    part = run(image=IMAGE[index], index=index)
    np.testing.assert_array_equal(part, whole[np.asarray(index)])
    assert (run(key=1) != whole).any()


@pytest.mark.parametrize("mask_token", [MASK, None])
def test_no_mask_is_left(mask_token):
    _, states = run(replace(SETTINGS, share=0.7), mask_token=mask_token, trace=True)
    assert states.min() >= 0 and states.max() < CODES


def test_frames_are_spread_evenly_and_end_with_the_result():
    settings = ResampleSettings(rounds=10, share=0.2)
    final, states = run(settings, trace=True)
    thin, frames = run(replace(settings, frames=4), trace=True)
    np.testing.assert_array_equal(thin, final)
    np.testing.assert_array_equal(frames, states[[1, 4, 7, 9]])  # 2.5 and 7.5 rounded to even
    np.testing.assert_array_equal(run(replace(settings, frames=1), trace=True)[1], states[-1:])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rounds": 0}, "rounds=0"),
        ({"share": 0.0}, "share=0.0"),
        ({"share": 1.1}, "share=1.1"),
        ({"top_k": 0}, "top_k=0"),
        ({"temperature": (1.0, 0.0)}, "temperature"),
        ({"frames": 7}, "frames=7 must be from 1 to rounds=6"),
        ({"frames": 0}, "frames=0"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        settings = replace(SETTINGS, **change)
        resample(denoise, jax.random.key(0), IMAGE, settings, Vocabulary(9))
