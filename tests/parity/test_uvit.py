"""aMUSEd's U-ViT against diffusers' recorded outputs; its names, config and refusals."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.convert.amused import AMUSED, infer_uvit
from paella_jax.files.tensors import ConversionError
from paella_jax.models.uvit import UViT, micro_condition_embedding

pytestmark = pytest.mark.usefixtures("highest_precision")

WEIGHTS = "diffusion_pytorch_model.safetensors"
INPUTS = ("input_ids", "encoder_hidden_states", "pooled_text_emb", "micro_conds")
TOLERANCE = {"atol": 5e-4, "rtol": 0.0}


def is_uvit(config, _):
    return config.get("_class_name") == "UVit2DModel"


def pytest_generate_tests(metafunc):
    golden.parametrize(metafunc, "folder", is_uvit)


@pytest.fixture(scope="module")
def case(folder):
    model = AMUSED.foreign.read(golden.config_of(folder))
    arrays = golden.arrays_of(folder)
    params = golden.as_jax(AMUSED.names.load(golden.weights_of(folder, WEIGHTS), model))
    inputs = [jnp.asarray(arrays[name]) for name in INPUTS]
    inputs[0] = inputs[0].astype(jnp.int32)
    return SimpleNamespace(
        label=folder.name, folder=folder, model=model, arrays=arrays, params=params, inputs=inputs
    )


@pytest.fixture(scope="module")
def outputs(case):
    """The logits and every submodule's output."""
    run = jax.jit(
        lambda params, *inputs: case.model.apply(
            {"params": params}, *inputs, capture_intermediates=True, mutable=["intermediates"]
        )
    )
    with jax.default_matmul_precision("highest"):
        logits, captured = run(case.params, *case.inputs)
    return logits, captured["intermediates"]


def test_logits(case, outputs):
    logits, _ = outputs
    assert logits.dtype == jnp.float32
    assert logits.shape == (*case.inputs[0].shape, case.model.codebook_size)
    stored = [name for name in ("logits_f32", "logits_f64") if name in case.arrays]
    assert stored
    for name in stored:
        theirs = golden.channels_last(case.arrays[name])
        golden.check_close(f"{case.label} {name}", logits, theirs, **TOLERANCE)


def module_outputs(case, seen):
    """Our captured outputs under the reference's names."""
    last = case.model.conv_blocks - 1
    names = {
        "cond_embed": ("condition_out",),
        "encoder_proj": ("text",),
        "encoder_proj_layer_norm": ("text_norm",),
        "embed": ("embedding",),
        "down_block.downsample": ("down_resample",),
        "down_block": (f"down_attention_{last}",),
        "project_to_hidden": ("hidden_in",),
        "project_from_hidden": ("hidden_out",),
        "up_block.upsample": ("up_resample",),
        "up_block": ("up_resample",) if case.model.upsample else (f"up_attention_{last}",),
        "mlm_layer.conv1": ("output",),
    }
    for index in range(case.model.conv_blocks):
        for side in ("down", "up"):
            names[f"{side}_block.res_blocks.{index}"] = (f"{side}_conv_{index}",)
            names[f"{side}_block.attention_blocks.{index}"] = (f"{side}_attention_{index}",)
    parts = {"ff": "feed_forward", "attn1": "attention_1", "attn2": "attention_2"}
    parts |= {f"norm{number}": f"norm_{number}" for number in (1, 2, 3)}
    for index in range(case.model.depth):
        names[f"transformer_layers.{index}"] = (f"layer_{index}",)
        for theirs, ours in parts.items():
            names[f"transformer_layers.{index}.{theirs}"] = (f"layer_{index}", ours)
    found = {}
    for theirs, path in names.items():
        node = seen
        for key in path:
            node = node.get(key, {})
        if "__call__" in node:
            found[theirs] = node["__call__"][0]
    return found


