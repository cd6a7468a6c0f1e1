"""CLIP towers and their preprocessing against the reference's stored outputs under --golden."""

from __future__ import annotations

import re
from functools import cache

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.encoders import published as clip
from paella_jax.encoders.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    clip_preprocess,
    preprocess_images,
    resize_short_side,
)

TOLERANCE = 1e-4
# The softmax ignores what all keys have in common: key biases have no effect and no gradient.
NO_GRADIENT = "['key']['bias']"


def pytest_generate_tests(metafunc):
    is_kind = lambda kind: lambda config, _: config.get("model_type") == kind
    golden.parametrize(metafunc, "text_folder", is_kind("clip_text_model"))
    golden.parametrize(metafunc, "vision_folder", is_kind("clip_vision_model"))
    has_sizes = lambda config, _: "clip_preprocess_size" in config
    golden.parametrize(metafunc, "preprocess_folder", has_sizes)


@cache
def _text(folder):
    return *clip.load_clip_text_folder(folder), golden.arrays_of(folder)


@cache
def _vision(folder):
    return *clip.load_clip_vision_folder(folder), golden.arrays_of(folder)


def _ids(io, name="input_ids"):
    return jnp.asarray(io[name], jnp.int32)


def _pixels(io, name="pixel_values"):
    return jnp.asarray(golden.channels_last(io[name]))


def _run(module, params, *args, **kwargs):
    apply = lambda params, *args: module.apply({"params": params}, *args, all_hidden=True, **kwargs)
    with jax.default_matmul_precision("highest"):
        return jax.jit(apply)(params, *args)


def _compare(folder, output, io, suffix, embedding):
    """Every stored array of one run that `output` has a field for; returns how many."""
    named = {
        "last_hidden_state": output.last_hidden_state,
        "penultimate": output.penultimate_hidden_state,
        "pooler_output": output.pooled,
        embedding: output.embedding,
    }
    compared = set()
    for name, ours in named.items():
        for bits in ("f32", "f64"):
            key = f"{name}{suffix}_{bits}"
            if key in io:
                golden.check_close(f"{folder.name} {key}", ours, io[key], TOLERANCE, 0.0)
                compared.add(key)
    return compared


# Text


@pytest.mark.parametrize("masked", [False, True], ids=["nomask", "masked"])
def test_text_outputs(text_folder, masked):
    module, params, io = _text(text_folder)
    mask = jnp.asarray(io["attention_mask"], bool) if masked else None
    output = _run(module, params, _ids(io), mask)
    compared = _compare(text_folder, output, io, "_masked" * masked, "text_embeds")
    assert len(compared) >= 4
    assert compared == {
        key for key in io if re.search("_f(32|64)$", key) and ("masked" in key) == masked
    }


def test_text_hidden_states(text_folder):
    module, params, io = _text(text_folder)
    states = _run(module, params, _ids(io)).hidden_states
    assert len(states) == module.num_layers + 1
    for i, state in enumerate(states):
        golden.check_close(f"{text_folder.name} hidden.{i}", state, io[f"hidden.{i}"], TOLERANCE, 0)


def test_pooled_position(text_folder):
    module, params, io = _text(text_folder)
    output = _run(module, params, _ids(io))
    rows = np.arange(len(output.pooled))
    states = np.asarray(output.last_hidden_state)
    # XLA may compute the norm a second time for the second output, with another last bit.
    wanted = states[rows, io["pooled_position"]]
    np.testing.assert_allclose(output.pooled, wanted, rtol=1e-6, atol=1e-6)


def test_text_is_causal(text_folder):
    """The states of a shortened text are those of its beginning; ids behind have no influence."""
    module, params, io = _text(text_folder)
    full = _run(module, params, _ids(io)).last_hidden_state
    half = full.shape[1] // 2
    short = _run(module, params, _ids(io)[:, :half]).last_hidden_state
    golden.check_close(f"{text_folder.name} first {half}", short, full[:, :half], 1e-5, 0.0)


# Vision


def test_vision_outputs(vision_folder):
    module, params, io = _vision(vision_folder)
    output = _run(module, params, _pixels(io))
    compared = _compare(vision_folder, output, io, "", "image_embeds")
    assert len(compared) >= 4
    assert compared == {k for k in io if re.search("_f(32|64)$", k) and "wide" not in k}
    for i, state in enumerate(output.hidden_states):
        stored = io[f"hidden.{i}"]
        golden.check_close(f"{vision_folder.name} hidden.{i}", state, stored, TOLERANCE, 0.0)


