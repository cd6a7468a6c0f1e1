"""Which conditions a training sample loses, what its noise level is, and who sees padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from ml_collections import ConfigDict
from small import random_variables

from paella_jax.encoders.t5 import T5Encoder
from paella_jax.models.conditioning import ConditionInputs
from paella_jax.noise.tokens import sample_keys, sample_noise_level
from paella_jax.objectives.token_prediction import (
    draw_dropped,
    drop_conditions,
    kinds_of,
    token_weight,
    unmasked_padding,
    weighted_token_loss,
)

COUNT = 4000
SHARES = {"text": 0.05, "clip_text": 0.9, "image": 0.7, "label": 0.5, "segmentation": 0.3}
EMPTY_CLIP = jnp.arange(77, dtype=jnp.int32) + 100
pytestmark = pytest.mark.usefixtures("keys_used_once")


def keys():
    return sample_keys(jax.random.key(0), jnp.arange(COUNT))


def inputs():
    """Conditions no one of which equals its own absence."""
    return ConditionInputs(
        text_ids=jnp.full((COUNT, 6), 70, jnp.int32),
        text_mask=jnp.ones((COUNT, 6), bool),
        clip_ids=jnp.full((COUNT, 77), 7, jnp.int32),
        image_pooled=jnp.ones((COUNT, 1, 3)),
        labels=jnp.full((COUNT,), 2, jnp.int32),
        segmentation=jnp.full((COUNT, 2, 2), 1, jnp.int32),
    )


def drop(given, settings):
    def run():
        dropped = draw_dropped(keys(), settings, kinds_of(given, {}))
        return drop_conditions(dropped, given, EMPTY_CLIP)

    return jax.jit(run)()


def dropped(shares, **more):
    settings = ConfigDict({f"{name}_drop": share for name, share in shares.items()} | more)
    out = drop(inputs(), settings)
    return out, {
        "text": np.asarray((out.text_mask.sum(1) == 1) & (out.text_ids[:, 0] == 1)),
        "clip_text": np.asarray((out.clip_ids == EMPTY_CLIP[None]).all(1)),
        "image": np.asarray(~out.image_mask[:, 0]),
        "label": np.asarray(out.labels == -1),
        "segmentation": np.asarray((out.segmentation == -1).all((1, 2))),
    }


def test_each_kind_is_dropped_per_sample_at_its_own_rate():
    """A rate that is inverted, shared between kinds or drawn per batch would show."""
    out, gone = dropped(SHARES)
    for name, share in SHARES.items():
        assert abs(gone[name].mean() - share) < 4 * np.sqrt(share * (1 - share) / COUNT), name
    correlation = np.corrcoef(np.stack(list(gone.values())))
    assert np.abs(correlation - np.eye(len(gone))).max() < 0.08
    kept = ~gone["text"]
    assert (np.asarray(out.text_ids)[kept] == 70).all() and np.asarray(out.text_mask)[kept].all()
    assert (np.asarray(out.text_ids)[gone["text"], 1:] == 0).all()
    assert (np.asarray(out.clip_ids)[~gone["clip_text"]] == 7).all()


def test_one_condition_alone():
    """Each kind in proportion to how often it is kept; the other samples lose kinds as before."""
    _, gone = dropped(SHARES, one_condition=1.0)
    kept = ~np.stack([gone[name] for name in SHARES])
    assert (kept.sum(0) == 1).all()
    wanted = np.array([1 - share for share in SHARES.values()])
    np.testing.assert_allclose(kept.mean(1), wanted / wanted.sum(), atol=0.03)
    _, some = dropped(SHARES, one_condition=0.25)
    _, none = dropped(SHARES)
    as_before = np.all([some[name] == none[name] for name in SHARES], axis=0)
    assert 0.75 <= as_before.mean() < 0.85  # a few lose the same kinds by either draw
    _, ended = dropped(dict.fromkeys(SHARES, 1.0), one_condition=0.5)
    assert all(rows.all() for rows in ended.values())


def test_one_condition_is_of_the_kinds_that_there_are():
    settings = ConfigDict({f"{name}_drop": 0.5 for name in SHARES} | {"one_condition": 1.0})
    given = ConditionInputs(
        **{n: getattr(inputs(), n) for n in ("text_ids", "text_mask", "labels")}
    )
    out = drop(given, settings)
    labelled = np.asarray(out.labels != -1)
    assert ((np.asarray(out.text_mask.sum(1)) == 6) == ~labelled).all()
    assert abs(labelled.mean() - 0.5) < 0.03


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_ends_of_the_rates(share):
    _, gone = dropped(dict.fromkeys(SHARES, share))
    assert all((rows == bool(share)).all() for rows in gone.values())


def test_clip_text_alone_has_the_text_s_rate():
    """aMUSEd and MUSE drop a tenth of their text; 90 % are for CLIP's text beside another."""
    alone = ConditionInputs(clip_ids=jnp.full((COUNT, 77), 7, jnp.int32))
    settings = ConfigDict({f"{name}_drop": share for name, share in SHARES.items()})
    settings.text_drop, settings.clip_text_drop = 0.1, 0.9
    out = drop(alone, settings)
    share = np.asarray((out.clip_ids == EMPTY_CLIP[None]).all(1)).mean()
    assert abs(share - 0.1) < 4 * np.sqrt(0.09 / COUNT)
    for preset in ("amused_256", "amused_512"):
        assert small.config_of(f"muse:{preset}").objective.text_drop == 0.1


