"""The semantic compressor against the reference's stored outputs under --golden."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.convert.compressor import infer_compressor
from paella_jax.encoders.compressor_names import NAMES as COMPRESSOR_NAMES
from paella_jax.encoders.compressor_names import compressor_entries
from paella_jax.encoders.preprocess import compressor_preprocess, normalise, resize_short_side
from paella_jax.files.tensors import ConversionError
from paella_jax.models.compressor import (
    Compressor,
    CompressorBlock,
    ConvNorm,
    Stage,
    _conv,
    _conv_of_colours,
    _depthwise,
    expanded_width,
    from_stage_c,
    stages_of,
    to_stage_c,
    uniform_fan_in,
)

pytestmark = pytest.mark.usefixtures("highest_precision")
KEY = jax.random.key(0)


def pytest_generate_tests(metafunc):
    golden.parametrize(metafunc, "folder", golden.is_model("wuerstchen_compressor"))
    has_size = lambda config, _: "preprocess_size" in config
    golden.parametrize(metafunc, "preprocess_folder", has_size)


@pytest.fixture(scope="module")
def case(folder):
    model = golden.compressor_of(golden.config_of(folder))
    variables = golden.as_jax(COMPRESSOR_NAMES.load(golden.weights_of(folder), model))
    return folder.name, model, variables, golden.arrays_of(folder)


def image_of(arrays):
    return jnp.asarray(golden.channels_last(arrays["in.image_normalised"]))


def without_counters(tensors):
    return {n: a for n, a in tensors.items() if not n.endswith("num_batches_tracked")}


# --- network


def test_latents_and_every_stage(case):
    label, model, variables, arrays = case
    run = jax.jit(
        lambda v, x: model.apply(v, x, capture_intermediates=True, mutable=["intermediates"])
    )
    latents, captured = run(variables, image_of(arrays))
    seen = captured["intermediates"]
    names = ["stem"]
    names += [f"stage_{i}_block_{stage.repeats - 1}" for i, stage in enumerate(model.stages, 1)]
    names += ["head"]
    stored = {name for name in arrays if name.startswith("mid.stage")}
    assert stored and stored <= {f"mid.stage{i}" for i in range(len(names))}
    for name in sorted(stored):
        ours = seen[names[int(name.removeprefix("mid.stage"))]]["__call__"][0]
        golden.check_close(f"{label} {name}", ours, golden.channels_last(arrays[name]))
    theirs = golden.channels_last(arrays["mid.mapper"])
    golden.check_close(f"{label} mid.mapper", latents, theirs)
    for name in ("out.scaled", "out.scaled_f64"):
        theirs = golden.channels_last(arrays[name])
        # The scale is 1/42 of the latents': so is the tolerance.
        golden.check_close(f"{label} {name}", to_stage_c(latents), theirs, atol=2e-6)
    back = from_stage_c(to_stage_c(latents))
    golden.check_close(f"{label} back to the raw scale", back, latents, atol=5e-6)


def test_odd_sides_round_up(case):
    """As torch: every stride-2 layer gives ceil(side / 2), and the pixels seen are the same."""
    _, model, variables, arrays = case
    image, side = image_of(arrays), model.downsampling
    wide = jnp.pad(image, ((0, 0), (0, 0), (0, 1), (0, 0)))[:, :side]
    latents = jax.jit(model.apply)(variables, wide)
    assert latents.shape[1:3] == (1, image.shape[2] // side + 1)


def test_bfloat16_is_close(case):
    label, model, variables, arrays = case
    half = model.clone(dtype=jnp.bfloat16)
    latents = jax.jit(half.apply)(variables, image_of(arrays))
    assert latents.dtype == jnp.float32
    theirs = golden.channels_last(arrays["mid.mapper"])
    error = np.linalg.norm(latents - theirs) / np.linalg.norm(theirs)
    print(f"{label}: bfloat16 relative error {error:.2e}")
    assert error < 5e-2


def test_forms_of_the_strided_convolutions_agree():
    """What CPU runs against the backend's convolution, which accelerators run; an odd side too."""
    for channels, groups, ours in ((3, 1, _conv_of_colours), (8, 8, partial(_depthwise, stride=2))):
        x = jax.random.normal(KEY, (2, 7, 6, channels))
        kernel = jax.random.normal(jax.random.key(1), (3, 3, channels // groups, 8))
        golden.check_close(f"{channels}", ours(x, kernel), _conv(x, kernel, 2, groups), atol=2e-5)


# --- training


def test_batch_statistics_in_training(case):
    """Against the stem and its norm written out with numpy, momentum 0.1, unbiased variance."""
    label, model, variables, arrays = case
    frozen = model.clone(stochastic_depth=0.0)
    run = jax.jit(lambda v, x: frozen.apply(v, x, train=True, mutable=["batch_stats"]))
    latents, updated = run(variables, image_of(arrays))
    # The mapper's norm comes last: its output has the batch statistics its parameters say.
    mapper = variables["params"]["mapper"]["norm"]
    golden.check_close(f"{label} mean", latents.mean((0, 1, 2)), mapper["bias"], atol=2e-5)

    padded = np.pad(image_of(arrays), ((0, 0), (1, 1), (1, 1), (0, 0))).astype(np.float64)
    kernel = np.asarray(variables["params"]["stem"]["kernel"], np.float64)
    height, width = (side // 2 for side in image_of(arrays).shape[1:3])
    stem = sum(
        padded[:, i : i + 2 * height : 2, j : j + 2 * width : 2] @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    )
    old, new = (v["batch_stats"]["stem"]["norm"] for v in (variables, updated))
    wanted = 0.9 * np.asarray(old["mean"]) + 0.1 * stem.mean((0, 1, 2))
    golden.check_close(f"{label} running mean", new["mean"], wanted)
    wanted = 0.9 * np.asarray(old["var"]) + 0.1 * stem.var((0, 1, 2), ddof=1)
    golden.check_close(f"{label} running var", new["var"], wanted)


@pytest.mark.devices(8)
def test_statistics_of_a_split_batch_are_the_whole_batchs(case):
    label, model, variables, arrays = case
    frozen = model.clone(stochastic_depth=0.0)
    run = jax.jit(lambda v, x: frozen.apply(v, x, train=True, mutable=["batch_stats"]))
    image = jnp.concatenate([image_of(arrays), 2.0 * image_of(arrays)])[:4]
    mesh = jax.sharding.Mesh(jax.devices()[:2], "data")
    shard = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole, split = run(variables, image), run(variables, jax.device_put(image, shard))
    golden.check_close(f"{label} latents", split[0], whole[0])
    for ours, theirs in zip(*(jax.tree.leaves(x[1]) for x in (split, whole)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter(case):
    _, model, variables, arrays = case

    def loss(params):
        latents, _ = model.apply(
            variables | {"params": params},
            image_of(arrays),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": KEY},
        )
        return jnp.mean(latents * jnp.cos(jnp.arange(latents.size)).reshape(latents.shape))

    grads = jax.jit(jax.grad(loss))(variables["params"])
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, jax.tree_util.keystr(path)


def test_stochastic_depth_drops_whole_samples():
    """A dropped sample passes unchanged; a kept one has its branch divided by 1 - rate."""
    block = CompressorBlock("fused", 1, 3, 1, 8, drop_rate=0.25)
    x = jax.random.normal(KEY, (400, 2, 2, 8))
    variables = block.init(KEY, x)
    run = jax.jit(
        lambda key: block.apply(
            variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )[0]
    )
    always = block.clone(drop_rate=0.0)
    branch = always.apply(variables, x, train=True, mutable=["batch_stats"])[0] - x
    difference = run(KEY) - x
    dropped = np.abs(difference).max((1, 2, 3)) == 0
    assert 0.15 < dropped.mean() < 0.35
    np.testing.assert_allclose(difference[~dropped], branch[~dropped] / 0.75, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(run(KEY), run(KEY))
    assert (run(jax.random.key(1)) != run(KEY)).any()


def test_depth_of_the_drop_rates():
    """Block i of n has i / n of the full rate, i from 0 (torchvision)."""
    model = Compressor(variant=(Stage("fused", 1, 3, 1, 8, 8, 4),), stochastic_depth=0.2)
    rates = []

    def look(call, args, kwargs, context):
        if isinstance(context.module, CompressorBlock):
            rates.append(context.module.drop_rate)
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        COMPRESSOR_NAMES.shapes(model)
    np.testing.assert_allclose(rates, [0.0, 0.05, 0.1, 0.15])


# --- sizes


def test_initial_kernels():
    """torchvision: normal of variance 2 / (k k outputs), also depthwise; the mapper is torch's."""
    x = jnp.zeros((1, 4, 4, 256))
    kernel = lambda **fields: ConvNorm(256, **fields).init(KEY, x)["params"]["kernel"]
    for fields in ({"kernel_size": 3}, {"kernel_size": 3, "depthwise": True}):
        wanted = np.sqrt(2 / (9 * 256))
        assert abs(float(kernel(**fields).std()) / wanted - 1) < 0.05
    mapper = np.abs(kernel(kernel_init=uniform_fan_in))
    assert 0.95 / 16 < mapper.max() <= 1 / 16 and abs(mapper.mean() * 32 - 1) < 0.05


def test_widths_are_rounded_as_torchvision_rounds():
    # Its _make_divisible(value, 8), by hand.
    wanted = {(24, 4): 96, (9, 6): 56, (10, 1): 16, (3, 1): 8, (18, 1): 24, (20, 1): 24}
    assert {k: expanded_width(*k) for k in wanted} == wanted


@pytest.mark.parametrize(
    "variant, message",
    [
        ("m", "variant 'm' is not one of"),
        ((("conv", 1, 3, 1, 8, 8, 1),), "stage 0 is .*kind must be 'fused' or 'mb'"),
        ((("mb", 1, 4, 1, 8, 8, 1),), "its kernel odd"),
        ((("mb", 1, 3, 1, 8, 8, 1), ("mb", 1, 3, 1, 16, 8, 1)), "stage 1 takes 16 channels"),
    ],
)
def test_impossible_tables(variant, message):
    with pytest.raises(ValueError, match=message):
        stages_of(variant)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"got \(32, 32, 3\)"):
        Compressor().init(KEY, jnp.zeros((32, 32, 3)))


# --- weights


def test_round_trip_is_bitwise(case, folder):
    _, model, _, _ = case
    tensors = golden.weights_of(folder)
    back = COMPRESSOR_NAMES.save(COMPRESSOR_NAMES.load(tensors, model), model)
    golden.same_tensors(back, without_counters(tensors))


def test_misfits_are_listed_together(case, folder):
    _, model, _, _ = case
    tensors = golden.weights_of(folder)
    del tensors["mapper.1.bias"]
    tensors["surprise"] = np.zeros(3, np.float32)
    tensors["backbone.0.1.bias"] = tensors["backbone.0.1.bias"][:3]
    with pytest.raises(ConversionError, match=r"mapper\.1\.bias") as error:
        COMPRESSOR_NAMES.load(tensors, model)
    assert "backbone.0.1.bias" in str(error.value) and "surprise" in str(error.value)


@pytest.mark.parametrize("variant, stem, last", [("s", 24, 256), ("l", 32, 640)])
def test_variant_is_read_from_the_shapes(variant, stem, last):
    wanted = Compressor(variant=variant, out_channels=12, head_channels=1000)
    number = {"s": 7, "l": 8}[variant]
    tensors = {
        "backbone.0.0.weight": np.zeros((stem, 3, 3, 3)),
        f"backbone.{number}.0.weight": np.zeros((1000, last, 1, 1)),
        "mapper.0.weight": np.zeros((12, 1000, 1, 1)),
    }
    assert Compressor(**infer_compressor(tensors)) == wanted
    for name in tensors:
        with pytest.raises(ConversionError, match="not a compressor that can be recognised"):
            infer_compressor({k: v for k, v in tensors.items() if k != name})


def test_released_names():
    """torchvision's S features have 780 tensors, the mapper 6, each norm's counter among them."""
    entries = compressor_entries(Compressor())
    names = [entry.name for entry in entries]
    norms = sum(name.endswith("running_mean") for name in names)
    assert len(set(names)) == len(names) and len(names) + norms == 780 + 6
    assert {"backbone.4.0.block.2.fc1.weight", "backbone.7.1.running_var"} <= set(names)
    shapes = jax.tree.leaves(COMPRESSOR_NAMES.shapes(Compressor()))
    assert len(shapes) == len(entries)


# --- preprocessing


def test_preprocess(preprocess_folder):
    config, arrays = golden.config_of(preprocess_folder), golden.arrays_of(preprocess_folder)
    images = jnp.asarray(golden.channels_last(arrays["preprocess.in"]))
    size = config["preprocess_size"]
    label = preprocess_folder.name
    resized = resize_short_side(images, size, "bilinear")
    theirs = golden.channels_last(arrays["preprocess.resized"])
    golden.check_close(f"{label} preprocess.resized", resized, theirs, 2e-5, 0.0)
    theirs = golden.channels_last(arrays["preprocess.out"])
    ours = jax.jit(compressor_preprocess, static_argnums=1)(images, size)
    golden.check_close(f"{label} preprocess.out", ours, theirs, 2e-5, 0.0)


def test_preprocess_without_a_square():
    """A bucket's ratio stays; only what exceeds a multiple of 32 goes, from both ends."""
    images = jax.random.uniform(KEY, (1, 64, 107, 3))
    ours = jax.jit(lambda x: compressor_preprocess(x, 96, square=False))(images)
    resized = resize_short_side(images, 96, "bilinear")
    assert resized.shape == (1, 96, 160, 3) and ours.shape == resized.shape
    np.testing.assert_allclose(ours, normalise(resized), atol=1e-6)
    taller = jax.random.uniform(KEY, (1, 120, 64, 3))
    ours = compressor_preprocess(taller, 64, square=False)
    np.testing.assert_allclose(ours, normalise(taller[:, 12:108]), atol=1e-5)


@pytest.mark.parametrize("size", [0, -32])
def test_impossible_preprocess_sizes(size):
    with pytest.raises(ValueError, match=f"image size {size} must be"):
        compressor_preprocess(jnp.zeros((1, 64, 64, 3)), size)
