"""Scores of feature vectors, images, codes and captions: closed forms, known answers, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import small_clip

from paella_jax.encoders.clip_judge import clip_image, cosines, load_clip_judge
from paella_jax.evaluation.distances import frechet_estimate, frechet_of, kernel_estimate
from paella_jax.evaluation.estimates import leave_blocks_out, mean_of
from paella_jax.evaluation.features import load_features
from paella_jax.evaluation.frechet import feature_statistics, frechet_distance
from paella_jax.evaluation.image_measures import code_usage, inception_score, is_blank, psnr, ssim
from paella_jax.evaluation.kernel_distance import kernel_distance
from paella_jax.evaluation.neighbours import centred, copying, precision_recall, retrieval


def normal(count, width=6, seed=0, shift=0.0):
    return np.random.default_rng(seed).normal(size=(count, width)) + shift


@pytest.mark.parametrize("counts", [(30, 25), (30, 200), (200, 25), (200, 200)])
def test_frechet_of_few_and_many_images_is_one_number(counts):
    first, second = normal(counts[0], 40), normal(counts[1], 40, 1, 0.3)
    by_matrices = frechet_distance(feature_statistics(first), feature_statistics(second))
    assert frechet_of(first, second) == pytest.approx(by_matrices, rel=1e-9)


def test_intervals_have_the_size_of_the_spread():
    """The deviation that the jackknife tells is that of many independent draws."""
    draws = [kernel_estimate(normal(100, 6, n), normal(100, 6, 1000 + n, 0.5)) for n in range(20)]
    width = np.mean([one.whole.high - one.whole.low for one in draws]) / (2 * 1.96)
    assert 0.6 < width / np.std([one.whole.value for one in draws], ddof=1) < 1.7
    estimate = mean_of(np.arange(10))
    assert estimate.value == 4.5
    assert estimate.high - 4.5 == pytest.approx(1.96 * np.std(np.arange(10), ddof=1) / 10**0.5)


def test_kernel_distance_without_a_block_is_recomputed_right():
    first, second = normal(45), normal(37, 6, 1, 0.4)
    ours = kernel_estimate(first, second)
    slowly = leave_blocks_out(kernel_distance, first, second)
    assert ours.whole == pytest.approx(slowly, rel=1e-9)
    assert ours.subset == 18
    assert ours.mean == pytest.approx(ours.whole.value, abs=4 * ours.deviation / 10)


def test_pairs_are_not_compared_with_each_other():
    images = normal(60)
    same = kernel_estimate(images, images, paired=True)
    assert same.whole.value == pytest.approx(0.0, abs=1e-9) and abs(same.mean) < 1e-9
    assert kernel_estimate(images, images).whole.value < -0.1
    moved = kernel_estimate(images, images + 0.5, paired=True)
    assert moved.whole.low > 0 and moved.mean == pytest.approx(moved.whole.value, rel=0.3)
    with pytest.raises(ValueError, match="no pairs of 60 and 59"):
        kernel_estimate(images, images[1:], paired=True)


def test_frechet_interval_holds_the_distance_of_equal_bias():
    estimate = frechet_estimate(normal(300), normal(300, 6, 1, 0.5))
    assert estimate.low < 6 * 0.25 + 0.05 < estimate.high


def test_precision_and_recall_tell_collapse_from_noise():
    real = normal(200, 3)
    collapsed, noisy = real[:1] + 1e-3 * normal(200, 3, 1), 5.0 * normal(200, 3, 2)
    shares = precision_recall(collapsed, real)
    assert shares.precision.value == 1.0 and shares.recall.value < 0.1
    assert precision_recall(noisy, real).precision.value < 0.5
    equal = precision_recall(real, real)
    assert equal.precision.value == equal.recall.value == 1.0


@pytest.mark.parametrize("counts", [(15, 20), (15, 700), (600, 30)])
def test_equal_images_lie_in_each_other_s_place(counts):
    """Blank ones have balls without a radius, and are as far away as rounding says."""
    drawn, real = (normal(1, 1280).astype(np.float32).repeat(count, 0) for count in counts)
    shares = precision_recall(drawn, real)
    assert shares.precision.value == shares.recall.value == 1.0
    moved = precision_recall(drawn * np.float32(1.001), real)
    assert moved.precision.value == moved.recall.value == 0.0
    # Of unseen images as near to the training ones, none is nearer.
    assert copying(drawn, real[:10], np.repeat(real[:1], 64, 0)).share.value == 0.0


def on_a_line(seed, *steps):
    """Points at so many equal steps from one."""
    return normal(1, 640, seed) + normal(1, 640, 100 + seed) * np.array(steps)[:, None]


def test_points_on_a_ball_s_surface_are_inside():
    """Ahead of a line of equal steps a point is as far from its end as the third one behind."""
    for seed in range(20):
        line, surface = on_a_line(seed, *range(8)), on_a_line(seed, -3, -3, 10, 10, 10)
        assert precision_recall(surface, line).precision.value == 1.0
        beyond = on_a_line(seed, -3.000001, -4, -5, 10.000001, 11)
        assert precision_recall(beyond, line).precision.value == 0.0


def test_copies_are_found():
    training, unseen = normal(300, 6), normal(200, 6, 1)
    honest, copied = normal(200, 6, 2), training[:200] + 1e-4
    assert copying(honest, training, unseen).share.value < 0.06
    found = copying(copied, training, unseen)
    assert found.share.value == 1.0
    np.testing.assert_array_equal(found.nearest, np.arange(200))


def test_retrieval_of_the_right_one_and_by_chance():
    images = normal(256, 32)
    right = retrieval(images + 0.1 * normal(256, 32, 1), images)
    assert right.first.value == 1.0 and right.among == 64
    chance = retrieval(normal(256, 32, 2), images)
    assert chance.first.value < 0.06 and 0.02 < chance.among_five.value < 0.17
    # All candidates alike say nothing: what a draw among them finds.
    alike = retrieval(images, np.ones((256, 32)))
    assert (alike.first.value, alike.among_five.value) == (1 / 64, 5 / 64)
    twice = np.repeat(images[:128], 2, axis=0)  # of two that are equal each is first half the time
    found = retrieval(twice, twice, among=256)
    assert found.first.value == 0.5 and found.among_five.value == 1.0


def test_what_all_images_share_is_taken_off():
    images = normal(100, 8) + 100.0
    assert np.abs(centred(images, images).mean(0)).max() < 1e-9


def test_inception_score_of_certain_and_of_blank_answers():
    certain = np.where(np.eye(5)[np.arange(100) % 5] > 0, 50.0, 0.0)
    assert inception_score(certain, splits=1).mean == pytest.approx(5.0, rel=1e-6)
    assert inception_score(np.zeros((100, 5))).mean == pytest.approx(1.0)


@pytest.mark.parametrize("order", ["sorted", "in turn"])
def test_inception_score_does_not_hang_on_the_order_of_the_classes(order):
    """Cut in their order, or one in ten, images of ten classes give parts of one class."""
    classes = np.repeat(np.arange(10), 50) if order == "sorted" else np.arange(500) % 10
    score = inception_score(np.eye(10)[classes] * 30.0)
    assert score.mean > 8.0 and score.deviation < 1.0 and score.splits == 10


def test_blank_images():
    white = np.full((16, 16, 3), 250, np.uint8)
    assert is_blank(white) and is_blank(white - np.arange(16, dtype=np.uint8)[:, None, None])
    dotted = white.copy()
    dotted[4:8, 4:8] = (200, 30, 30)
    assert not is_blank(dotted)
    assert not is_blank(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))


def test_psnr():
    images = np.full((2, 4, 4, 3), 0.5)
    np.testing.assert_allclose(psnr(images, images + 0.1), [20.0, 20.0])
    np.testing.assert_allclose(psnr(images, images), [100.0, 100.0])


def test_ssim_of_a_window_and_of_flat_images():
    x, y = np.random.default_rng(0).uniform(size=(2, 1, 11, 11, 3))
    line = np.exp(-np.square(np.arange(-5, 6)) / (2 * 1.5**2))
    weights = np.outer(line, line)[..., None] / line.sum() ** 2
    mean = lambda z: (weights * z).sum((0, 1))
    a, b = mean(x[0]), mean(y[0])
    variances = mean((x[0] - a) ** 2) + mean((y[0] - b) ** 2)
    covariance = mean((x[0] - a) * (y[0] - b))
    wanted = (2 * a * b + 1e-4) * (2 * covariance + 9e-4) / (
        (a * a + b * b + 1e-4) * (variances + 9e-4))  # fmt: skip
    np.testing.assert_allclose(ssim(x, y), [wanted.mean()], rtol=1e-9)
    wide = np.concatenate([x, x], axis=2)
    np.testing.assert_allclose(ssim(np.stack([wide[0]] * 2), np.stack([wide[0]] * 2)), [1.0, 1.0])
    flat = lambda value: np.full((1, 20, 30, 3), value)
    np.testing.assert_allclose(ssim(flat(0.2), flat(0.6)), (0.24 + 1e-4) / (0.4 + 1e-4))
    with pytest.raises(ValueError, match="11 pixels, the images have 10x20"):
        ssim(np.zeros((1, 20, 10, 3)), np.zeros((1, 20, 10, 3)))


def test_code_usage():
    usage = code_usage(np.array([5, 5, 0, 0]))
    assert (usage.used, usage.codes) == (2, 4) and usage.perplexity == pytest.approx(2.0)
    assert code_usage(np.array([1, 0])).perplexity == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no code"):
        code_usage(np.zeros(3))


@pytest.mark.parametrize(
    "score, message",
    [
        (
            lambda: frechet_estimate(normal(19), normal(30)),
            "FID or KID needs at least 20 images.*are 19",
        ),
        (lambda: kernel_estimate(normal(30), normal(9)), "KID needs at least 20 images"),
        (lambda: kernel_estimate(normal(30), normal(30, 5)), "one width"),
        (lambda: precision_recall(normal(4), normal(9)), "at least 5 images"),
        (lambda: retrieval(normal(63), normal(63)), "at least 64 images"),
        (lambda: inception_score(np.zeros((19, 4))), "at least 20 images"),
        (lambda: copying(normal(9), normal(99), normal(9)), "at least 64 images"),
        (lambda: load_features("vgg"), "no features 'vgg'; give one of inception"),
        (lambda: load_features("inception"), "--weights FILE"),
        (lambda: load_features("clip"), "--weights FOLDER"),
    ],
)
def test_refusals(score, message):
    with pytest.raises(ValueError, match=message):
        score()


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return load_clip_judge(small_clip.write_clip_folder(tmp_path_factory.mktemp("clip")))


def test_clip_images_on_the_host_are_those_of_the_program():
    from paella_jax.encoders.preprocess import clip_preprocess

    for shape in ((50, 41, 3), (32, 32, 3), (20, 33, 3)):
        image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        theirs = clip_preprocess(image[None].astype(np.float32) / 255.0, 32)[0]
        np.testing.assert_allclose(clip_image(image, 32), theirs, atol=2e-5)


def test_clip_score_and_its_scale(judge):
    images = [np.random.default_rng(n).integers(0, 256, (40, 32, 3), np.uint8) for n in range(33)]
    vectors = judge.images.extract(images).vectors
    texts = judge.embed_texts([f"text {n}" for n in range(33)])
    assert vectors.shape == texts.shape == (33, small_clip.PROJECTION)
    # The last batch holds one image and one text: filling it up changes nothing.
    np.testing.assert_allclose(judge.images.extract(images[-1:]).vectors[0], vectors[-1], atol=1e-5)
    np.testing.assert_allclose(judge.embed_texts(["text 32"])[0], texts[-1], atol=1e-5)
    scores = cosines(vectors, texts)
    assert scores.shape == (33,) and np.abs(scores).max() <= 1.0 and scores.std() > 0
    np.testing.assert_allclose(cosines(texts, 3 * texts), 1.0)
    # `sample --best_of` picks by the number that `evaluate` prints.
    own = [f"text {n}" for n in range(33)]
    np.testing.assert_allclose(judge.score(images, own), scores, atol=1e-5)
    np.testing.assert_allclose(judge.score(images[:3], own[:3]), scores[:3], atol=1e-5)
    assert judge.scale == pytest.approx(np.exp(4.6), rel=1e-6)