def test_every_intermediate(case, outputs):
    ours = module_outputs(case, outputs[1])
    ours["micro_cond_sinusoid"] = micro_condition_embedding(case.inputs[3], case.model.micro_width)
    stored = {name.removeprefix("mid.") for name in case.arrays if name.startswith("mid.")}
    assert stored and stored <= set(ours), f"not captured: {stored - set(ours)}"
    for name in sorted(stored):
        theirs = case.arrays[f"mid.{name}"]
        theirs = golden.channels_last(theirs) if theirs.ndim == 4 else theirs
        # The stages' attention is recorded as a sequence, ours keeps the grid.
        value = ours[name].reshape(theirs.shape) if "attention_blocks" in name else ours[name]
        golden.check_close(f"{case.label} {name}", value, theirs, **TOLERANCE)


def test_features_and_the_classifier_make_the_logits(case, outputs):
    run = jax.jit(partial(case.model.apply, return_features=True))
    features = run({"params": case.params}, *case.inputs)
    assert features.shape[-1] == case.model.token_width
    logits = features @ case.params["classifier"]
    if case.model.use_bias:
        logits = logits + case.params["classifier_bias"].reshape(1, 1, 1, -1)
    np.testing.assert_allclose(logits, outputs[0], atol=1e-4)


def test_masked_padding_changes_nothing(case, outputs):
    tokens, text, pooled, micro = case.inputs
    length = text.shape[1]
    padded = jnp.pad(text, ((0, 0), (0, 3), (0, 0)), constant_values=3.0)
    mask = jnp.broadcast_to(jnp.arange(length + 3)[None] < length, padded.shape[:2])
    run = jax.jit(case.model.apply)
    logits = run({"params": case.params}, tokens, padded, pooled, micro, text_mask=mask)
    np.testing.assert_allclose(logits, outputs[0], atol=1e-4)
    unmasked = run({"params": case.params}, tokens, padded, pooled, micro, text_mask=mask | True)
    assert np.abs(unmasked - outputs[0]).max() > 1e-4


def test_bfloat16_is_close(case, outputs):
    model = case.model.clone(dtype=jnp.bfloat16)
    logits = jax.jit(model.apply)({"params": case.params}, *case.inputs)
    assert logits.dtype == jnp.float32
    error = np.linalg.norm(logits - outputs[0]) / np.linalg.norm(outputs[0])
    print(f"{case.label} bfloat16: relative error {error:.3f}")
    assert error < 0.06


def test_round_trip_is_bitwise(case):
    tensors = golden.weights_of(case.folder, WEIGHTS)
    golden.same_tensors(
        AMUSED.names.save(AMUSED.names.load(tensors, case.model), case.model), tensors
    )


def test_config_round_trip(case):
    config = golden.config_of(case.folder)
    version = config.pop("_diffusers_version")
    assert version
    assert AMUSED.foreign.write(case.model, sample_size=config["sample_size"]) == config


def test_misfits_are_listed_together(case):
    tensors = golden.weights_of(case.folder, WEIGHTS)
    tensors["encoder_proj.weight"] = tensors["encoder_proj.weight"][:-1]
    del tensors["embed.conv.weight"]
    tensors["surprise"] = np.zeros(3, np.float32)
    with pytest.raises(ConversionError, match="3 problems") as error:
        AMUSED.names.load(tensors, case.model)
    for name in ("encoder_proj.weight", "embed.conv.weight", "surprise"):
        assert name in str(error.value)


