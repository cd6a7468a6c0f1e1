"""The VQGAN, its discriminator, the adversarial losses and the perceptual distance."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from paella_jax.models.discriminator import Discriminator
from paella_jax.models.perceptual import load_perceptual, perceptual_distance
from paella_jax.models.vqgan import VQGAN, VQGANBlock
from paella_jax.objectives.vqgan import discriminator_loss, generator_loss


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def jitted(model, method, **options):
    return jax.jit(lambda variables, x: model.apply(variables, x, method=method, **options))


def random_variables(model, image, scale=0.3):
    """Random values in every variable: compiling a real init costs far more time."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda s: jnp.asarray(np.abs(draw.normal(size=s.shape)) * scale - 0.1, s.dtype), shapes
    )


@pytest.fixture(scope="module")
def small():
    model = VQGAN(bottleneck_blocks=1, width=16, codebook_size=32)
    variables = random_variables(model, jnp.zeros((1, 8, 8, 3)))
    codebook = jax.random.normal(jax.random.key(1), (32, 4))
    params = {**variables["params"], "codebook": codebook}
    stats = {"latent_norm": {"mean": jnp.zeros(4), "var": jnp.ones(4)}}
    return model, {"params": params, "batch_stats": stats}


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(2), (3, 8, 12, 3))


# --- VQGAN


def test_released_model_has_the_published_parameter_counts():
    shapes = jax.eval_shape(VQGAN().init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    params = shapes["params"]
    part = lambda *prefixes: count([v for k, v in params.items() if k.startswith(prefixes)])
    assert part("encoder", "latent_norm") == 2_667_284
    assert part("decoder") == 15_706_842
    assert part("codebook") == 32_768
    assert count(params) == 18_406_894


def test_initial_blocks_are_the_identity_and_the_codebook_is_small():
    model = VQGAN(levels=1, bottleneck_blocks=1, width=8, codebook_size=32)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2, 2, 3)))["params"]
    x = jax.random.normal(jax.random.key(1), (1, 3, 3, 8))
    for name in ("encoder_blocks_0", "decoder_blocks_0"):
        np.testing.assert_array_equal(VQGANBlock().apply({"params": params[name]}, x), x)
    assert 0.5 / 32 < jnp.abs(params["codebook"]).max() <= 1 / 32


@pytest.mark.parametrize("levels", [1, 3])
def test_other_depths(levels):
    model = VQGAN(levels=levels, bottleneck_blocks=1, width=16, codebook_size=32)
    size = 2 * model.downsampling
    image = jnp.zeros((1, size, size, 3))
    shapes = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), image)[0])
    assert shapes.images.shape == image.shape
    assert shapes.tokens.shape == (1, 2, 2)


def test_gradient_passes_straight_through_the_quantiser(small):
    model, variables = small
    latents = jax.random.normal(jax.random.key(3), (2, 3, 3, 4))
    weight = jax.random.normal(jax.random.key(4), latents.shape)

    def loss_of(latents, codebook):
        changed = {**variables, "params": {**variables["params"], "codebook": codebook}}
        result = model.apply(changed, latents, method="quantize")
        return (result.codes * weight).sum(), result

    gradients, result = jax.jit(jax.grad(loss_of, argnums=(0, 1), has_aux=True))(
        latents, variables["params"]["codebook"]
    )
    np.testing.assert_array_equal(gradients[0], weight)
    assert not gradients[1].any()
    codes = jitted(model, "lookup")(variables, result.tokens)
    np.testing.assert_array_equal(result.codes, codes)
    distances = jnp.square(latents - codes).sum(-1).mean() / 4
    np.testing.assert_allclose(result.codebook_loss, distances, rtol=1e-5)
    np.testing.assert_allclose(result.commitment_loss, distances, rtol=1e-5)


def test_the_two_losses_move_codes_and_latents_respectively(small):
    model, variables = small
    latents = jax.random.normal(jax.random.key(3), (2, 3, 3, 4))

    def losses(latents, codebook):
        changed = {**variables, "params": {**variables["params"], "codebook": codebook}}
        result = model.apply(changed, latents, method="quantize")
        return jnp.stack([result.codebook_loss, result.commitment_loss])

    by_latents, by_codes = jax.jit(jax.jacrev(losses, argnums=(0, 1)))(
        latents, variables["params"]["codebook"]
    )
    assert not by_latents[0].any() and by_latents[1].any()
    assert by_codes[0].any() and not by_codes[1].any()


