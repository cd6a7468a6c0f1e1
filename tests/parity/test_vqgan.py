"""The f4 VQGAN against the reference implementation's recorded outputs."""

from __future__ import annotations

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.convert.vqgan import VQGAN
from paella_jax.files.tensors import ConversionError

pytestmark = pytest.mark.usefixtures("highest_precision")


def pytest_generate_tests(metafunc):
    golden.parametrize(metafunc, "folder", golden.is_model("vqgan"))


@pytest.fixture(scope="module")
def case(folder):
    model = golden.vqgan_of(golden.config_of(folder)["constructor"])
    variables = golden.as_jax(VQGAN.names.load(golden.weights_of(folder), model))
    return folder.name, model, variables, golden.arrays_of(folder)


def nhwc(arrays, name):
    return golden.channels_last(arrays[name])


def test_encoder(case):
    label, model, variables, arrays = case
    run = jax.jit(
        lambda v, x: model.apply(
            v, x, method="encode", capture_intermediates=True, mutable=["intermediates"]
        )
    )
    latents, captured = run(variables, jnp.asarray(nhwc(arrays, "in.image")))
    seen = captured["intermediates"]
    ours = {"in_block": seen["encoder_in"]}
    for level in range(model.levels):
        ours[f"down{2 * level}"] = seen[f"encoder_blocks_{level}"]
        if level < model.levels - 1:
            ours[f"down{2 * level + 1}"] = seen[f"encoder_downs_{level}"]
    for name, value in ours.items():
        golden.check_close(f"{label} enc.{name}", value["__call__"][0], nhwc(arrays, f"enc.{name}"))
    last = f"enc.down{2 * model.levels - 1}"
    for name in ("enc.latents_raw", last, "diffusers.encode_latents"):
        golden.check_close(f"{label} {name}", latents, nhwc(arrays, name))
    scaled = model.scale(latents)
    golden.check_close(f"{label} enc.latents_scaled", scaled, nhwc(arrays, "enc.latents_scaled"))


def same_tokens(case, tokens):
    """Where the recorded code leads by more than the latents may differ; returns where."""
    label, _, variables, arrays = case
    codebook = variables["params"]["codebook"]
    lead = golden.lead_of_the_nearest(nhwc(arrays, "enc.latents_raw"), codebook)
    return golden.same_where_clear(
        f"{label} enc.indices", tokens, arrays["enc.indices"], lead, 5e-4
    )


def test_quantiser(case):
    label, model, variables, arrays = case
    run = jax.jit(lambda v, x: model.apply(v, x, method="quantize"))
    result = run(variables, jnp.asarray(nhwc(arrays, "enc.latents_raw")))
    clear = same_tokens(case, result.tokens)
    scaled, theirs = model.scale(result.codes), nhwc(arrays, "enc.quantized_scaled")
    golden.check_close(f"{label} enc.quantized", np.asarray(scaled)[clear], theirs[clear])
    ours = {
        "enc.vq_loss": result.codebook_loss,
        "enc.commit_loss": result.commitment_loss,
        "enc.vq_loss_plus_quarter_commit": result.codebook_loss + 0.25 * result.commitment_loss,
    }
    for name, value in ours.items():
        golden.check_close(f"{label} {name}", value[None], arrays[name])


def test_tokens_of_the_image_are_exact(case):
    _, model, variables, arrays = case
    run = jax.jit(lambda v, x: model.apply(v, x, method="encode_tokens"))
    same_tokens(case, run(variables, jnp.asarray(nhwc(arrays, "in.image"))))


