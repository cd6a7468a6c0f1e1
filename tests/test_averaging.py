"""Averages of kept checkpoints: the formula, what is read, a folder like any run, clear errors."""

from __future__ import annotations

import sys
import weakref

import jax
import numpy as np
import pytest
import small

import paella_jax
from paella_jax import average as entry
from paella_jax.average import write_average
from paella_jax.config import ConfigError
from paella_jax.families.start import settle_config
from paella_jax.registry import build_method
from paella_jax.runs.average import average_run, average_trees
from paella_jax.runs.checkpoint import Checkpointer, CheckpointError, restore_variables
from paella_jax.runs.derive import restore_trained
from paella_jax.runs.folder import prepare_workdir, read_config
from paella_jax.runs.weights import save_tree
from paella_jax.training.optim import make_optimizer, pace_of
from paella_jax.training.state import create_state

STEPS = (2, 9, 10, 100)  # as names, these sort otherwise


def tree_of(step):
    rng = np.random.default_rng(step)
    return {"a": {"kernel": rng.normal(size=(3, 4)).astype(np.float32)}, "b": np.float32([step])}


def expected(steps, decay):
    """Every checkpoint times its weight, in float64."""
    weights = [(1 - decay) * decay ** (len(steps) - 1 - i) for i in range(len(steps))]
    weights[0] /= 1 - decay
    assert sum(weights) == pytest.approx(1.0)
    trees = [tree_of(step) for step in steps]
    add = lambda *leaves: sum(
        w * x.astype(np.float64) for w, x in zip(weights, leaves, strict=True)
    )
    return jax.tree.map(add, *trees)


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-6), a, b)


def write_run(workdir, steps=STEPS, **overrides):
    """A run folder with made-up weights; its moving averages must never be read."""
    config = small.small_vqgan(**overrides)
    prepare_workdir(workdir, config)
    save_tree(workdir / "frozen" / "other.safetensors", {"w": np.ones(2, np.float32)})
    checkpointer = Checkpointer(workdir, None)
    for step in steps:
        params = tree_of(step)
        state = {
            "params": params,
            "ema_params": jax.tree.map(lambda x: x + 1000, params),
            "model_state": {"mean": np.float32([10 * step])},
            "opt_state": {"count": np.int32(step)},
        }
        checkpointer.save(step, state)
    checkpointer.close()
    return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("decay", [0.7, 0.0, 0.95])
def test_formula(decay):
    trees = [tree_of(step) for step in STEPS]
    result = average_trees(iter(trees), decay)
    close(result, expected(STEPS, decay))
    assert result["a"]["kernel"].dtype == np.float32
    jax.tree.map(np.testing.assert_array_equal, trees[0], tree_of(STEPS[0]))  # left as it was


def test_one_tree_is_held_at_a_time():
    alive = []

    def read():
        for step in STEPS:
            assert [r for r in alive if r() is not None] == []
            tree = tree_of(step)
            alive.append(weakref.ref(tree["a"]["kernel"]))
            yield tree
            del tree

    average_trees(read(), 0.7)
    assert len(alive) == len(STEPS)


def test_trees_that_cannot_be_averaged():
    with pytest.raises(ValueError, match="nothing to average"):
        average_trees([], 0.5)
    with pytest.raises(ValueError, match="key"):
        average_trees([{"a": np.ones(2)}, {"b": np.ones(2)}], 0.5)


def test_raw_parameters_in_order_of_their_steps(run):
    step, params, model_state = average_run(run)
    assert step == 100 and model_state["mean"] == 1000.0
    close(params, expected(STEPS, 0.7))
    step, params, model_state = average_run(run, 0.5, [10, 2])
    assert step == 10 and model_state["mean"] == 100.0
    close(params, expected((2, 10), 0.5))


def test_the_entry_writes_a_run_folder(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(entry, "setup_jax", lambda: None)
    out = tmp_path / "out"
    words = ["average", "--checkpoint", run, "--decay", "0.5", "--steps", "9,100", "--out", out]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    assert entry.main() == 0 and str(out) in capsys.readouterr().out
    step, restored = restore_variables(out)
    assert step == 100 and restored["model_state"]["mean"] == 1000.0
    close(restored["params"], expected((9, 100), 0.5))
    assert (out / "frozen" / "other.safetensors").is_file()
    assert read_config(out).to_dict() == read_config(run).to_dict()
    monkeypatch.setattr(sys, "argv", [*map(str, words[:-1]), str(tmp_path / "b"), "--steps=two"])
    with pytest.raises(ValueError, match="--steps must look like 100,200, got 'two'"):
        entry.main()


@pytest.mark.parametrize(
    "decay, steps, words",
    [
        (1.0, (), "decay must be at least 0 and below 1, got 1.0"),
        (-0.1, (), "decay must be"),
        (0.7, (9,), r"at least two checkpoints, .* offers \[9\]"),
        (0.7, (9, 11), r"no checkpoint of step \[11\]; it keeps \[2, 9, 10, 100\]"),
    ],
)
def test_wrong_settings(run, tmp_path, decay, steps, words):
    with pytest.raises(ConfigError, match=words):
        write_average(run, tmp_path / "out", decay, steps)
    assert not (tmp_path / "out").exists()


def test_runs_that_cannot_be_averaged(run, tmp_path):
    with pytest.raises(CheckpointError, match="is not a run folder"):
        write_average(tmp_path / "nowhere", tmp_path / "out")
    single = write_run(tmp_path / "single", steps=(5,))
    with pytest.raises(ConfigError, match=r"checkpoint\.keep=None"):
        write_average(single, tmp_path / "out")
    lora = write_run(tmp_path / "lora", lora__rank=4)
    with pytest.raises(ConfigError, match=r"LoRA adapters.*--merge"):
        write_average(lora, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"is not empty; choose a new folder"):
        write_average(run, lora)


def test_a_damaged_checkpoint_is_named(tmp_path):
    broken = write_run(tmp_path / "broken", steps=(1, 2))
    for file in (broken / "checkpoints" / "2" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"checkpoints/2 cannot be read"):
        write_average(broken, tmp_path / "out")


@pytest.mark.slow
def test_samples_and_trains_on(tmp_path):
    """Checkpoints as the loop saves them: their average draws images and starts another run."""
    config = small.small_paella(sampler__num_steps=2)
    workdir = prepare_workdir(tmp_path / "run", config)
    small.carry_random_tokenizer(workdir)
    method, optimizer = build_method(config, workdir), make_optimizer(config.optim, pace_of(config))
    checkpointer, drawn = Checkpointer(workdir), []
    for step in (1, 2):
        shapes = jax.eval_shape(method.init, jax.random.key(0))
        params, model_state = small.random_values(shapes, seed=step)
        drawn.append(params)
        checkpointer.save(step, create_state(params, model_state, optimizer, True))
    checkpointer.close()

    out = write_average(workdir, tmp_path / "average")
    averaged = restore_trained(out, read_config(out))
    close(averaged, jax.tree.map(lambda a, b: 0.7 * a + 0.3 * b, *drawn))
    caption = "a large red circle at the top left"
    assert paella_jax.load(out)(caption)[0].size == (32, 32)

    nxt = tmp_path / "next"
    config = settle_config(
        small.config_of("paella:finetune", init_from=out, data__source="shapes", data__spec="tiny"),
        nxt,
    )
    build_method(config, prepare_workdir(nxt, config))
    jax.tree.map(np.testing.assert_array_equal, restore_trained(nxt, config), averaged)