def test_unquantised_samples_are_decoded_from_their_latents(small, images):
    model, variables = small
    quantized = jnp.array([True, False, True])

    @jax.jit
    def run(variables, images):
        mixed = model.apply(variables, images, quantized)
        raw = model.apply(variables, mixed.latents, method="decode")
        coded = model.apply(variables, mixed.tokens, method="lookup")
        return mixed, raw, model.apply(variables, coded, method="decode")

    mixed, raw, coded = run(variables, images)
    np.testing.assert_array_equal(mixed.images[1], raw[1])
    np.testing.assert_array_equal(mixed.images[::2], coded[::2])
    assert (raw[::2] != coded[::2]).any()
    np.testing.assert_array_equal(mixed.latents, jitted(model, "encode")(variables, images))


def test_tokens_survive_the_way_there_and_scaling_is_undone(small, images):
    model, variables = small
    tokens = jitted(model, "encode_tokens")(variables, images)
    assert tokens.dtype == jnp.int32 and tokens.shape == (3, 2, 3)
    rebuilt = jitted(model, "decode_tokens")(variables, tokens)
    assert rebuilt.shape == images.shape
    latents = jnp.ones((1, 1, 1, 4))
    np.testing.assert_allclose(model.scale(latents), 1 / 0.3764, rtol=1e-6)
    np.testing.assert_allclose(model.unscale(model.scale(latents)), latents, rtol=1e-6)


