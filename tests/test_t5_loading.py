"""T5 without stored outputs: training from scratch, configs, and folders that cannot be read."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from small import random_variables
from small_torch import write_torch_file

from paella_jax.encoders.published import T5_NAMES, import_t5, load_t5_folder
from paella_jax.encoders.relative_bias import relative_buckets
from paella_jax.encoders.t5 import T5Encoder, t5_from_hf_config
from paella_jax.files.tensors import ConversionError

CONFIG = {
    "model_type": "t5",
    "vocab_size": 40,
    "d_model": 12,
    "num_layers": 2,
    "num_heads": 3,
    "d_kv": 5,
    "d_ff": 20,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.1,
}
IDS = np.arange(1, 15, dtype=np.int32).reshape(2, 7)
MASK = np.arange(7)[None] < np.array([[7], [4]])


def _params(module):
    return random_variables(module, IDS)["params"]


@pytest.fixture
def module():
    return t5_from_hf_config(CONFIG)


@pytest.fixture
def tensors(module):
    return T5_NAMES.save(_params(module), module)


@pytest.fixture
def folder(tmp_path, tensors):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def _same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


# Training from scratch


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
def test_trains_with_dropout(gated, dtype):
    module = T5Encoder(
        vocab_size=40,
        width=12,
        num_layers=2,
        num_heads=3,
        head_dim=5,
        hidden_dim=20,
        gated=gated,
        activation="gelu_tanh" if gated else "relu",
        dropout=0.2,
        dtype=dtype,
    )
    params = _params(module)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))

    def loss(params, key):
        out = module.apply(
            {"params": params}, IDS, MASK, deterministic=False, rngs={"dropout": key}
        )
        assert out.dtype == dtype and out.shape == (2, 7, 12)
        return jnp.mean((out.astype(jnp.float32) - 1.0) ** 2)

    step = jax.jit(jax.value_and_grad(loss))
    first, grads = step(params, jax.random.key(1))
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, jax.tree_util.keystr(path)
    assert step(params, jax.random.key(2))[0] != first  # dropout draws
    for i in range(20):
        _, grads = step(params, jax.random.key(3 + i))
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)
    assert step(params, jax.random.key(1))[0] < first


def test_initial_states_have_unit_scale():
    module = T5Encoder(384, 64, 2, 4, 16, 128)
    ids = np.random.default_rng(0).integers(3, 259, (4, 32), np.int32)
    out = jax.jit(module.apply)({"params": _params(module)}, ids)
    assert 0.9 < float(jnp.std(out)) < 1.1


def test_row_without_real_tokens_is_finite(module):
    out = module.apply({"params": _params(module)}, IDS, np.zeros_like(MASK))
    assert np.isfinite(out).all()


def test_ids_outside_the_vocabulary_are_loud(module):
    out = module.apply({"params": _params(module)}, np.full((1, 3), 40, np.int32))
    assert np.isnan(out).all()


def test_relative_buckets():
    buckets = relative_buckets(200, 32, 128)
    assert buckets.dtype == np.int32 and buckets.min() == 0 and buckets.max() == 31
    np.testing.assert_array_equal(buckets[:8, 0], np.arange(8))  # keys before the query
    np.testing.assert_array_equal(buckets[0, 1:8], 16 + np.arange(1, 8))  # and after it
    # Distances 8, 11|12, 15|16, 22|23 are the edges of 8 * 16^(k/8).
    np.testing.assert_array_equal(buckets[[8, 11, 12, 15, 16, 22, 23], 0], [8, 8, 9, 9, 10, 10, 11])
    assert buckets[127, 0] == buckets[199, 0] == 15
    for sizes in ((2, 128), (32, 8)):
        with pytest.raises(ValueError, match="do not fit"):
            relative_buckets(4, *sizes)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (IDS[0], None, r"integers \[batch, length\]"),
        (IDS.astype(np.float32), None, "not float32"),
        (IDS, MASK[:, :5], "mask has shape"),
    ],
)
def test_wrong_inputs(module, ids, mask, message):
    with pytest.raises(ValueError, match=message):
        module.init(jax.random.key(0), ids, mask)


# Configs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"model_type": "umt5"}, "model_type is 'umt5'"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj is 'gated-silu'"),
    ],
)
def test_unsupported_config(change, message):
    with pytest.raises(ValueError, match=message):
        t5_from_hf_config(CONFIG | change)


def test_config_lists_missing_fields():
    with pytest.raises(ValueError, match="lacks d_model, d_ff"):
        t5_from_hf_config({k: v for k, v in CONFIG.items() if k not in ("d_model", "d_ff")})


# Weights


def test_folder(folder, module, tensors):
    loaded, params = load_t5_folder(folder)
    assert loaded == module and _same(params, import_t5(tensors, module))


def test_plain_feed_forward_round_trip():
    module = t5_from_hf_config(CONFIG | {"feed_forward_proj": "relu"})
    params = _params(module)
    tensors = T5_NAMES.save(params, module)
    assert "encoder.block.1.layer.1.DenseReluDense.wi.weight" in tensors
    assert _same(import_t5(tensors, module), params)


def test_bfloat16_folder(folder, tensors, module):
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}
    save_file(half, folder / "model.safetensors")
    _, params = load_t5_folder(folder)
    assert all(p.dtype == ml_dtypes.bfloat16 for p in jax.tree.leaves(params))
    assert all(half[n].tobytes() == a.tobytes() for n, a in T5_NAMES.save(params, module).items())
    out = module.apply({"params": params}, IDS, MASK)
    assert out.dtype == jnp.float32 and np.isfinite(out).all()


def test_embedding_alias_and_decoder(folder, module, tensors):
    expected = import_t5(tensors, module)
    extra = {"decoder.final_layer_norm.weight": np.ones(12), "lm_head.weight": np.ones((40, 12))}
    renamed = dict(tensors)
    renamed["encoder.embed_tokens.weight"] = renamed.pop("shared.weight")
    assert _same(import_t5(renamed | extra, module), expected)
    assert _same(import_t5(renamed | tensors, module), expected)
    save_file(tensors | extra, folder / "model.safetensors")
    assert _same(load_t5_folder(folder)[1], expected)
    with pytest.raises(ConversionError, match="differ"):
        import_t5(renamed | {"shared.weight": tensors["shared.weight"] + 1}, module)


def _shard(folder, tensors, *, decoder_file="c.safetensors"):
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {n: "a.safetensors" if i % 2 else "b.safetensors" for i, n in enumerate(names)}
    for file in ("a.safetensors", "b.safetensors"):
        save_file({n: tensors[n] for n in names if files[n] == file}, folder / file)
    files["decoder.final_layer_norm.weight"] = decoder_file
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))


def test_sharded_folder(folder, module, tensors):
    _shard(folder, tensors)  # the decoder's shard need not be there
    assert _same(load_t5_folder(folder)[1], import_t5(tensors, module))


def test_missing_shard(folder, tensors):
    _shard(folder, tensors)
    (folder / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks b.safetensors"):
        load_t5_folder(folder)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        load_t5_folder(tmp_path / "nowhere")


def test_missing_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_t5_folder(folder)


def test_missing_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no weights \(model\.safetensors, pytorch"):
        load_t5_folder(folder)


def _as_float32(tensors):
    return {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}


def test_torch_files_only(folder, module, tensors):
    """As google/byt5-xl is published; the decoder is not read."""
    (folder / "model.safetensors").unlink()
    extra = {"decoder.final_layer_norm.weight": np.ones(12, np.float32)}
    write_torch_file(folder / "pytorch_model.bin", _as_float32(tensors | extra))
    assert _same(load_t5_folder(folder)[1], import_t5(tensors, module))
    save_file({}, folder / "model.safetensors")  # comes first where there are both
    with pytest.raises(ConversionError, match="missing tensor"):
        load_t5_folder(folder)


def test_sharded_torch_files(folder, module, tensors):
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, inside in shards.items():
        write_torch_file(folder / file, _as_float32({name: tensors[name] for name in inside}))
    index = {"weight_map": {name: file for file, inside in shards.items() for name in inside}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert _same(load_t5_folder(folder)[1], import_t5(tensors, module))
    (folder / "b.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks b\.bin, named in pytorch_model\.bin"):
        load_t5_folder(folder)


@pytest.mark.parametrize("size", [0, 5, 100, -10])
def test_truncated_weights(folder, size):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ConversionError, match=r"model.safetensors.*bytes.*download or copy"):
        load_t5_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", ['{"model_type": "t5', "[]"])
def test_broken_json(folder, name, content):
    (folder / name).write_text(content)
    if name != "config.json":
        (folder / "model.safetensors").unlink()
    with pytest.raises(ConversionError, match=f"{name}.*download it again"):
        load_t5_folder(folder)


def test_unsupported_folder_is_named(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG | {"model_type": "clip"}))
    with pytest.raises(ValueError, match=r"config.json: model_type is 'clip'"):
        load_t5_folder(folder)


def test_wrong_tensors_are_all_listed(folder, tensors):
    del tensors["encoder.final_layer_norm.weight"]
    tensors["encoder.block.9.layer.0.layer_norm.weight"] = np.ones(12, np.float32)
    tensors["encoder.block.0.layer.0.layer_norm.weight"] = np.ones(13, np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConversionError) as caught:
        load_t5_folder(folder)
    message = str(caught.value)
    assert str(folder) in message and "3 problems" in message
    for part in ("missing tensor encoder.final", "unknown tensor encoder.block.9", "(13,)"):
        assert part in message
