"""The FID Inception network, its resizing and the scores of features, under --golden.

The network has 24 million weights; compiling and running it takes most of this file's time.
"""

from __future__ import annotations

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.evaluation.distances import frechet_of, kernel_estimate
from paella_jax.evaluation.frechet import feature_statistics, frechet_distance
from paella_jax.evaluation.image_measures import inception_score
from paella_jax.evaluation.kernel_distance import kernel_distance
from paella_jax.evaluation.neighbours import precision_recall
from paella_jax.files.tensors import COUNTER
from paella_jax.models.inception import MIXED, NAMES, Inception, resize, resize_legacy

IS_OURS = lambda config, _: {"frechet", "activations", "tensors"} <= set(config)


def pytest_generate_tests(metafunc):
    golden.parametrize(metafunc, "folder", IS_OURS)


def drawn_weights(seed: int) -> dict[str, np.ndarray]:
    """The recorded network's weights, by the recipe that the recordings' README gives."""
    entries = NAMES.entries(Inception())
    names = {entry.name for entry in entries}
    names |= {n.replace("running_var", COUNTER) for n in names if n.endswith("running_var")}
    shapes = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape),
                          NAMES.shapes(Inception()))  # fmt: skip
    ours = NAMES.save(shapes, Inception(), copy=False)
    tensors = {}
    for number, name in enumerate(sorted(names)):
        draw = np.random.default_rng([seed, number])
        if name.endswith(COUNTER):
            value = np.zeros(())
        elif name.endswith(".conv.weight"):
            shape = ours[name].shape
            value = draw.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith((".bn.weight", ".running_var")):
            value = draw.uniform(0.5, 1.5, ours[name].shape)
        else:
            scale = 0.02 if name == "fc.weight" else 0.1
            value = scale * draw.standard_normal(ours[name].shape)
        tensors[name] = value.astype(np.float32)
    return tensors


@pytest.fixture(scope="module")
def recorded(folder):
    """Config and arrays of a recording, with our network's outputs: one program for all tests."""
    config, arrays = golden.config_of(folder), golden.arrays_of(folder)
    weights = drawn_weights(config["seed"])
    assert len(weights) == config["tensors"]
    assert sorted(weights)[:3] == config["first"] and sorted(weights)[-3:] == config["last"]
    assert sum(x.size for n, x in weights.items() if COUNTER not in n) - sum(
        x.size for n, x in weights.items() if "running" in n
    ) == config["parameters"]  # fmt: skip
    variables = NAMES.load(weights, Inception())
    blocks = lambda module, method: method == "__call__" and module.name is not None

    @jax.jit
    def run(variables, clean, legacy):
        images = jnp.concatenate([clean, legacy]) / 127.5 - 1.0
        outputs, kept = Inception().apply(variables, images, capture_intermediates=blocks)
        return outputs, jax.tree.map(lambda x: x[: len(clean)], kept["intermediates"])

    clean, legacy = (np.stack([f(x) for x in arrays["images"]]) for f in (resize, resize_legacy))
    with jax.default_matmul_precision("highest"):
        (pool, logits), kept = jax.device_get(run(variables, clean, legacy))
    return config, arrays, clean, np.split(pool, 2), np.split(logits, 2), kept


def near_the_largest(label, ours, theirs, tolerance=1e-4):
    scale = np.abs(theirs).max()
    golden.check_close(label, ours / scale, theirs / scale, atol=tolerance, rtol=0)


def test_resizing_is_clean_fids(recorded):
    _, arrays, clean, *_ = recorded
    step = -(-clean.shape[1] // arrays["clean"].shape[1])
    golden.check_close("clean", clean[:, ::step, ::step], arrays["clean"], atol=1e-3)


def test_every_block(recorded):
    config, *_, kept = recorded
    for name, (mean, deviation) in config["activations"].items():
        (output,) = kept[name]["__call__"]
        near_the_largest(name, np.array([output.mean(), output.std()]), np.array([mean, deviation]))
    assert set(MIXED) <= set(config["activations"])


def test_features_and_logits(recorded):
    _, arrays, _, (clean, legacy), logits, _ = recorded
    near_the_largest("pool", clean, arrays["pool"])
    near_the_largest("pool of the legacy resize", legacy, arrays["pool_legacy"])
    near_the_largest("logits", logits[0], arrays["logits_unbiased"])
    assert np.abs(clean - legacy).max() > 1e-2 * np.abs(clean).max()


def test_scores_of_features(folder):
    config, arrays = golden.config_of(folder), golden.arrays_of(folder)
    close = lambda label, ours, theirs: golden.check_close(label, ours, theirs, atol=0, rtol=1e-6)
    a, b = arrays["features_a"], arrays["features_b"]
    by_matrices = frechet_distance(feature_statistics(a), feature_statistics(b))
    close("frechet", [frechet_of(a, b), by_matrices], [config["frechet"]] * 2)
    some = a[:300]
    whole = kernel_estimate(some, b).whole.value
    close("kernel", [kernel_distance(some, b), whole], [config["kernel_mmd_first_300"]] * 2)
    scored = inception_score(np.log(arrays["probabilities"]), splits=1)
    close("inception score", scored.mean, config["inception_score"])
    shares = precision_recall(a, b, 3)
    recorded = config["precision_recall_k3"]
    ours = [shares.precision.value, shares.recall.value]
    close("precision, recall", ours, [recorded["precision"], recorded["recall"]])