def test_bfloat16_keeps_latents_and_images_in_float32(small, images):
    model, variables = small
    model = model.clone(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(lambda: model.apply(variables, images))
    assert shapes.images.dtype == shapes.latents.dtype == jnp.float32


def test_indivisible_image_size_names_the_divisor(small):
    model, variables = small
    with pytest.raises(ValueError, match=r"10x12 must be a multiple of 4.*crop or pad"):
        model.apply(variables, jnp.zeros((1, 10, 12, 3)), method="encode")


def test_evaluation_leaves_batch_statistics_alone(small, images):
    model, variables = small
    run = lambda train: jax.jit(
        lambda: model.apply(
            variables, images, method="encode", train=train, mutable=["batch_stats"]
        )
    )()[1]["batch_stats"]["latent_norm"]
    before = variables["batch_stats"]["latent_norm"]
    np.testing.assert_array_equal(run(False)["mean"], before["mean"])
    assert (run(True)["mean"] != before["mean"]).all()


# --- discriminator


def test_discriminator_has_the_reference_parameter_count():
    image = jnp.zeros((1, 128, 128, 3))
    shapes = jax.eval_shape(Discriminator().init, jax.random.key(0), image)
    assert count(shapes["params"]) == 6_271_105


@pytest.fixture(scope="module")
def discriminator():
    model = Discriminator(depth=3, width=64)
    return model, random_variables(model, jnp.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize(("size", "grid"), [((32, 32), (4, 4)), ((33, 40), (5, 5))])
def test_discriminator_gives_one_logit_per_patch(discriminator, size, grid):
    model, variables = discriminator
    shapes = jax.eval_shape(lambda: model.apply(variables, jnp.zeros((2, *size, 3))))
    assert shapes.shape == (2, *grid) and shapes.dtype == jnp.float32


def test_discriminator_refuses_images_it_would_shrink_to_a_pixel():
    model, image = Discriminator(depth=5, width=32), jnp.zeros((1, 32, 32, 3))
    variables = random_variables(model, image)
    with pytest.raises(ValueError, match=r"32x32 leaves a single pixel after 5 halvings"):
        jax.eval_shape(lambda: model.apply(variables, image))
    with pytest.raises(ValueError, match="width 4 must be at least 8"):
        Discriminator(depth=3, width=4).init(jax.random.key(0), image)


def test_spectral_norm_bounds_the_first_convolution(discriminator):
    """The power iteration converges to the true largest singular value of the kernel matrix."""
    model, variables = discriminator
    kernel = 7.0 * variables["params"]["conv_0"]["kernel"]
    params = {**variables["params"], "conv_0": {**variables["params"]["conv_0"], "kernel": kernel}}
    step = jax.jit(
        lambda stats: model.apply(
            {"params": params, "batch_stats": stats},
            jnp.zeros((1, 32, 32, 3)),
            train=True,
            mutable=["batch_stats"],
        )[1]["batch_stats"]
    )
    stats = variables["batch_stats"]
    for _ in range(60):
        stats = step(stats)
    (sigma,) = [v for k, v in stats["spectral_0"].items() if k.endswith("sigma")]
    largest = np.linalg.svd(np.asarray(kernel).reshape(-1, kernel.shape[-1]) / sigma)[1][0]
    np.testing.assert_allclose(largest, 1.0, rtol=1e-2)
    frozen = jax.jit(
        lambda x: model.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
    )
    unchanged = frozen(jnp.zeros((1, 32, 32, 3)))[1]["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, unchanged, stats)


# --- adversarial losses


def test_hinge_loss_values():
    real, fake = jnp.array([2.0, 0.5]), jnp.array([-3.0, 1.0])
    # real: max(0, 1-2)=0, 1-0.5=0.5 -> 0.25; fake: max(0, 1-3)=0, 1+1=2 -> 1; half the sum.
    np.testing.assert_allclose(discriminator_loss(real, fake, "hinge"), 0.625)
    np.testing.assert_allclose(generator_loss(fake, "hinge"), 1.0)


def test_nonsaturating_loss_values():
    log = np.log
    real, fake = jnp.array([0.0]), jnp.array([log(3.0)])  # sigmoid 1/2 and 3/4
    np.testing.assert_allclose(generator_loss(fake, "nonsaturating"), -log(0.75), rtol=1e-6)
    expected = 0.5 * (-log(0.5) - log(0.25))
    np.testing.assert_allclose(discriminator_loss(real, fake, "nonsaturating"), expected, rtol=1e-6)


def test_unknown_adversarial_loss_is_refused():
    for call in (lambda k: generator_loss(jnp.ones(1), k),
                 lambda k: discriminator_loss(jnp.ones(1), jnp.ones(1), k)):  # fmt: skip
        with pytest.raises(ValueError, match="adversarial_loss must be one of"):
            call("wasserstein")


# --- perceptual distance


def feature_tensors():
    """Two stages: convolutions 0 and 2, a pool at 4, convolution 5."""
    draw = np.random.default_rng(0)
    shapes = {0: (4, 3), 2: (6, 4), 5: (8, 6)}
    tensors = {}
    for number, (out, into) in shapes.items():
        kernel = draw.normal(size=(out, into, 3, 3)).astype(np.float32)
        tensors[f"features.{number}.weight"] = kernel
        tensors[f"features.{number}.bias"] = draw.normal(size=out).astype(np.float32)
    return tensors


@pytest.fixture
def feature_file(tmp_path):
    def write(tensors):
        save_file(tensors, tmp_path / "features.safetensors")
        return tmp_path / "features.safetensors"

    return write


def test_feature_file_round_trip(feature_file):
    tensors = feature_tensors()
    network = load_perceptual(feature_file(tensors))
    assert [len(stage) for stage in network["stages"]] == [2, 1]
    layers = [layer for stage in network["stages"] for layer in stage]
    for number, layer in zip((0, 2, 5), layers, strict=True):
        kernel = layer["kernel"].transpose(3, 2, 0, 1)
        np.testing.assert_array_equal(kernel, tensors[f"features.{number}.weight"])
        np.testing.assert_array_equal(layer["bias"], tensors[f"features.{number}.bias"])
    np.testing.assert_allclose([head[0] for head in network["heads"]], [1 / 6, 1 / 8])


@pytest.mark.parametrize("name", ["lin{}.model.1.weight", "lin{}.weight"])
def test_heads_weight_the_channels(feature_file, name, images):
    tensors = feature_tensors()
    plain = load_perceptual(feature_file(tensors))
    for index, width in enumerate((6, 8)):
        tensors[name.format(index)] = np.full((1, width, 1, 1), 3.0 / width, np.float32)
    weighted = load_perceptual(feature_file(tensors))
    distance = jax.jit(perceptual_distance)
    once, thrice = (distance(network, images, 1 - images) for network in (plain, weighted))
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-5)


def test_distance_is_zero_for_equal_images_and_grows(feature_file, images):
    network = load_perceptual(feature_file(feature_tensors()))
    distance = jax.jit(perceptual_distance)
    same = distance(network, images, images)
    assert same.shape == (3,) and same.dtype == jnp.float32
    np.testing.assert_allclose(same, 0.0, atol=1e-12)  # one batch, so rounding may differ
    noise = jax.random.normal(jax.random.key(5), images.shape)
    steps = [distance(network, images, images + size * noise) for size in (0.02, 0.1, 0.4)]
    assert (steps[0] > 0).all() and (steps[1] > steps[0]).all() and (steps[2] > steps[1]).all()


def test_distance_matches_a_plain_computation(feature_file, images):
    """Stage features by nested loops over the taps, from the file's own arrays."""
    tensors = feature_tensors()

    def layer(x, number):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        taps = [
            padded[:, i : i + x.shape[1], j : j + x.shape[2]]
            @ tensors[f"features.{number}.weight"][:, :, i, j].T.astype(np.float64)
            for i in range(3)
            for j in range(3)
        ]
        return np.maximum(sum(taps) + tensors[f"features.{number}.bias"], 0)

    def features(x):
        x = (np.asarray(x, np.float64) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        first = layer(layer(x, 0), 2)
        batch, height, width, channels = first.shape
        blocks = first.reshape(batch, height // 2, 2, width // 2, 2, channels)
        return first, layer(blocks.max((2, 4)), 5)

    unit = lambda f: f / np.sqrt((f**2).sum(-1, keepdims=True) + 1e-10)
    pairs = zip(features(images), features(1 - images), strict=True)
    expected = sum(((unit(f) - unit(g)) ** 2).mean((1, 2, 3)) for f, g in pairs)
    network = load_perceptual(feature_file(tensors))
    ours = jax.jit(perceptual_distance)(network, images, 1 - images)
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_the_feature_network_is_frozen(feature_file, images):
    network = load_perceptual(feature_file(feature_tensors()))
    loss = lambda network, a: perceptual_distance(network, a, 1 - images).sum()
    by_network, by_image = jax.jit(jax.grad(loss, argnums=(0, 1)))(network, images)
    assert not any(leaf.any() for leaf in jax.tree.leaves(by_network))
    assert jnp.isfinite(by_image).all() and by_image.any()


def test_images_too_small_for_the_stages_are_refused(feature_file):
    network = load_perceptual(feature_file(feature_tensors()))
    with pytest.raises(ValueError, match="1x8 is below the 2 pixels"):
        perceptual_distance(network, jnp.zeros((1, 1, 8, 3)), jnp.zeros((1, 1, 8, 3)))


def test_missing_truncated_and_foreign_feature_files(feature_file, tmp_path):
    with pytest.raises(ValueError, match="no perceptual feature file"):
        load_perceptual(tmp_path / "absent.safetensors")
    file = feature_file(feature_tensors())
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_perceptual(file)
    with pytest.raises(ValueError, match=r"no tensors features\.N\.weight"):
        load_perceptual(feature_file({"other": np.zeros(3, np.float32)}))


BROKEN = {
    "missing bias": ({"features.2.bias": None}, r"features\.2\.bias is missing"),
    "batch norm": (
        {"features.1.weight": np.ones(4, np.float32)},
        r"features\.1\.weight has shape \(4,\)",
    ),
    "wrong channels": (
        {"features.5.weight": np.ones((8, 5, 3, 3), np.float32)},
        r"features\.5\.weight has shape \(8, 5, 3, 3\)",
    ),
    "missing first layer": (
        {"features.0.weight": None, "features.0.bias": None},
        r"features\.2 does not follow",
    ),
    "one head of two": (
        {"lin0.weight": np.ones((1, 6, 1, 1), np.float32)},
        "heads lin0, lin1",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_feature_networks_are_named(feature_file, case):
    changes, message = BROKEN[case]
    tensors = {k: v for k, v in (feature_tensors() | changes).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        load_perceptual(feature_file(tensors))