def test_vision_of_another_size(vision_folder):
    module, params, io = _vision(vision_folder)
    wide = [key for key in io if re.search("_wide_f(32|64)$", key)]
    if not wide:
        pytest.skip("no outputs of another image size stored")
    output = _run(module, params, _pixels(io, "pixel_values_wide"), interpolate=True)
    assert set(wide) == _compare(vision_folder, output, io, "_wide", "image_embeds")
    with pytest.raises(ValueError, match="interpolate=True"):
        module.apply({"params": params}, _pixels(io, "pixel_values_wide"))


# Weights


def _loaders(folder, kind):
    if kind == "text":
        return _text(folder), clip.TEXT.load, clip.TEXT.save, clip.TEXT.prefix
    return _vision(folder), clip.VISION.load, clip.VISION.save, clip.VISION.prefix


def _check_round_trip(folder, kind):
    (module, params, _), read, write, prefix = _loaders(folder, kind)
    weights = golden.weights_of(folder, "model.safetensors")
    own = {name: array for name, array in weights.items() if not name.endswith("position_ids")}
    bare = {name.removeprefix(prefix): array for name, array in own.items()}
    for form, named in (("", bare), (prefix, own)):
        if form and named.keys() == bare.keys():
            continue  # saved without prefix
        back = write(params, module, form)
        golden.same_tensors(back, named)
        assert all(back[n].dtype == array.dtype for n, array in named.items())
        assert jax.tree.all(jax.tree.map(np.array_equal, read(back, module), params))


def test_text_weights_round_trip_bitwise(text_folder):
    _check_round_trip(text_folder, "text")


def test_vision_weights_round_trip_bitwise(vision_folder):
    _check_round_trip(vision_folder, "vision")


# Training


def _check_gradients(module, params, batch):
    """Of a loss on the embedding (or the pooled state) and all states."""

    def loss(params):
        output = module.apply({"params": params}, batch)
        vector = output.pooled if output.embedding is None else output.embedding
        weigh = lambda x: jnp.mean(x * jnp.cos(jnp.arange(x.size)).reshape(x.shape))
        return weigh(vector) + weigh(output.last_hidden_state)

    grads = jax.jit(jax.grad(loss))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        name, largest = jax.tree_util.keystr(path), np.abs(grad).max()
        assert np.isfinite(grad).all(), name
        assert largest < 1e-6 if name.endswith(NO_GRADIENT) else largest > 1e-6, name
    return grads


def test_text_gradients_reach_every_parameter(text_folder):
    module, params, io = _text(text_folder)
    grads = _check_gradients(module, params, _ids(io))
    moved = np.abs(grads["token_embedding"]).max(1) > 0
    np.testing.assert_array_equal(np.flatnonzero(moved), np.unique(io["input_ids"]))


def test_vision_gradients_reach_every_parameter(vision_folder):
    module, params, io = _vision(vision_folder)
    _check_gradients(module, params, _pixels(io))


def _check_bfloat16(folder, module, params, batch, io, embedding):
    output = _run(module.clone(dtype=jnp.bfloat16), params, batch)
    assert output.last_hidden_state.dtype == jnp.bfloat16
    assert output.pooled.dtype == jnp.float32
    for name, ours in (
        ("last_hidden_state", output.last_hidden_state),
        (embedding, output.embedding),
    ):
        reference = io[f"{name}_f64"]
        difference = np.asarray(ours, np.float64) - reference
        error = np.linalg.norm(difference) / np.linalg.norm(reference)
        print(f"{folder.name}: bfloat16 {name} relative error {error:.2e}")
        assert error < 5e-2


def test_text_bfloat16_is_close(text_folder):
    module, params, io = _text(text_folder)
    _check_bfloat16(text_folder, module, params, _ids(io), io, "text_embeds")


def test_vision_bfloat16_is_close(vision_folder):
    module, params, io = _vision(vision_folder)
    _check_bfloat16(vision_folder, module, params, _pixels(io), io, "image_embeds")


# Preprocessing


def test_preprocess(preprocess_folder):
    config, io = golden.config_of(preprocess_folder), golden.arrays_of(preprocess_folder)
    stored = lambda key: golden.channels_last(io[key])
    compare = lambda key, ours: golden.check_close(
        f"{preprocess_folder.name} {key}", ours, stored(key), 2e-5, 0.0
    )
    images, size = jnp.asarray(stored("clip_preprocess.in")), config["clip_preprocess_size"]
    compare("clip_preprocess.out", jax.jit(clip_preprocess, static_argnums=1)(images, size))

    images, size = jnp.asarray(stored("preprocess.in")), config["preprocess_size"]
    compare("preprocess.resized", resize_short_side(images, size, "bilinear"))
    ours = preprocess_images(images, size, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    compare("preprocess.out", ours)