def test_decoder(case):
    label, model, variables, arrays = case
    run = jax.jit(
        lambda v, x: model.apply(
            v, x, method="decode", capture_intermediates=True, mutable=["intermediates"]
        )
    )
    lookup = lambda tokens: model.apply(variables, jnp.asarray(tokens, jnp.int32), method="lookup")
    images, captured = run(variables, lookup(arrays["enc.indices"]))
    golden.check_close(f"{label} dec.from_indices", images, nhwc(arrays, "dec.from_indices"))
    seen = captured["intermediates"]
    names = ["decoder_in", *(f"decoder_blocks_{i}" for i in range(model.bottleneck_blocks))]
    for level in range(model.levels - 1):
        names += [f"decoder_ups_{level}", f"decoder_level_blocks_{level}"]
    stored = {int(k.removeprefix("dec.up")) for k in arrays if k.startswith("dec.up")}
    assert stored <= set(range(len(names)))
    for index, name in enumerate(names):
        if f"dec.up{index}" in arrays:
            ours = seen[name]["__call__"][0]
            golden.check_close(f"{label} dec.up{index}", ours, nhwc(arrays, f"dec.up{index}"))
    random_images, _ = run(variables, lookup(arrays["in.random_indices"]))
    golden.check_close(f"{label} random", random_images, nhwc(arrays, "dec.from_random_indices"))
    for source, target in (
        ("enc.latents_scaled", "dec.from_latents_scaled"),
        ("enc.latents_scaled", "dec.from_latents_scaled_f64"),
        ("enc.quantized_scaled", "dec.from_quantized_scaled"),
    ):
        images, _ = run(variables, model.unscale(jnp.asarray(nhwc(arrays, source))))
        golden.check_close(f"{label} {target}", images, nhwc(arrays, target))
    images, _ = run(variables, jnp.asarray(nhwc(arrays, "diffusers.encode_latents")))
    target = nhwc(arrays, "diffusers.decode_unquantized")
    golden.check_close(f"{label} diffusers.decode_unquantized", images, target)


def test_batch_statistics_in_training(case):
    label, model, variables, arrays = case
    run = jax.jit(
        lambda v, x: model.apply(v, x, train=True, method="encode", mutable=["batch_stats"])
    )
    latents, updated = run(variables, jnp.asarray(nhwc(arrays, "in.image")))
    golden.check_close(f"{label} bn_train", latents, nhwc(arrays, "bn_train.latents_raw"))
    stats = updated["batch_stats"]["latent_norm"]
    golden.check_close(f"{label} mean", stats["mean"], arrays["bn_train.running_mean_after"])
    golden.check_close(f"{label} var", stats["var"], arrays["bn_train.running_var_after"])


def test_training_loss_and_gradients(case, folder):
    label, model, variables, arrays = case
    images = jnp.asarray(nhwc(arrays, "in.image"))

    def loss_of(params):
        output = model.apply(variables | {"params": params}, images)
        mse = jnp.square(output.images - images).mean()
        return mse + output.codebook_loss + 0.25 * output.commitment_loss

    loss, gradients = jax.jit(jax.value_and_grad(loss_of))(variables["params"])
    golden.check_close(f"{label} train.loss", loss[None], arrays["train.loss"])
    ours = VQGAN.names.save({"params": gradients, "batch_stats": variables["batch_stats"]}, model)
    theirs = golden.weights_of(folder, "grads.safetensors")
    golden.check_gradients(label, {name: ours[name] for name in theirs}, theirs)


def test_round_trips_are_bitwise(case, folder):
    _, model, _, _ = case
    tensors = golden.weights_of(folder)
    back = VQGAN.names.save(VQGAN.names.load(tensors, model), model)
    kept = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    golden.same_tensors(back, kept)
    diffusers = folder / "diffusers"
    other = VQGAN.foreign.read(golden.config_of(diffusers))
    assert other == model
    named = golden.weights_of(diffusers, "diffusion_pytorch_model.safetensors")
    variables = VQGAN.names.load(named, other)
    back = VQGAN.names.save(variables, other, diffusers=True)
    golden.same_tensors(
        back, {k: v for k, v in named.items() if not k.endswith("num_batches_tracked")}
    )
    golden.same_tensors(VQGAN.names.save(variables, model), kept)


def test_misfits_are_listed_together(case, folder):
    _, model, _, _ = case
    tensors = golden.weights_of(folder)
    del tensors["out_block.0.bias"]
    tensors["surprise"] = np.zeros(3, np.float32)
    tensors["in_block.1.bias"] = tensors["in_block.1.bias"][:3]
    with pytest.raises(ConversionError, match=r"out_block\.0\.bias") as error:
        VQGAN.names.load(tensors, model)
    assert "in_block.1.bias" in str(error.value) and "surprise" in str(error.value)


def test_unsupported_diffusers_options_are_refused(folder):
    config = golden.config_of(folder / "diffusers") | {"up_down_scale_factor": 4}
    with pytest.raises(ValueError, match="up_down_scale_factor 4"):
        VQGAN.foreign.read(config)
