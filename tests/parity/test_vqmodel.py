"""aMUSEd's tokenizer against diffusers' recorded outputs; its names, config and refusals."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.convert.vqgan import VQMODEL, infer_vqmodel
from paella_jax.files.tensors import ConversionError
from paella_jax.models.vqmodel import VQModel

pytestmark = pytest.mark.usefixtures("highest_precision")

WEIGHTS = "diffusion_pytorch_model.safetensors"
TOLERANCE = {"atol": 1e-4, "rtol": 0.0}


def is_vqmodel(config, _):
    return config.get("_class_name") == "VQModel"


def pytest_generate_tests(metafunc):
    golden.parametrize(metafunc, "folder", is_vqmodel)


@pytest.fixture(scope="module")
def case(folder):
    model = VQMODEL.foreign.read(golden.config_of(folder))
    tensors = golden.weights_of(folder, WEIGHTS)
    variables = {"params": golden.as_jax(VQMODEL.names.load(tensors, model))}
    call = lambda v, x, method: model.apply(
        v, x, method=method, capture_intermediates=True, mutable=["intermediates"]
    )
    return SimpleNamespace(
        label=folder.name,
        folder=folder,
        model=model,
        variables=variables,
        arrays=golden.arrays_of(folder),
        run=jax.jit(call, static_argnums=2),
    )


def image(case, name):
    return golden.channels_last(case.arrays[name])


def check_stored(case, outputs):
    """Each of `outputs` (name, value) that the folder holds; at least one."""
    stored = {name: value for name, value in outputs.items() if name in case.arrays}
    assert stored
    for name, value in stored.items():
        # A repository's copy may hold fewer samples of one array than of another.
        count = min(len(value), len(case.arrays[name]))
        # Inner maps reach 60, their relative error counts as well.
        relative = 1e-4 if name.startswith("mid.") else 0.0
        label, theirs = f"{case.label} {name}", image(case, name)[:count]
        golden.check_close(label, value[:count], theirs, atol=1e-4, rtol=relative)


def side_outputs(seen, side, theirs, levels):
    output = lambda name: seen[name]["__call__"][0]
    names = {"conv_in": f"{side}_in", "mid_block": f"{side}_middle", "conv_out": f"{side}_out"}
    names |= {f"{theirs}.{i}": f"{side}_levels_{i}" for i in range(levels)}
    return {f"mid.{side}.{name}": output(ours) for name, ours in names.items()}


def test_encoder(case):
    latents, captured = case.run(case.variables, jnp.asarray(image(case, "pixel_values")), "encode")
    levels = len(case.model.widths)
    ours = side_outputs(captured["intermediates"], "encoder", "down_blocks", levels)
    check_stored(case, ours)
    check_stored(case, {"latents_f32": latents, "latents_f64": latents})


def same_tokens(case, tokens):
    """Where the recorded code leads by more than the latents may differ; returns where."""
    arrays = case.arrays
    return golden.same_where_clear(
        f"{case.label} indices", tokens, arrays["indices"], arrays["index_gap"], 1e-3
    )


def test_tokens_of_the_image_are_exact(case):
    tokens, _ = case.run(case.variables, jnp.asarray(image(case, "pixel_values")), "encode_tokens")
    same_tokens(case, tokens)


def test_quantiser(case):
    result, _ = case.run(case.variables, jnp.asarray(image(case, "latents_f32")), "quantize")
    count = len(case.arrays["indices"])
    clear = same_tokens(case, result.tokens[:count])
    codes = np.asarray(result.codes[:count])
    np.testing.assert_array_equal(codes[clear], image(case, "z_q")[clear])
    loss = result.commitment_loss + 0.25 * result.codebook_loss
    for name in ("commit_loss_f32", "commit_loss_f64"):
        if name in case.arrays:
            golden.check_close(f"{case.label} {name}", loss, case.arrays[name], **TOLERANCE)


def test_decoder(case):
    images, captured = case.run(case.variables, jnp.asarray(image(case, "z_q")), "decode")
    levels = len(case.model.widths)
    check_stored(case, side_outputs(captured["intermediates"], "decoder", "up_blocks", levels))
    check_stored(case, {"recon_f32": images, "recon_f64": images})
    tokens = jnp.asarray(case.arrays["indices"], jnp.int32)
    clipped, _ = case.run(case.variables, tokens, "decode_tokens")
    theirs = np.clip(image(case, "recon_f32"), 0.0, 1.0)
    golden.check_close(f"{case.label} clipped", clipped, theirs, **TOLERANCE)


def test_decoding_foreign_tokens(case):
    if "rand_indices" not in case.arrays:
        pytest.skip("this folder holds no foreign tokens")
    tokens = jnp.asarray(case.arrays["rand_indices"], jnp.int32)
    codes, _ = case.run(case.variables, tokens, "lookup")
    images, _ = case.run(case.variables, codes, "decode")
    check_stored(case, {"rand_decoded_f32": images, "rand_decoded_f64": images})


def test_training_pass(case):
    pixels = jnp.asarray(image(case, "pixel_values"))
    result, _ = case.run(case.variables, pixels, None)
    if same_tokens(case, result.tokens).all():
        theirs = image(case, "recon_f32")
        golden.check_close(f"{case.label} images", result.images, theirs, **TOLERANCE)


def test_round_trip_is_bitwise(case):
    tensors = golden.weights_of(case.folder, WEIGHTS)
    golden.same_tensors(
        VQMODEL.names.save(VQMODEL.names.load(tensors, case.model), case.model), tensors
    )


def test_config_round_trip(case):
    config = golden.config_of(case.folder)
    assert config.pop("_diffusers_version")
    assert VQMODEL.foreign.write(case.model, sample_size=config["sample_size"]) == config


def test_architecture_from_the_file(case):
    fields = infer_vqmodel(golden.weights_of(case.folder, WEIGHTS))
    assert VQModel(**fields, norm_groups=case.model.norm_groups) == case.model


def test_misfits_are_listed_together(case):
    tensors = golden.weights_of(case.folder, WEIGHTS)
    tensors["quant_conv.weight"] = tensors["quant_conv.weight"][:-1]
    del tensors["decoder.conv_in.bias"]
    tensors["surprise"] = np.zeros(3, np.float32)
    with pytest.raises(ConversionError, match="3 problems") as error:
        VQMODEL.names.load(tensors, case.model)
    for name in ("quant_conv.weight", "decoder.conv_in.bias", "surprise"):
        assert name in str(error.value)


SMALL = {
    "widths": (4, 8),
    "blocks_per_level": 1,
    "latent_channels": 4,
    "code_channels": 3,
    "codebook_size": 7,
    "norm_groups": 2,
    "encoder_attention": (False, True),
    "decoder_attention": (True, False),
    "middle_attention": True,
}


def test_attention_where_the_config_says():
    """diffusers' names of the attention blocks, and that they act on the image."""
    model = VQModel(**SMALL)
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), VQMODEL.names.shapes(model))
    tensors = VQMODEL.names.save(empty, model)
    found = {name.removesuffix(".to_q.weight") for name in tensors if name.endswith("to_q.weight")}
    assert found == {
        "encoder.down_blocks.1.attentions.0",
        "encoder.mid_block.attentions.0",
        "decoder.mid_block.attentions.0",
        "decoder.up_blocks.1.attentions.0",
        "decoder.up_blocks.1.attentions.1",
    }
    assert "encoder.mid_block.attentions.0.group_norm.bias" in tensors
    assert VQModel(**infer_vqmodel(tensors), norm_groups=2) == model
    assert VQMODEL.foreign.read(VQMODEL.foreign.write(model)) == model
    random = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(random.normal(size=leaf.shape, scale=0.3), jnp.float32)
    variables = {"params": jax.tree.map(draw, empty)}
    images = jax.random.uniform(jax.random.key(1), (1, 4, 4, 3))
    changed = images.at[0, 0, 0].add(0.5)
    encode = jax.jit(partial(model.apply, method="encode"))
    # Two levels of 3x3 convolutions do not reach from one corner to the other; attention does.
    difference = encode(variables, images) - encode(variables, changed)
    assert np.abs(difference[0, -1, -1]).max() > 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"act_fn": "gelu"}, "act_fn 'gelu' is not supported"),
        ({"norm_type": "spatial"}, "norm_type 'spatial' is not supported"),
        ({"in_channels": 1}, "in_channels 1 is not supported"),
        ({"down_block_types": ["DownBlock2D"]}, "down_block_types .* are not supported"),
    ],
)
def test_configs_that_do_not_fit_are_refused(change, message):
    config = VQMODEL.foreign.write(VQModel(**SMALL))
    with pytest.raises(ValueError, match=message):
        VQMODEL.foreign.read(config | change)


@pytest.mark.parametrize(
    "changes, side, message",
    [
        ({"norm_groups": 3}, 4, "3 norm groups do not divide"),
        ({"encoder_attention": (True,)}, 4, "encoder_attention .* needs one entry per level"),
        ({}, 5, "image size 5x5 must be a multiple of 2"),
    ],
)
def test_what_does_not_fit_is_named(changes, side, message):
    model = VQModel(**(SMALL | changes))
    images = jnp.zeros((1, side, side, 3))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    with pytest.raises(ConversionError, match="not a whole VQModel"):
        infer_vqmodel({})
