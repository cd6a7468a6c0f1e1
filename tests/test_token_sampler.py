"""Which sampler a cell gets, its settings, and Paella's renoising with masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.sampling.parallel_decode import ParallelDecodeSettings, parallel_decode
from paella_jax.sampling.renoise import confidence_order, sample
from paella_jax.sampling.renoise_settings import RenoiseSettings
from paella_jax.sampling.token_loop import Known, Randomness, Start, Vocabulary
from paella_jax.sampling.token_sampler import (
    draw_tokens,
    start_from_image,
    starts_from_noise,
    token_settings,
)

pytestmark = pytest.mark.usefixtures("keys_used_once")

CODES, MASK = 11, 11
SHAPE = (2, 4, 5)
BASE = {"num_steps": 5, "temperature": (0.9, 0.4), "guidance_scale": (1.0, 1.0),
        "schedule": "linear", "renoise_steps": 3, "choice_temperature": (2.0, 0.0)}  # fmt: skip
CELLS = [(c, s) for c in ("uniform", "mask") for s in ("random", "confidence")]
TABLE = jax.random.normal(jax.random.key(5), (*SHAPE[1:], CODES))


def denoise(tokens, t, scale):
    """Depends on the tokens and the level, so that a step changes what the next one sees."""
    seen = (tokens % 7).sum((1, 2), keepdims=True)[..., None] * 0.1
    return TABLE[None] * (1.0 + seen + t.reshape(-1, 1, 1, 1)) * (1.0 if scale is None else scale)


def draw(settings, mask_token, denoise=denoise, trace=False, **start):
    keys = jax.random.split(jax.random.key(0), SHAPE[0])
    vocabulary, start = Vocabulary(CODES, mask_token), Start(**start)
    run = lambda keys: draw_tokens(denoise, keys, SHAPE, settings, vocabulary, start, trace=trace)
    return jax.tree.map(np.asarray, jax.jit(run)(keys))


def test_each_cell_has_its_sampler():
    """Fields of other samplers are left out, and what the base says is kept."""
    kinds = {cell: token_settings(*cell, BASE, {}) for cell in CELLS}
    assert kinds["mask", "confidence"] == ParallelDecodeSettings(
        num_steps=5, temperature=(0.9, 0.4), guidance_scale=(1.0, 1.0), schedule="linear"
    )
    renoise = RenoiseSettings(
        num_steps=5, temperature=(0.9, 0.4), guidance_scale=(1.0, 1.0), renoise_steps=3
    )
    assert kinds["uniform", "random"] == kinds["mask", "random"] == renoise
    chosen = token_settings("uniform", "random", BASE, {"renoise_choice": "confidence"})
    assert kinds["uniform", "confidence"] == chosen != renoise


def test_changes_replace_the_base_and_none_keeps_it():
    change = {"temperature": 0.5, "guidance_scale": [2, 3], "num_steps": None}
    for cell in CELLS:
        settings = token_settings(*cell, BASE, change)
        assert settings.temperature == (0.5, 0.5) and settings.guidance_scale == (2.0, 3.0)
        assert settings.num_steps == 5
    settings = token_settings("mask", "confidence", BASE, {"choice_temperature": 1})
    assert settings.choice_temperature == (1.0, 1.0)


@pytest.mark.parametrize(
    "cell, change, words",
    [
        (("noise", "random"), {}, "cell.corruption must be one of uniform, mask, got 'noise'"),
        (("mask", "best"), {}, "cell.sampler must be one of random, confidence, got 'best'"),
        (("mask", "confidence"), {"t_start": 0.5}, "mask corruption has no setting t_start"),
        (("mask", "confidence"), {"renoise_mode": "previous"}, "no setting renoise_mode"),
        (("mask", "random"), {"schedule": "cosine"}, "no setting schedule"),
        (("uniform", "random"), {"strength": 0.5, "steps": 2}, "no setting steps, strength"),
        (("uniform", "random"), {"temperature": (1, 2, 3)}, r"\(1, 2, 3\) must be one number"),
        (("mask", "confidence"), {"guidance_scale": (1,)}, "guidance_scale=.* pair"),
        (("uniform", "confidence"), {"num_steps": 0}, "num_steps=0"),
        (("mask", "confidence"), {"num_steps": 0}, "num_steps=0"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(cell, change, words):
    with pytest.raises(ValueError, match=words):
        token_settings(*cell, BASE, change)


@pytest.mark.parametrize("cell", CELLS)
def test_starting_from_an_image(cell):
    settings = token_settings(*cell, BASE, {})
    assert starts_from_noise(settings)
    change = start_from_image(settings, 0.6)
    started = token_settings(*cell, BASE, change)
    assert not starts_from_noise(started)
    level = started.strength if cell == ("mask", "confidence") else started.t_start
    assert level == 0.6 and len(change) == 1


def test_only_uniform_corruption_has_other_noise_than_masks():
    with pytest.raises(ValueError, match="renoise_mode='previous' must be 'initial' for a network"):
        draw(RenoiseSettings(num_steps=2, renoise_mode="previous"), MASK)
    with pytest.raises(ValueError, match="renoise_choice='confidence' must be 'random'"):
        draw(RenoiseSettings(num_steps=2, renoise_choice="confidence"), MASK)


@pytest.mark.parametrize("cell", CELLS)
def test_each_cell_draws_with_its_sampler(cell):
    """The same tokens as the sampler itself; codes only, and a complete map after every step."""
    settings = token_settings(*cell, BASE, {})
    mask_token = MASK if cell[0] == "mask" else None
    final, states = draw(settings, mask_token, trace=True)
    assert states.shape == (5, *SHAPE) and states.min() >= 0 and states.max() < CODES
    np.testing.assert_array_equal(states[-1], final)
    keys = jax.random.split(jax.random.key(0), SHAPE[0])
    if cell == ("mask", "confidence"):
        direct = lambda: parallel_decode(denoise, keys, SHAPE, settings, MASK)
    else:
        vocabulary = Vocabulary(CODES, mask_token)
        direct = lambda: sample(denoise, keys, SHAPE, settings, vocabulary)
    np.testing.assert_array_equal(jax.jit(direct)(), final)


def masked_renoising(settings, uniform, draws, known=None):
    """What every step sees and predicts, in numpy: draw the masked tokens, mask some again."""
    tokens = np.full(SHAPE, MASK)
    if known is not None:
        tokens = np.where(known.generate, tokens, known.tokens)
    times = np.linspace(settings.t_start, settings.t_end, settings.num_steps + 1)
    seen, predicted = [], []
    for step in range(settings.num_steps):
        seen.append(tokens)
        full = np.where(tokens == MASK, draws[step], tokens)
        predicted.append(full)
        again = uniform[step] <= times[step + 1]
        if known is not None:
            again &= known.generate
        tokens = np.where(again, MASK, full) if step < settings.num_steps - 1 else full
    return np.stack(seen), np.stack(predicted), tokens


@pytest.mark.parametrize("keep", [False, True])
def test_masked_renoising_follows_the_formula(keep):
    """Visible tokens are never drawn again; a token is masked with probability t_next; no mask is
    left at the end."""
    settings = RenoiseSettings(num_steps=6)
    uniform = np.asarray(jax.random.uniform(jax.random.key(1), (6, *SHAPE)))
    draws = np.asarray(jax.random.randint(jax.random.key(2), (6, *SHAPE), 0, CODES))
    known = None
    if keep:
        generate = np.asarray(jax.random.bernoulli(jax.random.key(3), 0.6, SHAPE))
        known = Known(np.full(SHAPE, 7), generate)
    seen = []

    def spy(tokens, t, scale):
        note = lambda x, level: seen.append((np.asarray(x), np.asarray(level)))
        jax.debug.callback(note, tokens, t, ordered=True)
        return denoise(tokens, t, scale)

    start = Start(
        known=known,
        randomness=Randomness(jnp.asarray(uniform)),
        draw=lambda number, logits, keys: jnp.asarray(draws)[number],
    )
    run = lambda key: sample(spy, key, SHAPE, settings, Vocabulary(CODES, MASK), start, trace=True)
    final, states = jax.jit(run)(jax.random.key(0))
    jax.effects_barrier()
    inputs, predicted, last = masked_renoising(settings, uniform, draws, known)
    np.testing.assert_array_equal([tokens for tokens, _ in seen], inputs)
    told = np.broadcast_to(np.linspace(1, 1 / 6, 6)[:, None], (6, SHAPE[0]))
    if keep:  # what is kept is visible from the start: the network hears the true share
        told = (inputs == MASK).mean((2, 3))
    np.testing.assert_allclose([t for _, t in seen], told, rtol=1e-6)
    np.testing.assert_array_equal(states, predicted)
    np.testing.assert_array_equal(final, last)
    assert (np.asarray(final) < CODES).all()
    assert (inputs[0] == MASK).all() != keep
    assert (inputs[1:] == MASK).any() and (np.diff(states, axis=0) != 0).any()


def test_parallel_decoding_tells_the_true_share_around_known_tokens():
    generate = np.zeros(SHAPE, bool)
    generate[:, :2] = True
    settings = token_settings("mask", "confidence", BASE, {"num_steps": 3})
    seen = []

    def spy(tokens, t, scale):
        note = lambda x, level: seen.append(((np.asarray(x) == MASK).mean((1, 2)), level))
        jax.debug.callback(note, tokens, t, ordered=True)
        return denoise(tokens, t, scale)

    draw(settings, MASK, known=Known(jnp.full(SHAPE, 3), generate), denoise=spy)
    jax.effects_barrier()
    np.testing.assert_allclose([t for _, t in seen], [share for share, _ in seen])
    assert seen[0][1][0] == pytest.approx(generate.mean()) and len(seen) == 3


def test_lowest_confidence_renoising_counts_among_the_tokens_it_draws():
    """Kept tokens are never ranked: else a sure network would renoise the whole part each step."""
    generate = np.zeros(SHAPE, bool)
    generate[:, 1:3] = True
    logits = jax.random.normal(jax.random.key(0), (*SHAPE, CODES))
    drawn = jnp.argmax(logits, -1)
    count = generate[0].sum()
    for share in (0.0, 0.25, 0.5, 1.0):
        everywhere = np.asarray(confidence_order(logits, drawn)) <= share
        np.testing.assert_array_equal(everywhere.sum((1, 2)), int(share * generate[0].size))
        part = np.asarray(confidence_order(logits, drawn, generate)) <= share
        np.testing.assert_array_equal(part.sum((1, 2)), int(share * count))
        assert not part[~generate].any()


@pytest.mark.parametrize("sampler", ["random", "confidence"])
def test_known_tokens_and_images_reach_both_masked_samplers(sampler):
    image, generate = jnp.full(SHAPE, 3), np.zeros(SHAPE, bool)
    generate[:, 1:3] = True
    settings = token_settings("mask", sampler, BASE, {})
    kept = draw(settings, MASK, known=Known(image, generate))
    np.testing.assert_array_equal(kept[~generate], 3)
    assert (kept[generate] != 3).any()
    part = token_settings("mask", sampler, BASE, start_from_image(settings, 0.5))
    started = draw(part, MASK, image_tokens=image)
    assert 0.2 < (started == 3).mean() < 0.95  # half of the image, and what is drawn equal to it
