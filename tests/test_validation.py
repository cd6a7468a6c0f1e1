"""The validation loss: the objective on held-back samples, the same ones whenever it is asked."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from PIL import Image

from paella_jax.data.build import make_source
from paella_jax.noise.tokens import sample_keys
from paella_jax.objectives.inputs import StepInputs
from paella_jax.registry import build_method
from paella_jax.runs.folder import prepare_workdir, read_metrics
from paella_jax.training import validation
from paella_jax.training.loop import train
from paella_jax.training.optim import make_optimizer, pace_of
from paella_jax.training.placing import place, shard_batch
from paella_jax.training.sharding import make_mesh, replicated
from paella_jax.training.state import create_state
from paella_jax.training.validation import CHANCE, with_validation

NAMES = {"validation_loss", "validation_loss_noised", "validation_accuracy",
         "validation_accuracy_noised"}  # fmt: skip


def config_of(**overrides):
    return small.small_paella(
        **{"log__validation_images": 20, "log__preview_images": 0, "batch_size": 8} | overrides
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    prepare_workdir(workdir, config_of())
    small.carry_random_tokenizer(workdir)
    return workdir


def measured(config, workdir, seed=0):
    """What a preview of a state with random weights gives, and the batches that it saw."""
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        method = build_method(config, workdir)
        shapes = jax.eval_shape(method.init, jax.random.key(0))
        params, model_state = small.random_values(shapes, seed)
        optimizer = make_optimizer(config.optim, pace_of(config))
        state = place(create_state(params, model_state, optimizer, False), replicated(mesh))
        frozen = place(method.frozen, replicated(mesh))
        return method.validation(state, frozen), method, state, frozen


def test_it_is_the_objective_on_whole_batches_of_held_back_samples(folder):
    # One thread, so that samples are asked for in the order of their batches.
    config = config_of(model__dropout=0.0, text__dropout=0.0, data__threads=1)
    scores, method, state, frozen = measured(config, folder)
    assert set(scores) == NAMES and method.preview is None
    seen = []  # 20 samples in three batches of 8
    assert method.held().split == "validation"

    def note(sample):
        seen.append(sample)
        return method.transform(sample)

    again = with_validation(config, replace(method, transform=note))
    with jax.set_mesh(make_mesh(config.mesh)):
        assert again.validation(state, frozen) == scores
    assert len(seen) >= 24
    losses = []
    for number in range(3):
        rows = [method.transform(one) for one in seen[8 * number : 8 * number + 8]]
        batch = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
        base = jax.random.fold_in(jax.random.key(config.seed + CHANCE), number)
        keys = sample_keys(base, jnp.arange(8))
        # With dropout switched on: the rates are 0, so that nothing is dropped.
        inputs = StepInputs(batch, keys, state.step, state.model_state, frozen)
        losses.append(float(jax.jit(method.objective)(state.eval_params, inputs)[0]))
    assert scores["validation_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_nothing_is_dropped(folder):
    dropping = config_of(model__dropout=0.9, text__dropout=0.9)
    found = [measured(config, folder)[0] for config in (dropping, config_of(model__dropout=0.0))]
    assert found[0] == found[1]
    assert found[0] != measured(dropping, folder, seed=1)[0]


def test_few_samples_fill_one_micro_batch(folder, monkeypatch):
    """They come again where a batch needs more, and no more batches are made of them."""
    config = config_of(optim__accumulation=2, log__validation_images=1000)
    _, method, state, frozen = measured(config_of(), folder)
    few, batches = [method.held()[n] for n in range(3)], []

    def note(local, size, mesh):
        batches.append(len(local["image"]))
        return shard_batch(local, size, mesh)

    monkeypatch.setattr(validation, "shard_batch", note)
    known = with_validation(config, replace(method, held=lambda: few))
    with jax.set_mesh(make_mesh(config.mesh)):
        assert set(known.validation(state, frozen)) == NAMES
    assert batches == [4]


def test_a_run_that_is_resumed_writes_what_the_whole_one_wrote(folder, tmp_path):
    rows = {}
    for name, lengths in (("whole", [4]), ("cut", [2, 4])):
        for steps in lengths:
            config = config_of(num_steps=steps, log__preview_every=2)
            prepare_workdir(tmp_path / name, config)
            if not (tmp_path / name / "frozen").exists():
                small.carry_random_tokenizer(tmp_path / name)
            train(config, tmp_path / name, build_method(config, tmp_path / name))
        lines = read_metrics(tmp_path / name / "metrics.jsonl")
        rows[name] = {row["step"]: row for row in lines if "validation_loss" in row}
    assert set(rows["whole"]) == {2, 4} and rows["whole"].keys() == rows["cut"].keys()
    for step, row in rows["whole"].items():
        assert row["validation_loss"] == rows["cut"][step]["validation_loss"]
    assert rows["whole"][2]["validation_loss"] != rows["whole"][4]["validation_loss"]


def test_without_samples_or_a_meaning_there_is_none(folder):
    config = config_of()
    method = build_method(config_of(log__validation_images=0), folder)
    assert method.validation is None and with_validation(config, method).validation is not None
    training = make_source(config.data, "train", config.seed)
    for changes in ({"held": list}, {"validates": False}, {"held": lambda: training}):
        assert with_validation(config, replace(method, **changes)).validation is None


def test_a_folder_too_small_to_hold_images_back_has_none(tmp_path):
    for number in range(12):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a red circle")
    for count, there in ((12, False), (40, True)):
        for number in range(12, count):
            Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
            (tmp_path / f"{number}.txt").write_text("a red circle")
        config = config_of(data__source="folder", data__folder=tmp_path)
        sources = [make_source(config.data, split, 0) for split in ("validation", "train")]
        assert validation._are_the_same(*sources) != there


@pytest.mark.parametrize("failing", ["preview", "validation"])
def test_one_that_fails_does_not_take_the_other_with_it(folder, tmp_path, failing, capsys):
    config = config_of(num_steps=1)
    prepare_workdir(tmp_path, config)
    small.carry_random_tokenizer(tmp_path)

    def fail(*_):
        raise OSError("a damaged shard")

    method = build_method(config, tmp_path)
    method = replace(method, **{"preview": lambda *_: {"seen": 1.0}, failing: fail})
    train(config, tmp_path, method)
    row = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert (set(row) >= NAMES) == (failing == "preview")
    assert ("seen" in row) == (failing == "validation")
    assert f"{failing} of step 1 failed" in capsys.readouterr().out