def test_the_released_rates():
    """docs/models/paella.md 3."""
    objective = small.config_of("paella:1b").objective
    assert (objective.text_drop, objective.clip_text_drop, objective.image_drop) == (0.05, 0.9, 0.9)
    assert not objective.mask_padding and small.config_of("paella:shapes").objective.mask_padding


def test_noise_levels():
    t = np.sort(np.asarray(sample_noise_level(keys(), 0.001)))
    assert t[0] >= 0.001 and t[-1] <= 1.0
    np.testing.assert_allclose(t, (np.arange(COUNT) + 0.5) / COUNT, atol=0.03)  # uniform
    stretched = np.asarray(sample_noise_level(keys(), 0.001, 1.08))
    assert abs((stretched == 1.0).mean() - 0.081 / 1.08) < 0.015


def test_the_loss_is_of_the_positions_asked_for():
    """Whatever the corruption: what each was published with is only the default."""
    noised = np.array([[[True, False], [False, False]]])
    level = jnp.array([0.25])
    weights = {
        (positions, mask): token_weight(
            noised, level, ConfigDict({"minimum_weight": 0.3, "loss_positions": positions}), mask
        )
        for positions in (None, "all", "corrupted")
        for mask in (None, 32)
    }
    everything, corrupted = weights["all", None], weights["corrupted", None]
    np.testing.assert_array_equal(corrupted, noised)
    assert everything.min() > 0.3 and everything[0, 0, 0] == 1.0
    for (positions, mask), found in weights.items():
        published = "all" if mask is None else "corrupted"
        expected = {"all": everything, "corrupted": corrupted}[positions or published]
        np.testing.assert_array_equal(found, expected)
    older = ConfigDict({"minimum_weight": 0.3})
    np.testing.assert_array_equal(token_weight(noised, level, older, None), everything)


def test_an_image_of_which_nothing_was_corrupted_has_no_loss():
    """At small levels random tokens may leave an image as it is; its weights are then all 0."""
    first, second = jax.random.split(jax.random.key(0))
    features, classifier = jax.random.normal(first, (2, 2, 2, 3)), jax.random.normal(second, (3, 5))
    targets = jnp.arange(8).reshape(2, 2, 2) % 5
    mask = jnp.zeros((2, 2, 2), bool).at[0, 0, 0].set(True)

    def loss(features):
        weight = mask.astype(jnp.float32)
        return weighted_token_loss(features, classifier, targets, mask, weight)[0]

    value, gradient = jax.value_and_grad(loss)(features)
    alone = weighted_token_loss(features[:1], classifier, targets[:1], mask[:1], mask[:1] * 1.0)[0]
    np.testing.assert_allclose(value, alone / 2, rtol=1e-6)
    assert np.isfinite(gradient).all() and np.any(gradient[0]) and not np.any(gradient[1])


def test_padding_seen_like_text():
    """With the mask widened, a short text beside a long one is what the reference computes."""
    encoder = T5Encoder(
        vocab_size=384, width=16, num_layers=2, num_heads=2, head_dim=8, hidden_dim=24
    )
    ids = jnp.array([[70, 71, 72, 73, 1, 0, 0, 0], [90, 1, 0, 0, 0, 0, 0, 0]], jnp.int32)
    given = ConditionInputs(text_ids=ids, text_mask=jnp.arange(8)[None] < jnp.array([[5], [2]]))
    wide = unmasked_padding(given)
    np.testing.assert_array_equal(wide.text_mask.sum(1), [5, 5])
    params = random_variables(encoder, ids)
    ours = encoder.apply(params, wide.text_ids, wide.text_mask)[:, :5]
    reference = encoder.apply(params, ids[:, :5])  # padded to the longest, no mask
    np.testing.assert_allclose(ours, reference, atol=1e-5)
    masked = encoder.apply(params, ids, given.text_mask)[1, :2]
    assert np.abs(np.asarray(masked - reference[1, :2])).max() > 1e-3
    nothing = ConditionInputs()
    assert unmasked_padding(nothing) is nothing


def test_an_empty_text_is_not_padded():
    """A dropped text beside captions is what guidance shows the network: one end token."""
    lengths = jnp.array([[5], [1], [3]])
    given = ConditionInputs(text_mask=jnp.arange(8)[None] < lengths)
    np.testing.assert_array_equal(unmasked_padding(given).text_mask.sum(1), [5, 1, 5])
