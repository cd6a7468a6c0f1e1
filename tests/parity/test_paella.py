"""The token predictor against the reference implementation's recorded outputs."""

from __future__ import annotations

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.convert.paella import PAELLA
from paella_jax.files.tensors import ConversionError, export_tensors
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.layers import timestep_embedding
from paella_jax.noise.tokens import loss_weight, replace_tokens
from paella_jax.objectives.token_prediction import weighted_token_loss

pytestmark = pytest.mark.usefixtures("highest_precision")


def pytest_generate_tests(metafunc):
    golden.parametrize(metafunc, "folder", golden.is_model("paella"))


@pytest.fixture(scope="module")
def case(folder):
    model = golden.paella_of(golden.config_of(folder)["constructor"])
    params = golden.as_jax(PAELLA.names.load(golden.weights_of(folder), model))
    return folder.name, model, params, golden.arrays_of(folder)


@pytest.fixture(scope="module")
def recipe(folder):
    """How the recorded loss was made: its least weight and label smoothing."""
    config = golden.config_of(folder)
    return config["min_loss_weight"], config["label_smoothing"]


def conditioning(arrays, text="byt5", clip=True, images=(0,)) -> Conditioning:
    stacked = [arrays[f"in.clip_image{i}"] for i in images]
    return Conditioning(
        text=jnp.asarray(arrays[f"in.{text}"]),
        text_pooled=jnp.asarray(arrays["in.clip"]) if clip else None,
        image_pooled=jnp.stack(stacked, axis=1) if stacked else None,
    )


def predict(model, params, arrays, cond, t, attention_weights=None, capture=False):
    kwargs = {"attention_weights": attention_weights}
    if capture:
        kwargs |= {"capture_intermediates": True, "mutable": ["intermediates"]}
    run = jax.jit(lambda params, tokens, t, cond: model.apply(params, tokens, t, cond, **kwargs))
    tokens = jnp.asarray(arrays["in.x"], jnp.int32)
    return run({"params": params}, tokens, jnp.asarray(t), cond)


CASES = {
    "all": ({}, "in.r"),
    "byt5_only": ({"text": "byt5_short", "clip": False, "images": ()}, "in.r"),
    "no_image": ({"images": ()}, "in.r"),
    "image_no_text": ({"text": "byt5_short", "clip": False, "images": (1,)}, "in.r_edge"),
    "two_images": ({"images": (0, 1)}, "in.r"),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_and_conditioning(case, name):
    label, model, params, arrays = case
    options, level = CASES[name]
    logits, captured = predict(
        model, params, arrays, conditioning(arrays, **options), arrays[level], capture=True
    )
    ((sequence, _),) = captured["intermediates"]["conditioning"]["__call__"]
    golden.check_close(f"{label} {name}.c_embed", sequence, arrays[f"{name}.c_embed"])
    embedding = timestep_embedding(jnp.asarray(arrays[level]), model.time_width)
    golden.check_close(f"{label} {name}.r_embed", embedding, arrays[f"{name}.r_embed"])
    theirs = golden.channels_last(arrays[f"{name}.logits"])
    golden.check_close(f"{label} {name}.logits", logits, theirs)


def test_every_intermediate(case):
    label, model, params, arrays = case
    _, captured = predict(model, params, arrays, conditioning(arrays), arrays["in.r"], capture=True)
    seen = {k: v["__call__"][0] for k, v in captured["intermediates"].items() if "__call__" in v}
    levels = len(model.widths)
    last = [len(model.patterns[i]) * model.depths[i] - 1 for i in range(levels)]
    ours = {"embedding": seen["embedding"], "clf": seen["output"]}
    for level in range(levels):
        ours[f"down{level}"] = seen[f"down_{level}_block_{last[level]}"]
        up = f"up_{level}_upsample" if level else f"up_0_block_{last[0]}"
        ours[f"up{levels - 1 - level}"] = seen[up]
    for level in range(1, levels):
        ours[f"down{level}_block0"] = seen[f"down_{level}_downsample"]
        ours[f"up{level}_block0"] = seen[f"up_{levels - 1 - level}_block_0"]
        for index in range(last[level] + 1):
            ours[f"down{level}_block{index + 1}"] = seen[f"down_{level}_block_{index}"]
    stored = {k.removeprefix("all.") for k in arrays if k.startswith("all.")}
    compared = stored - {"c_embed", "r_embed", "logits", "logits_f64"}
    assert compared <= set(ours), f"not captured: {compared - set(ours)}"
    for name in sorted(compared):
        theirs = golden.channels_last(arrays[f"all.{name}"])
        # An intermediate may be compared with more slack than the logits: values reach 10.
        golden.check_close(f"{label} all.{name}", ours[name], theirs, atol=1e-4, rtol=1e-4)


def test_attention_reweighting(case):
    label, model, params, arrays = case
    weights = jnp.asarray(arrays["in.attn_weights"])
    logits = predict(model, params, arrays, conditioning(arrays), arrays["in.r"], weights)
    theirs = golden.channels_last(arrays["attn_weights.logits"])
    golden.check_close(f"{label} attn_weights.logits", logits, theirs)


def training_loss(params, model, arrays, recipe, chunks=1):
    minimum, smoothing = recipe
    noised = jnp.asarray(arrays["train.noised"], jnp.int32)
    mask = jnp.asarray(arrays["train.mask"], bool)
    r = jnp.asarray(arrays["in.r"])
    features = model.apply(
        {"params": params}, noised, r, conditioning(arrays), return_features=True
    )
    target = jnp.asarray(arrays["train.target"], jnp.int32)
    weight = loss_weight(mask, r, minimum)
    return weighted_token_loss(
        features, params["classifier"], target, mask, weight, smoothing=smoothing, chunks=chunks
    )


@pytest.mark.parametrize("chunks", [1, 4])
def test_training_loss_and_gradients(case, folder, recipe, chunks):
    label, model, params, arrays = case
    loss_of = lambda params: training_loss(params, model, arrays, recipe, chunks)
    (loss, metrics), gradients = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params)
    golden.check_close(f"{label} train.loss", loss[None], arrays["train.loss"])
    golden.check_close(
        f"{label} train.accuracy", metrics["accuracy"][None], arrays["train.accuracy"]
    )
    ours = export_tensors(PAELLA.names.table(model), gradients)
    golden.check_gradients(label, ours, golden.weights_of(folder, "grads.safetensors"))


