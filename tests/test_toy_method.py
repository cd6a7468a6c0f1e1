"""A new method is one file in families/ and one record in registry.py: here is a toy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

import paella_jax
from paella_jax import train
from paella_jax.compile.preset import compile_preset
from paella_jax.config import ConfigError, load_config
from paella_jax.data.build import make_source
from paella_jax.data.loader import image_transform
from paella_jax.images.write import save_grid
from paella_jax.objectives.inputs import images_from_batch
from paella_jax.registry import FAMILIES, Family, build_method
from paella_jax.runs.checkpoint import CheckpointError
from paella_jax.runs.derive import restore_trained
from paella_jax.runs.folder import prepare_workdir, read_config, read_metrics
from paella_jax.training.method import Method

# --- families/toy.py: learns the mean of all images, and draws that


def toy_method(config, source):
    side = config.data.image_size

    def objective(params, inputs):
        error = images_from_batch(inputs.batch) - params["mean"][None] * config.toy.gain
        loss = jnp.square(error).mean()
        return loss, ({"mse": loss}, inputs.model_state)

    return Method(
        title="toy",
        init=lambda key: ({"mean": jax.random.uniform(key, (side, side, 3))}, {}),
        objective=objective,
        frozen={},
        source=source,
        held=lambda: make_source(config.data, "validation", config.seed),
        transform=image_transform,
    )


def build(config, workdir):
    return toy_method(config, make_source(config.data, "train", config.seed))


def abstract(config):
    side = config.data.image_size
    return toy_method(config, [{"image": np.zeros((side, side, 3), np.uint8)}])


def preview(config, workdir, held):
    def draw(state, frozen, file):
        save_grid(file, np.asarray(state.eval_params["mean"])[None].clip(0, 1))
        return {"brightness": float(state.eval_params["mean"].mean())}

    return draw


def load(workdir, *, gamma=1.0):
    """A function from a prompt to an image."""
    config = read_config(workdir)
    mean = restore_trained(workdir, config)["mean"]
    return lambda prompt: (mean * config.toy.gain).clip(0, 1) ** gamma


RECORD = Family(build=build, abstract=abstract, preview=preview, load=load)

CONFIG = """
from ml_collections import ConfigDict
from paella_jax.config import CONFIGS, load_module

def get_config(preset):
    config = load_module(CONFIGS / "common.py").base()
    config.method, config.preset = "toy", preset
    config.toy = ConfigDict()
    config.toy.gain = 1.0
    config.num_steps, config.batch_size, config.log.every = 3, 8, 1
    config.optim.learning_rate, config.optim.warmup_steps = 0.1, 1
    return config
"""


@pytest.fixture(autouse=True)
def record(monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", RECORD)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "toy.py").write_text(CONFIG)
    return f"{tmp_path}/toy.py:tiny"


def test_it_trains_draws_and_compiles(file, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "setup_jax", lambda: None)
    monkeypatch.setattr("sys.argv", ["train", "--config", file, "--workdir", f"{tmp_path}/run"])
    assert train.main() == 0
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 3 and losses[-1] < losses[0] and "brightness" in rows[-1]
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    draw = paella_jax.load(tmp_path / "run", gamma=2.0)
    assert draw("anything").shape == (32, 32, 3)
    with pytest.raises(ValueError, match=r"no loading option gama; it has \['gamma'\]"):
        paella_jax.load(tmp_path / "run", gama=2.0)
    assert compile_preset(load_config(file))["trained_parameters"] == 32 * 32 * 3


def test_messages_name_it(tmp_path, file):
    workdir = prepare_workdir(tmp_path / "vqgan", small.small_vqgan())
    with pytest.raises(CheckpointError, match=r"one of \['stage_b', 'stage_c', 'tokens', 'toy'\]"):
        paella_jax.load(workdir)
    config = load_config(file).copy_and_resolve_references()
    config.method = "toi"
    with pytest.raises(ConfigError, match=r"method must be 'vqgan', .* or 'toy', got 'toi'"):
        build_method(config, tmp_path)