def test_architecture_from_the_file(case):
    model = case.model
    tensors = golden.weights_of(case.folder, WEIGHTS)
    fields = infer_uvit(tensors, model.width // model.num_heads, model.micro_width)
    fields.pop("conv_heads", None)  # may have another head width
    assert {"num_heads", "pooled_width", "downsample", "depth"} <= set(fields)
    assert fields == {name: getattr(model, name) for name in fields}


SMALL = {
    "vocabulary_size": 20,
    "codebook_size": 16,
    "token_width": 8,
    "conv_width": 8,
    "conv_blocks": 1,
    "conv_heads": 2,
    "width": 12,
    "depth": 1,
    "num_heads": 3,
    "feed_forward_width": 8,
    "text_width": 6,
    "pooled_width": 4,
    "micro_width": 4,
    "micro_conds": 5,
}


def test_gradients_reach_every_parameter_and_survive_remat():
    model = UViT(**(SMALL | {"downsample": True, "upsample": True}))
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape, scale=0.3), jnp.float32)
    params = jax.tree.map(lambda leaf: draw(*leaf.shape), AMUSED.names.shapes(model))
    tokens = jnp.asarray(random.integers(0, model.vocabulary_size, (2, 4, 6)), jnp.int32)
    inputs = (tokens, draw(2, 3, model.text_width), draw(2, model.pooled_width), draw(2, 5) * 100)
    target = draw(model.codebook_size)

    def loss(params, model):
        logits = model.apply({"params": params}, *inputs)
        return jnp.square(logits - target.reshape(1, 1, 1, -1)).mean()

    plain, again = (
        jax.jit(jax.grad(partial(loss, model=model)))(params)
        for model in (model, model.clone(remat=True))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), plain, again)
    dead = [
        jax.tree_util.keystr(path)
        for path, gradient in jax.tree_util.tree_leaves_with_path(plain)
        if not np.abs(gradient).max() > 0
    ]
    assert not dead, f"no gradient: {dead}"


@pytest.mark.parametrize(
    "changes",
    [
        {"use_bias": True, "downsample": True, "upsample": True},
        {"learned_norms": False},
        {"conv_width": 12, "conv_heads": 3},
        {"use_bias": True, "learned_norms": False, "downsample": True},
    ],
)
def test_name_tables_cover_every_variant(changes):
    """Names of the reference's class for biases, unlearned norms and equal widths."""
    model = UViT(**(SMALL | changes))
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), AMUSED.names.shapes(model))
    tensors = AMUSED.names.save(empty, model)
    jax.tree.map(np.testing.assert_array_equal, AMUSED.names.load(tensors, model), empty)
    assert ("mlm_layer.conv2.bias" in tensors) == model.use_bias
    norms = "transformer_layers.0.norm3.norm"
    assert (f"{norms}.weight" in tensors) == model.learned_norms
    assert (f"{norms}.bias" in tensors) == (model.learned_norms and model.use_bias)
    assert "transformer_layers.0.norm1.norm.bias" not in tensors
    assert "down_block.attention_blocks.0.norm1.weight" in tensors
    mapper = "down_block.attention_blocks.0.kv_mapper.weight"
    assert (mapper in tensors) == (model.conv_width != model.width)
    fields = infer_uvit(tensors, head_width=4, micro_width=4)
    assert UViT(**(SMALL | fields)) == model


@pytest.mark.parametrize(
    "changes, shapes, message",
    [
        ({"num_heads": 5}, {}, "5 heads do not divide width 12"),
        ({"vocabulary_size": 16}, {}, "its last row is the mask"),
        ({"downsample": True}, {"grid": (3, 4)}, "3x4 must be divisible by 2"),
        ({}, {"text": 7}, "encoder_hidden_states has 7 channels, this model takes 6"),
        ({}, {"pooled": 5}, "pooled_text has 5 channels"),
        ({}, {"micro": 4}, "micro_conds has 4 channels"),
    ],
)
def test_what_does_not_fit_is_named(changes, shapes, message):
    model = UViT(**(SMALL | changes))
    inputs = (
        jnp.zeros((1, *shapes.get("grid", (4, 4))), jnp.int32),
        jnp.zeros((1, 2, shapes.get("text", 6))),
        jnp.zeros((1, shapes.get("pooled", 4))),
        jnp.zeros((1, shapes.get("micro", 5))),
    )
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs))


def test_configs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="micro_cond_embed_dim 9 must be a multiple"):
        AMUSED.foreign.read({"micro_cond_embed_dim": 9, "micro_cond_encode_dim": 4})
    with pytest.raises(ConversionError, match=r"embed\.embeddings\.weight, .* is missing"):
        infer_uvit({})