def test_noise_and_loss_weight(case, recipe):
    label, _, _, arrays = case
    noised, mask = replace_tokens(
        arrays["train.target"],
        arrays["train.random_x"],
        arrays["train.mask_uniform"],
        jnp.asarray(arrays["in.r"]),
    )
    np.testing.assert_array_equal(noised, arrays["train.noised"])
    np.testing.assert_array_equal(mask, arrays["train.mask"])
    weight = loss_weight(mask, jnp.asarray(arrays["in.r"]), recipe[0])
    golden.check_close(f"{label} train.loss_weight", weight, arrays["train.loss_weight"])


def test_round_trip_is_bitwise(case, folder):
    _, model, _, _ = case
    tensors = golden.weights_of(folder)
    golden.same_tensors(PAELLA.names.save(PAELLA.names.load(tensors, model), model), tensors)


def test_misfits_are_listed_together(case, folder):
    _, model, _, _ = case
    tensors = golden.weights_of(folder)
    del tensors["clf.1.bias"]
    tensors["surprise"] = np.zeros(3, np.float32)
    tensors["out_mapper.1.weight"] = tensors["out_mapper.1.weight"][:-1]
    with pytest.raises(ConversionError, match=r"clf\.1\.bias") as error:
        PAELLA.names.load(tensors, model)
    assert "surprise" in str(error.value) and "out_mapper.1.weight" in str(error.value)


def test_padded_text_with_mask_equals_short_text(case):
    """Static text buckets: masked padding must not change the logits."""
    _, model, params, arrays = case
    text = jnp.asarray(arrays["in.byt5_short"])
    length = text.shape[1]
    padded = jnp.pad(text, ((0, 0), (0, 5), (0, 0)), constant_values=3.0)
    mask = jnp.broadcast_to(jnp.arange(length + 5)[None] < length, padded.shape[:2])
    run = lambda cond: predict(model, params, arrays, cond, arrays["in.r"])
    short = run(Conditioning(text=text))
    np.testing.assert_allclose(run(Conditioning(text=padded, text_mask=mask)), short, atol=2e-5)


@pytest.mark.slow
def test_remat_gives_the_same_gradients(case, recipe):
    _, model, params, arrays = case
    grads = [
        jax.jit(jax.grad(lambda p, m=m: training_loss(p, m, arrays, recipe)[0]))(params)
        for m in (model, model.clone(remat=True))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *grads)
