"""MUSE's super-resolution from encoded data: the command, the same losses, a preview, refusals."""

from __future__ import annotations

import sys

import jax
import numpy as np
import pytest
import small

from paella_jax import encode
from paella_jax.config import ConfigError
from paella_jax.data.encoded import EncodedSource, describe_data
from paella_jax.data.encoded_format import read_manifest
from paella_jax.data.loader import make_iterator
from paella_jax.noise.tokens import sample_keys
from paella_jax.objectives.inputs import StepInputs
from paella_jax.registry import build_method
from paella_jax.runs.folder import WEIGHTS_FILE, prepare_workdir, read_metrics
from paella_jax.runs.weights import load_tree, save_tree
from paella_jax.training.loop import train

COUNT, HELD = 20, 4


def overrides(tokenizers, **changes):
    """Of a small run: 4x4 tokens of 16 pixels to 8x8 tokens of 32."""
    values = {
        "model.codebook_size": 32, "super_resolution.width": 16, "super_resolution.depth": 1,
        "super_resolution.low_depth": 1, "super_resolution.low_grid": 4,
        "super_resolution.num_heads": 2, "super_resolution.feed_forward_width": 32,
        "super_resolution.block_size": 4, "text.width": 16, "text.num_heads": 2,
        "text.hidden_dim": 32, "text.num_layers": 1, "sampler.num_steps": 2, "batch_size": 8,
        "num_steps": 2, "checkpoint.every": 2, "log.every": 1, "log.preview_every": 2,
        "log.preview_images": 2, "data.size": COUNT, "tokenizer": tokenizers[0],
        "low_tokenizer": tokenizers[1],
    } | changes  # fmt: skip
    return [f"--config.{name}={value}" for name, value in values.items()]


def config_of(tokenizers, **changes):
    return small.load_config("muse:super_resolution_tiny", overrides(tokenizers, **changes))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Runs of two tokenizers with other codes."""
    base = tmp_path_factory.mktemp("tokenizers")
    runs = [small.untrained(base / name, small.small_vqgan()) for name in ("high", "low")]
    mirrored = lambda path, x: x[::-1].copy() if "codebook" in jax.tree_util.keystr(path) else x
    tree = jax.tree_util.tree_map_with_path(mirrored, load_tree(runs[1] / WEIGHTS_FILE))
    save_tree(runs[1] / WEIGHTS_FILE, tree)
    return runs


@pytest.fixture(scope="module")
def data(tokenizers, tmp_path_factory):
    """What the command makes."""
    out = tmp_path_factory.mktemp("encoded") / "data"
    flags = ["--config", "muse:super_resolution_tiny", "--out", str(out), "--validation", str(HELD),
             "--batch_size", "8", *overrides(tokenizers)]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["encode", *flags])
        patch.setattr(encode, "setup_jax", lambda: None)
        assert encode.main() == 0
    return out


def test_low_tokens_are_stored(data):
    fields = read_manifest(data).splits["train"].fields
    assert sorted(fields) == ["low_tokens", "text_ids", "text_mask", "tokens"]
    assert fields["low_tokens"].shape == (4, 4) and fields["tokens"].shape == (8, 8)
    assert fields["low_tokens"].dtype == fields["tokens"].dtype == "uint8"
    samples = [EncodedSource(data, "train")[n]["low_tokens"] for n in range(COUNT)]
    assert len({sample.tobytes() for sample in samples}) > COUNT // 2


def losses(config, workdir):
    """Of two batches, by fixed random weights."""
    method = build_method(config, prepare_workdir(workdir, config))
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    params, model_state = small.random_values(shapes)
    batches = make_iterator(method.source, method.transform, batch_size=8, seed=config.seed)
    objective = jax.jit(method.objective)
    found = []
    for step, batch in zip(range(2), batches, strict=False):
        keys = sample_keys(jax.random.key(step), np.arange(8))
        inputs = StepInputs(batch, keys, np.int32(step), model_state, method.frozen)
        found.append(float(objective(params, inputs)[0]))
    return found


def test_losses_are_those_of_images(data, tokenizers, tmp_path):
    images = losses(config_of(tokenizers), tmp_path / "images")
    arrays = losses(describe_data(config_of(tokenizers, **{"data.encoded": data})), tmp_path / "a")
    np.testing.assert_array_equal(arrays, images)
    assert images[0] != images[1]


@pytest.mark.slow
def test_it_trains_and_shows_samples(data, tokenizers, tmp_path):
    """A preview enlarges small images of the validation samples, which hold theirs."""
    config = describe_data(config_of(tokenizers, **{"data.encoded": data}))
    train(config, tmp_path, build_method(config, prepare_workdir(tmp_path, config)))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "preview_exact" in row] == [2]


def test_another_low_tokenizer_is_refused(data, tokenizers, tmp_path):
    for given, changes, message in (
        (tokenizers[::-1], {}, r"weights of low_vqgan: \w{12} -> \w{12}"),
        (tokenizers, {"super_resolution.low_grid": 2}, "low_grid of the network: 4 -> 2"),
    ):
        config = config_of(given, **{"data.encoded": data} | changes)
        folder = prepare_workdir(tmp_path / message[:3], config)
        with pytest.raises(ConfigError, match=message):
            build_method(config, folder)
