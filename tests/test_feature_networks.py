"""Frozen classifiers: their layer, their weights files and the stream of images through them."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from safetensors.numpy import save_file

from paella_jax.encoders.feature_network import FeatureNetwork
from paella_jax.evaluation.features import PACKAGE, load_features
from paella_jax.files.tensors import ConversionError
from paella_jax.models import efficientnet_lite, inception
from paella_jax.models.conv_norm import FrozenConvNorm


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_depthwise_layers_are_grouped_convolutions(stride, padding):
    layer = FrozenConvNorm(4, (5, 3), stride, padding, depthwise=True, activation=lambda x: x)
    x = np.random.default_rng(0).normal(size=(2, 14, 9, 4)).astype(np.float32)
    variables = small.random_variables(layer, x)
    params, stored = variables["params"], variables["batch_stats"]
    grouped = jax.lax.conv_general_dilated(
        x, params["kernel"], (stride, stride), padding, feature_group_count=4,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    vector = lambda values: values.reshape(1, 1, 1, -1)
    normed = (grouped - vector(stored["mean"])) / jnp.sqrt(vector(stored["var"]) + 1e-3)
    wanted = normed * vector(params["scale"]) + vector(params["bias"])
    np.testing.assert_allclose(layer.apply(variables, x), wanted, atol=1e-5)


@pytest.fixture(scope="module")
def lite_shapes():
    return efficientnet_lite.NAMES.shapes(efficientnet_lite.EfficientNetLite())


@pytest.fixture(scope="module")
def lite_tensors(lite_shapes):
    variables = small.random_values(lite_shapes)
    return efficientnet_lite.NAMES.save(variables, efficientnet_lite.EfficientNetLite())


def pictures(count):
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (40 + n, 52, 3), np.uint8) for n in range(count)]


def test_images_of_many_sizes_go_through_one_program():
    """On a network of the same blocks, but few: the whole one compiles for seconds."""
    stage = efficientnet_lite.Stage
    few = efficientnet_lite.EfficientNetLite((stage(1, 3, 1, 1, 4), stage(2, 3, 2, 6, 8)))
    images = [efficientnet_lite.prepare(image) for image in pictures(3)]
    variables = small.random_variables(few, np.zeros((1, 224, 224, 3), np.float32))
    run = jax.jit(lambda images: few.apply(variables, images))
    network = FeatureNetwork("few", "", 1280, efficientnet_lite.prepare, run)
    found = network.extract(iter(pictures(3)), batch_size=2)
    assert found.vectors.shape == (3, network.width) and found.logits.shape == (3, 1000)
    assert found.vectors.dtype == np.float32 and np.isfinite(found.logits).all()
    alone = run(np.stack([images[2], images[0]]))[0]
    np.testing.assert_allclose(alone[0], found.vectors[2], rtol=1e-4, atol=1e-6)
    assert np.abs(found.vectors[0] - found.vectors[1]).max() > 1e-3
    with pytest.raises(ValueError, match="no images"):
        network.extract([])


def test_the_whole_networks_sizes(lite_shapes):
    """4.65 million parameters, as the publication has them; pooled at a stride of 32."""
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(lite_shapes["params"])) == 4_652_008
    strides = [stage.stride for stage in efficientnet_lite.STAGES]
    assert 2 * np.prod(strides) == 32


def test_every_misfit_of_a_weights_file_is_listed(lite_tensors, tmp_path):
    broken = dict(lite_tensors)
    del broken["_fc.weight"], broken["_blocks.3._bn1.running_var"]
    broken["AuxLogits.fc.weight"] = np.zeros((2, 2), np.float32)
    broken["_conv_stem.weight"] = np.zeros((32, 3, 5, 5), np.float32)
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(ConversionError) as caught:
        load_features("efficientnet", tmp_path / "broken.safetensors")
    for name in ("_fc.weight", "_blocks.3._bn1.running_var", "AuxLogits.fc.weight",
                 "_conv_stem.weight", "broken.safetensors"):  # fmt: skip
        assert name in str(caught.value)


def test_another_networks_file_is_refused(lite_tensors, tmp_path):
    save_file(lite_tensors, tmp_path / "lite.safetensors")
    with pytest.raises(ConversionError, match=r"missing tensor Mixed_7c.branch_pool.conv.weight"):
        load_features("inception", tmp_path / "lite.safetensors")
    with pytest.raises(ConversionError, match="does not exist"):
        load_features("inception", tmp_path / "absent.pth")


def test_inceptions_tensors_go_both_ways():
    shapes = inception.NAMES.shapes(inception.Inception())
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(shapes["params"])) == 23_850_960
    small_values = jax.tree.map(lambda x: np.broadcast_to(np.float32(1), x.shape), shapes)
    tensors = inception.NAMES.save(small_values, inception.Inception(), copy=False)
    again = inception.NAMES.load(tensors, inception.Inception())
    assert jax.tree.map(np.shape, again) == jax.tree.map(np.shape, shapes)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="extra `eval` is absent")
def test_the_packages_features_know_a_blurred_image():
    network = load_features("efficientnet")
    draw = np.random.default_rng(0)
    first, second = (draw.integers(0, 256, (6, 6, 3), np.uint8).repeat(16, 0).repeat(16, 1)
                     for _ in range(2))  # fmt: skip
    dimmed = (first * 0.95).astype(np.uint8)
    x, y, z = network.extract([first, dimmed, second], batch_size=4).vectors
    assert np.linalg.norm(x - y) < 0.5 * np.linalg.norm(x - z)
