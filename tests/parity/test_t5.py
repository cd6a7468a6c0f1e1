"""T5 encoder against the stored outputs of the reference, on every T5 folder under --golden."""

import json
from functools import cache
from pathlib import Path

import golden as recordings
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from paella_jax.encoders.published import T5_NAMES, import_t5, load_t5_folder

TOLERANCE = 1e-4


def _t5_folders(golden):
    configs = sorted(golden.rglob("config.json"))
    return [c.parent for c in configs if json.loads(c.read_text()).get("model_type") == "t5"]


def pytest_generate_tests(metafunc):
    if "t5_folder" in metafunc.fixturenames:
        golden = Path(metafunc.config.getoption("golden"))
        folders = _t5_folders(golden)
        ids = [f.relative_to(golden).as_posix() for f in folders]
        metafunc.parametrize("t5_folder", folders, ids=ids)


@cache
def _load(folder):
    module, params = load_t5_folder(folder)
    return module, params, recordings.arrays_of(folder)


@cache
def _states(folder, masked):
    """All hidden states of the stored batch, with or without its mask."""
    module, params, io = _load(folder)
    mask = jnp.asarray(io["attention_mask"], bool) if masked else None
    run = jax.jit(lambda p, ids, mask: module.apply({"params": p}, ids, mask, all_hidden=True))
    with jax.default_matmul_precision("highest"):
        states = run(params, jnp.asarray(io["input_ids"], jnp.int32), mask)
    return [np.asarray(s) for s in states]


def _compare(folder, name, ours, reference):
    difference = np.abs(ours - reference)
    relative = difference / np.maximum(np.abs(reference), 1e-6)
    print(f"{folder.name}: {name} max_abs={difference.max():.2e} max_rel={relative.max():.2e}")
    assert ours.shape == reference.shape
    assert difference.max() <= TOLERANCE, name


@pytest.mark.parametrize("bits", ["f32", "f64"])
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "nomask"])
def test_last_hidden_state(t5_folder, masked, bits):
    io = _load(t5_folder)[2]
    name = f"last_hidden_state_{'' if masked else 'nomask_'}{bits}"
    _compare(t5_folder, name, _states(t5_folder, masked)[-1], io[name])


def test_hidden_states(t5_folder):
    module, _, io = _load(t5_folder)
    states = _states(t5_folder, True)
    assert len(states) == module.num_layers + 1
    for i, state in enumerate(states):
        _compare(t5_folder, f"hidden.{i}", state, io[f"hidden.{i}"])
    _compare(t5_folder, "penultimate_f32", states[-2], io["penultimate_f32"])


def test_weights_round_trip_bitwise(t5_folder):
    module, params, _ = _load(t5_folder)
    weights = load_file(t5_folder / "model.safetensors")
    back = T5_NAMES.save(params, module)
    assert back.keys() == weights.keys()
    for name, array in weights.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape, name
        assert back[name].tobytes() == array.tobytes(), name
    again = import_t5(back, module)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params))


def test_padding_does_not_change_a_row(t5_folder):
    """The padded, masked batch equals every row run alone at its true length."""
    module, params, io = _load(t5_folder)
    states = _states(t5_folder, True)[-1]
    run = jax.jit(module.apply)
    for ids, mask, state in zip(io["input_ids"], io["attention_mask"], states, strict=True):
        length = int(mask.sum())
        row = jnp.asarray(ids[None, :length], jnp.int32)
        with jax.default_matmul_precision("highest"):
            alone = run({"params": params}, row)
        _compare(t5_folder, f"row of {length}", state[:length], np.asarray(alone[0]))


def test_bfloat16_is_close(t5_folder):
    module, params, io = _load(t5_folder)
    module = module.clone(dtype=jnp.bfloat16)
    ids, mask = jnp.asarray(io["input_ids"], jnp.int32), jnp.asarray(io["attention_mask"])
    ours = jax.jit(module.apply)({"params": params}, ids, mask)
    assert ours.dtype == jnp.bfloat16
    reference = io["last_hidden_state_f32"]
    error = np.linalg.norm(np.asarray(ours, np.float64) - reference) / np.linalg.norm(reference)
    print(f"{t5_folder.name}: bfloat16 relative error {error:.2e}")
    assert error < 5e-2


def test_gradients_reach_every_parameter(t5_folder):
    module, params, io = _load(t5_folder)
    ids, mask = jnp.asarray(io["input_ids"], jnp.int32), jnp.asarray(io["attention_mask"])
    target = jnp.cos(jnp.arange(module.width, dtype=jnp.float32))[None, None]

    def loss(params):
        return jnp.mean(module.apply({"params": params}, ids, mask) * target)

    grads = jax.jit(jax.grad(loss))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, jax.tree_util.keystr(path)
    # Only the embeddings of ids in the batch can move.
    used = np.zeros(module.vocab_size, bool)
    used[io["input_ids"][io["attention_mask"] > 0]] = True
    moved = np.abs(grads["embedding"]).max(1) > 0
    assert moved[used].all() and not moved[~np.isin(np.arange(len(used)), io["input_ids"])].any()
