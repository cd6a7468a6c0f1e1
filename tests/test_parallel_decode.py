"""Parallel decoding: settings, schedules, starting states, kept tokens, keys per sample."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.noise.tokens import sample_keys
from paella_jax.sampling.parallel_decode import (
    ParallelDecodeSettings,
    least_confident,
    parallel_decode,
)
from paella_jax.sampling.token_loop import Known, Ramps, Randomness, Start

pytestmark = pytest.mark.usefixtures("keys_used_once")

CODES, MASK = 11, 15
SHAPE = (3, 4, 5)
SETTINGS = ParallelDecodeSettings(num_steps=6)
# A fixed preference per position and code: what a network would predict.
TABLE = jax.random.normal(jax.random.key(5), (*SHAPE[1:], CODES))


def denoise(tokens, t, scale):
    """Depends on the tokens as well, so that a step changes what the next one sees."""
    seen = jnp.where(tokens == MASK, 0, tokens).sum((1, 2), keepdims=True)[..., None] % 7
    logits = TABLE[None] * (1.0 + 0.1 * seen)
    return logits if scale is None else logits * scale


def decode(settings=SETTINGS, shape=SHAPE, key=0, ramps=None, trace=False, index=None, **start):
    key, start = jax.random.key(key), Start(**start)
    if index is not None:
        key = sample_keys(key, jnp.array(index))
    run = jax.jit(
        lambda key: parallel_decode(denoise, key, shape, settings, MASK, start, ramps, trace)
    )
    return run(key)


def mask_lengths(settings, positions):
    """Tokens still masked after every step but the last, before clamping; int64 [num_steps - 1]."""
    return np.floor(np.float32(positions) * settings.mask_ratios()[:-1]).astype(np.int64)


def test_each_step_leaves_the_scheduled_number_masked():
    for schedule in ("cosine", "linear", "power"):
        settings = replace(SETTINGS, schedule=schedule)
        tokens, visited = decode(settings, trace=True)
        left = (visited.tokens == MASK).sum((2, 3))
        expected = np.append(mask_lengths(settings, 20), 0)
        np.testing.assert_array_equal(left, np.broadcast_to(expected[:, None], (6, 3)))
        np.testing.assert_array_equal(visited.masked, left)
        np.testing.assert_array_equal(tokens, visited.tokens[-1])
        assert (tokens < CODES).all() and tokens.dtype == jnp.int32


def test_schedules():
    """The knife edge of the reference's float32, and the curves' midpoints."""
    cosine = mask_lengths(ParallelDecodeSettings(num_steps=12), 256)
    np.testing.assert_array_equal(cosine, [253, 247, 236, 221, 203, 181, 155, 127, 97, 66, 33])
    middle = lambda **kwargs: ParallelDecodeSettings(num_steps=2, **kwargs).mask_ratios()[0]
    assert middle(schedule="linear") == 0.5
    assert middle(schedule="power", exponent=3.0) == 0.875
    np.testing.assert_allclose(middle(), np.sqrt(0.5), rtol=1e-6)


def test_drawn_tokens_never_change():
    _, visited = decode(trace=True)
    for before, after in zip(visited.tokens[:-1], visited.tokens[1:], strict=True):
        fixed = before != MASK
        np.testing.assert_array_equal(np.asarray(after)[fixed], np.asarray(before)[fixed])


def test_without_noise_the_least_confident_are_masked():
    _, visited = decode(replace(SETTINGS, choice_temperature=(0.0, 0.0)), trace=True)
    confidence, masked = np.asarray(visited.confidence[0]), np.asarray(visited.tokens[0]) == MASK
    for one, chosen in zip(confidence, masked, strict=True):
        assert one[chosen].max() < one[~chosen].min()


def test_ties_are_not_masked():
    confidence = jnp.array([[[3.0, 1.0, 2.0, 2.0, 5.0]]])
    for count, expected in ((1, [1]), (2, [1]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])):
        mask = least_confident(confidence, jnp.array([count]))
        np.testing.assert_array_equal(np.flatnonzero(mask), expected)


def test_a_sample_depends_on_its_index_alone():
    whole = decode()
    part = decode(shape=(2, 4, 5), index=[2, 0])
    np.testing.assert_array_equal(part, whole[jnp.array([2, 0])])
    assert (whole[0] != whole[1]).any() and (decode(key=1) != whole).any()


def test_kept_tokens_stay_and_their_share_shortens_the_schedule():
    tokens = jnp.full(SHAPE, 12)  # no code: nothing else can write it
    generate = np.zeros(SHAPE, bool)
    generate[0, :2], generate[1, 0, 0] = True, True  # 10, 1 and none to draw
    result, visited = decode(known=Known(tokens, generate), trace=True)
    np.testing.assert_array_equal(np.asarray(result) == 12, ~generate)
    assert (visited.tokens[:, 2] == 12).all()
    share = np.float32(0.5)
    expected = np.floor(20 * (share * SETTINGS.mask_ratios()[:-1]))
    np.testing.assert_array_equal((visited.tokens[:-1, 0] == MASK).sum((1, 2)), expected)
    alone = decode(shape=(1, 4, 5), known=Known(tokens[:1], generate[:1]), index=[0])
    np.testing.assert_array_equal(alone[0], result[0])


def test_starting_from_an_image():
    """A share is masked at the start, fewer steps follow, what was not masked is kept."""
    image = jnp.full(SHAPE, 12)
    settings = replace(SETTINGS, strength=0.5)
    assert settings.start_step == 3
    uniform = jax.random.uniform(jax.random.key(3), SHAPE)
    randomness = Randomness(jax.random.uniform(jax.random.key(4), (6, *SHAPE)), uniform)
    result, visited = decode(settings, image_tokens=image, randomness=randomness, trace=True)
    assert len(visited.tokens) == 3
    np.testing.assert_array_equal(result == 12, uniform >= np.cos(np.pi / 4).astype(np.float32))
    generate = np.zeros(SHAPE, bool)
    generate[:, 1:3] = True
    kept = decode(settings, image_tokens=image, randomness=randomness, known=Known(image, generate))
    np.testing.assert_array_equal(kept != 12, (result != 12) & generate)
    # Full strength keeps nothing of the image; the reference would keep all of it.
    np.testing.assert_array_equal(decode(image_tokens=image), decode())


def test_guidance_and_ramps():
    """The scale reaches the prediction step by step, and (1, 1) switches guidance off."""
    seen = []

    def spy(tokens, t, scale):
        if scale is None:
            seen.append((None, None))
        else:
            jax.debug.callback(lambda a, b: seen.append((float(a), float(b))), scale, t[0])
        return denoise(tokens, t, scale)

    run = lambda settings: jax.jit(lambda key: parallel_decode(spy, key, SHAPE, settings, MASK))(
        jax.random.key(0)
    )
    ramp = replace(SETTINGS, guidance_scale=(1.0, 6.0))
    run(ramp)
    jax.effects_barrier()
    np.testing.assert_allclose([s for s, _ in seen], [1, 2, 3, 4, 5, 6], rtol=1e-6)
    levels = [1.0, *ramp.mask_ratios()[:-1]]
    np.testing.assert_allclose([t for _, t in seen], levels, rtol=1e-6)
    seen.clear()
    run(replace(SETTINGS, guidance_scale=(1.0, 1.0)))
    assert seen and all(scale is None for scale, _ in seen)
    ramps = replace(SETTINGS, temperature=(0.5, 0.2), guidance_scale=(3.0, 1.0))
    given = Ramps(*(jnp.asarray(x) for x in ramps.ramps()))
    np.testing.assert_array_equal(decode(ramps.without_ramps(), ramps=given), decode(ramps))
    assert ramps.without_ramps() == SETTINGS.without_ramps()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_steps": 0}, "num_steps=0"),
        ({"schedule": "sine"}, "schedule='sine' must be one of"),
        ({"exponent": 0.0}, "exponent=0.0"),
        ({"choice_temperature": (1.0, -1.0)}, "choice_temperature"),
        ({"temperature": (1.0, 0.0)}, "temperature"),
        ({"strength": 0.0}, "strength=0.0"),
        ({"strength": 0.1}, "no step is left"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **change).check()


@pytest.mark.parametrize(
    "settings, inputs, message",
    [
        (replace(SETTINGS, strength=0.5), {}, "needs image_tokens"),
        (
            SETTINGS,
            {"image_tokens": jnp.zeros(SHAPE), "initial_tokens": jnp.zeros(SHAPE)},
            "not both",
        ),
        (
            replace(SETTINGS, strength=0.5),
            {
                "image_tokens": jnp.zeros(SHAPE),
                "randomness": Randomness(jnp.zeros((6, *SHAPE))),
            },
            "start_uniform",
        ),
    ],
)
def test_inputs_that_do_not_belong_together(settings, inputs, message):
    with pytest.raises(ValueError, match=message):
        parallel_decode(denoise, jax.random.key(0), SHAPE, settings, MASK, Start(**inputs))
