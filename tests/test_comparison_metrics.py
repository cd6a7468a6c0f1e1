"""The comparison's classifier, diversity, and cross-entropy on corrupted tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.data.shapes import Scene, ShapeObject, get_spec
from paella_jax.data.sources import ShapesSource
from paella_jax.evaluation.classifier import (
    FEATURES,
    heads,
    labels,
    load_classifier,
    load_or_train_classifier,
    split_logits,
    train_classifier,
)
from paella_jax.evaluation.diversity import diversity, mean_pairwise_distance
from paella_jax.evaluation.frechet import feature_statistics, frechet_distance
from paella_jax.evaluation.token_cross_entropy import (
    LEVELS,
    corrupt_exactly,
    corrupted_token_scores,
)
from paella_jax.runs.folder import CheckpointError

CODES, GRID, IMAGES = 16, 8, 6
SHORT = {"num_steps": 120, "batch_size": 32, "num_images": 256, "num_validation": 64}


@pytest.fixture(scope="module")
def classifier():
    return train_classifier("tiny", **SHORT)


def images_of(split, count, seed=5):
    source = ShapesSource("tiny", split, count, seed)
    return np.stack([source[i]["image"] for i in range(count)]).astype(np.float32) / 255.0


# --- classifier ----------------------------------------------------------------------------------


def test_labels_by_hand():
    spec = get_spec("shapes")
    objects = (
        ShapeObject("green", "square", "large", 0, 1),
        ShapeObject("red", "cross", "small", 1, 0),
    )
    expected = [2, 2, *(0, 2, 4, 0), *(0, 2, 1, 0), *(0, 2, 1, 0)]
    assert labels(Scene("white", objects), spec).tolist() == expected
    assert [head.classes for head in heads(spec)] == [3, 3, 5, 7, 3]


def test_logits_are_cut_at_the_heads():
    spec = get_spec("shapes")
    total = sum(head.columns * head.classes for head in heads(spec))
    blocks = split_logits(np.arange(2.0 * total).reshape(2, total), spec)
    assert [block.shape[1:] for block in blocks] == [(h.columns, h.classes) for h in heads(spec)]
    np.testing.assert_array_equal(
        np.concatenate([b.ravel() for b in blocks]).sum(), total * (2 * total - 1)
    )
    assert blocks[-1][1, -1, -1] == 2 * total - 1


def test_classifier_learns_what_it_never_saw(classifier):
    accuracy = classifier.accuracy["validation"]
    assert accuracy["background"] > 0.95 and accuracy["color"] > 0.9, accuracy
    assert set(accuracy) == {"background", "count", "shape", "color", "size", "exact"}


def test_training_is_deterministic_and_follows_the_seed():
    few = {"num_steps": 4, "batch_size": 8, "num_images": 32, "num_validation": 8}
    images = images_of("train", 4)
    first, again, other = (
        train_classifier("tiny", seed, **few).features(images, 4) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_features_depend_on_the_image_not_on_the_batch_or_its_type(classifier):
    images = images_of("train", 5)
    features = classifier.features(images)
    assert features.shape == (5, FEATURES) and features.dtype == np.float32
    np.testing.assert_allclose(classifier.features(images, batch_size=2), features, atol=1e-5)
    as_bytes = np.round(images * 255).astype(np.uint8)
    np.testing.assert_allclose(classifier.features(as_bytes), features, atol=1e-5)


def test_frechet_distance_tells_real_from_damaged(classifier):
    reference = feature_statistics(classifier.features(images_of("train", 96)))
    real = feature_statistics(classifier.features(images_of("train", 96, seed=6)))
    shuffled = images_of("train", 96, seed=6)
    shuffled[:, :16] = shuffled[:, :16, ::-1].copy() * 0.5
    damaged = feature_statistics(classifier.features(shuffled))
    assert frechet_distance(reference, damaged) > 3 * frechet_distance(reference, real)


def test_saved_classifier_is_the_same(classifier, tmp_path):
    file = tmp_path / "made" / "classifier.safetensors"
    classifier.save(file)
    loaded = load_or_train_classifier(file, "tiny", num_steps=-1)  # would be refused if it trained
    images = images_of("train", 3)
    np.testing.assert_array_equal(loaded.features(images), classifier.features(images))
    np.testing.assert_array_equal(loaded.read(images), classifier.read(images))
    assert loaded.accuracy["validation"] == pytest.approx(classifier.accuracy["validation"])
    with pytest.raises(CheckpointError, match="no classifier of 'shapes' images"):
        load_classifier(file, "shapes")


def test_bad_requests_are_refused(classifier):
    with pytest.raises(ValueError, match="from 8 images"):
        train_classifier("tiny", batch_size=16, num_images=8)
    with pytest.raises(ValueError, match=r"must be \[n, 32, 32, 3\], got \[2, 16, 16, 3\]"):
        classifier.features(np.zeros((2, 16, 16, 3), np.float32))
    with pytest.raises(ValueError, match="int64"):
        classifier.features(np.zeros((2, 32, 32, 3), np.int64))


# --- diversity -----------------------------------------------------------------------------------


def test_pairwise_distance_by_hand():
    assert mean_pairwise_distance(np.array([[0, 0], [3, 4], [0, 0]])) == pytest.approx(10 / 3)


def test_diversity_looks_inside_prompts_only():
    images = np.zeros((2, 3, 4, 4, 3), np.float32)
    images[1] = 1.0  # prompts differ, their samples do not
    assert diversity(images).pixels == 0.0
    images[1, 0] = 0.5  # two of the three pairs of one prompt are 0.5 apart
    assert diversity(images).pixels == pytest.approx(0.5 * 2 / 3 / 2)
    assert np.isnan(diversity(images).features)
    brightness = lambda x: 10 * x.mean((1, 2, 3))[:, None]
    assert diversity(images, brightness).features == pytest.approx(5 * 2 / 3 / 2)


@pytest.mark.parametrize("shape", [(2, 1, 4, 4, 3), (0, 2, 4, 4, 3), (2, 4, 4, 3)])
def test_diversity_needs_two_samples(shape):
    with pytest.raises(ValueError, match="at least 2 samples"):
        diversity(np.zeros(shape))
    with pytest.raises(ValueError, match="m >= 2"):
        mean_pairwise_distance(np.zeros((1, 4)))


# --- cross-entropy on corrupted tokens -----------------------------------------------------------


@pytest.fixture
def tokens():
    return jax.random.randint(jax.random.key(3), (IMAGES, GRID, GRID), 0, CODES)


@pytest.fixture
def keys():
    return jax.random.split(jax.random.key(4), IMAGES)


@pytest.mark.parametrize("level, count", [(0.1, 6), (0.5, 32), (0.9, 58), (0.001, 1), (1.0, 64)])
def test_both_corruptions_take_the_same_exact_positions(tokens, keys, level, count):
    masked, where = corrupt_exactly(keys, tokens, level, codebook_size=CODES, mask_token=CODES)
    random, same = corrupt_exactly(keys, tokens, level, codebook_size=CODES, mask_token=None)
    np.testing.assert_array_equal(where, same)
    assert (np.asarray(where).sum((1, 2)) == count).all()
    np.testing.assert_array_equal(masked == CODES, where)
    np.testing.assert_array_equal(np.asarray(random)[~where], np.asarray(tokens)[~where])
    assert int(random.max()) < CODES


def test_random_tokens_may_equal_the_original(tokens, keys):
    many, where = (
        np.asarray(x) for x in corrupt_exactly(
            jax.random.split(jax.random.key(0), 400), jnp.tile(tokens[:1], (400, 1, 1)), 0.5,
            codebook_size=CODES, mask_token=None,
        )
    )  # fmt: skip
    equal = (many == np.asarray(tokens[:1]))[where].mean()
    assert equal == pytest.approx(1 / CODES, abs=0.01)


def scores_of(logits, tokens, keys, **changes):
    settings = {"codebook_size": CODES, "mask_token": CODES} | changes
    return corrupted_token_scores(logits, tokens, keys, **settings)


def test_uniform_and_perfect_predictions(tokens, keys):
    nothing = scores_of(lambda x, t: jnp.zeros((*x.shape, CODES)), tokens, keys)
    assert list(nothing) == ["10", "30", "50", "70", "90"]
    for entry in nothing.values():
        assert entry["cross_entropy"] == pytest.approx(np.log(CODES), rel=1e-5)
        assert entry["images"] == IMAGES
    assert [entry["positions"] for entry in nothing.values()] == [6, 19, 32, 45, 58]
    perfect = scores_of(lambda x, t: 50.0 * jax.nn.one_hot(tokens, CODES), tokens, keys)
    assert all(e["cross_entropy"] < 1e-6 and e["accuracy"] == 1.0 for e in perfect.values())


@pytest.mark.parametrize("mask_token", [None, CODES])
def test_only_corrupted_positions_count(tokens, keys, mask_token):
    """A network that repeats what it reads is right wherever that is clean, and gets no credit."""
    repeat = lambda x, t: 50.0 * jax.nn.one_hot(x, CODES)
    accuracy = [
        e["accuracy"] for e in scores_of(repeat, tokens, keys, mask_token=mask_token).values()
    ]
    assert max(accuracy) < 0.25


def test_by_hand(tokens, keys):
    """Logits 0 but for ln 3 on the code 0: p(0) = 3/18, any other code 1/18."""
    tilted = jnp.zeros(CODES).at[0].set(jnp.log(3.0))
    entry = scores_of(lambda x, t: jnp.broadcast_to(tilted, (*x.shape, CODES)), tokens, keys,
                      levels=(1.0,))["100"]  # fmt: skip
    zeros = float((tokens == 0).mean())
    assert entry["accuracy"] == pytest.approx(zeros)
    assert entry["cross_entropy"] == pytest.approx(np.log(18) - zeros * np.log(3), rel=1e-5)


def test_networks_see_the_true_share_and_the_same_positions(tokens, keys):
    seen = []

    def logits(x, t):
        seen.append((np.asarray(x), np.asarray(t)))
        return jnp.zeros((*x.shape, CODES))

    scores_of(logits, tokens, keys)
    scores_of(logits, tokens, keys, levels=(0.3,))  # other levels do not move the positions
    for x, t in seen:
        np.testing.assert_allclose((x == CODES).mean((1, 2)), t, rtol=1e-6)
    np.testing.assert_array_equal(seen[1][0], seen[-1][0])
    assert (seen[0][0] == CODES).any() and len(seen) == len(LEVELS) + 1


def test_a_sample_does_not_depend_on_its_batch(tokens, keys):
    waves = jnp.arange(1.0, CODES + 1).reshape(1, 1, 1, -1)
    logits = lambda x, t: jnp.sin(x[..., None] * waves)
    settings = {"mask_token": None, "levels": (0.3, 0.7)}
    whole = scores_of(logits, tokens, keys, **settings)
    parts = [scores_of(logits, tokens[c], keys[c], **settings) for c in np.split(np.arange(6), 2)]
    for level, entry in whole.items():
        for name in ("cross_entropy", "accuracy"):
            mean = sum(part[level][name] for part in parts) / len(parts)
            assert mean == pytest.approx(entry[name], rel=1e-5)
        assert parts[0][level]["images"] == 3 and entry["images"] == IMAGES


def test_bad_inputs_are_refused(tokens, keys):
    zeros = lambda x, t: jnp.zeros((*x.shape, CODES))
    for levels in ((0.0,), (1.5,), ()):
        with pytest.raises(ValueError, match=r"in \(0, 1\]"):
            scores_of(zeros, tokens, keys, levels=levels)
    with pytest.raises(ValueError, match="5 keys"):
        scores_of(zeros, tokens, keys[:5])
    with pytest.raises(ValueError, match=r"logits have shape \[6, 8, 8, 3\]"):
        scores_of(lambda x, t: jnp.zeros((*x.shape, 3)), tokens, keys)
