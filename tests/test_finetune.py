"""Training on from another run, fully and with LoRA: start, loss, resume, sharding, loading."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
import small
from flax.traverse_util import flatten_dict
from PIL import Image

import paella_jax
from paella_jax.config import ConfigError
from paella_jax.data.sources import ShapesSource
from paella_jax.families.start import carry_frozen, settle_config
from paella_jax.families.token_training import prepare
from paella_jax.registry import build_method
from paella_jax.runs.checkpoint import Checkpointer, CheckpointError, restore_variables
from paella_jax.runs.derive import restore_trained, save_merged
from paella_jax.runs.digests import write_noted
from paella_jax.runs.folder import prepare_workdir, read_config, read_metrics
from paella_jax.training import sharding
from paella_jax.training.loop import train

CAPTION = "a large red circle at the top left"
LORA = {"lora__rank": 4, "lora__alpha": 8.0}


@pytest.fixture(scope="module")
def base(shared_runs):
    """A run of a few steps, with averaged weights."""
    return shared_runs.trained(small.brief_paella())


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twenty-four captioned images, larger than the network's and not square."""
    folder = tmp_path_factory.mktemp("photos")
    source = ShapesSource("tiny")
    for index in range(24):
        sample = source[index]
        image = Image.fromarray(sample["image"]).resize((56, 44))
        image.save(folder / f"{index:02d}.jpg", quality=95)
        (folder / f"{index:02d}.txt").write_text(sample["caption"])
    return folder


def settled(workdir, init_from, photos, **overrides):
    values = {
        "init_from": init_from, "data__folder": photos, "data__crop": "random",
        "data__resize": 36, "data__flip": True, "num_steps": 30, "optim__learning_rate": 0.01,
        "optim__warmup_steps": 1, "log__every": 1, "log__preview_every": 0,
        "log__preview_images": 2, "log__validation_images": 0, "checkpoint__every": 1000,
    } | overrides  # fmt: skip
    return settle_config(small.config_of("paella:finetune", **values), workdir)


def built(workdir, *arguments, **overrides):
    config = settled(workdir, *arguments, **overrides)
    return config, build_method(config, prepare_workdir(workdir, config))


def run(workdir, *arguments, preview=False, **overrides):
    config, method = built(workdir, *arguments, **overrides)
    if not preview:
        object.__setattr__(method, "preview", None)
    return train(config, workdir, method)


@pytest.fixture(scope="module")
def full_run(base, photos, tmp_path_factory):
    """Thirty steps of all parameters: the folder, its config and the weights it began with."""
    workdir = tmp_path_factory.mktemp("full")
    config, _ = built(workdir, base, photos)
    start = restore_trained(workdir, config)
    assert run(workdir, base, photos).step == 30
    return workdir, config, start


@pytest.fixture(scope="module")
def lora_run(base, photos, tmp_path_factory):
    """Thirty steps of adapters, with the sample grid at the end."""
    workdir = tmp_path_factory.mktemp("lora")
    return workdir, run(workdir, base, photos, preview=True, log__validation_images=8, **LORA)


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), a, b)


def losses(workdir):
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if "loss" in row]
    return [row["step"] for row in rows], np.asarray([row["loss"] for row in rows])


def assert_learned(workdir):
    """The loss at random noise levels is itself noisy: compare averages."""
    steps, values = losses(workdir)
    assert steps == list(range(1, 31))
    assert values[-8:].mean() < values[:4].mean() - 0.1


def averaged(base):
    return restore_variables(base)[1]["params"]


def test_networks_and_settings_come_from_the_other_run(base, photos, tmp_path):
    config, source = settled(tmp_path, base, photos), read_config(base)
    for block in ("model", "text", "clip", "image_encoder", "objective", "sampler"):
        assert config[block].to_dict() == source[block].to_dict(), block
    assert (config.precision, config.data.image_size) == ("float32", 32)
    config = settled(tmp_path, base, photos, model__dropout=0.25, text__pad_to=32)
    assert (config.model.dropout, config.text.pad_to) == (0.25, 32)


def test_a_run_that_is_older_than_a_field_has_what_was_done_then(base, photos, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(base, older)
    stored = json.loads((older / "config.json").read_text())
    for block, name in (("model", "positions"), ("text", "units"), ("text", "values_from")):
        del stored[block][name]
    write_noted(older, "config.json", json.dumps(stored))
    config = settled(tmp_path / "run", older, photos)
    assert (config.model.positions, config.text.units, config.text.values_from) == (
        False, "bytes", "states")  # fmt: skip


def test_full_fine_tuning(base, full_run):
    workdir, config, start = full_run
    assert_same(start, averaged(base))  # already saved, as step 0
    assert_learned(workdir)
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), restore_trained(workdir, config), start
    )
    assert min(jax.tree.leaves(moved)) > 0.0
    assert paella_jax.load(workdir)(CAPTION)[0].size == (32, 32)


def test_the_average_starts_at_the_weights(base, photos, tmp_path):
    built(tmp_path, base, photos, optim__ema_decay=0.9)
    assert_same(restore_variables(tmp_path)[1]["params"], averaged(base))


def test_lora_learns_and_leaves_the_base_alone(base, photos, lora_run):
    workdir, result = lora_run
    assert_learned(workdir)
    assert {path[-1] for path in flatten_dict(result.state.params)} == {"down", "up"}
    assert_same(built(workdir, base, photos, **LORA)[1].frozen["base"], averaged(base))
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    assert count(result.state) < count(averaged(base))
    assert (workdir / "samples" / "step_0000030.png").stat().st_size > 500
    (held,) = [row["validation_loss"] for row in read_metrics(workdir / "metrics.jsonl")
               if "validation_loss" in row]  # fmt: skip
    assert held < losses(workdir)[1][:4].mean() - 0.1


def test_lora_starts_as_the_base(full_run, lora_run):
    """The first loss equals that of full fine-tuning: same weights, data and noise."""
    full, lora = (losses(run[0])[1][0] for run in (full_run, lora_run))
    assert full == pytest.approx(lora, abs=1e-6)


def test_lora_resumes_bitwise_without_the_base_run(base, photos, tmp_path, lora_run):
    elsewhere = tmp_path / "source"
    shutil.copytree(base, elsewhere)
    run(tmp_path / "cut", elsewhere, photos, num_steps=13, **LORA)
    shutil.rmtree(elsewhere)
    resumed = run(tmp_path / "cut", "", photos, num_steps=30, **LORA)
    assert_same(resumed.state, lora_run[1].state)
    assert losses(tmp_path / "cut")[0] == list(range(1, 31))


def test_full_run_resumes_without_the_base_run(base, photos, tmp_path, full_run):
    elsewhere = tmp_path / "source"
    shutil.copytree(base, elsewhere)
    built(tmp_path / "cut", elsewhere, photos)  # stopped before the first step
    shutil.rmtree(elsewhere)
    run(tmp_path / "cut", "", photos)
    assert_same(*(restore_variables(folder)[1] for folder in (tmp_path / "cut", full_run[0])))


def test_lora_run_loads_and_merges(base, lora_run, tmp_path):
    workdir, _ = lora_run
    pipeline = paella_jax.load(workdir)
    tokens = pipeline.generate(CAPTION, seed=3).tokens
    assert_same(jax.device_get(pipeline.params), restore_trained(workdir, read_config(workdir)))
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), pipeline.params, averaged(base))
    changed = flatten_dict(changed)
    adapted = {p for p, x in changed.items() if x}
    assert adapted == {p[:-1] for p in flatten_dict(restore_variables(workdir)[1]["params"])}

    merged = save_merged(workdir, tmp_path / "merged")
    assert not (merged / "frozen" / "base.safetensors").exists()
    assert read_config(merged).lora.rank == 0 and read_config(merged).init_from == ""
    np.testing.assert_array_equal(paella_jax.load(merged).generate(CAPTION, seed=3).tokens, tokens)
    with pytest.raises(ConfigError, match="is not empty"):
        save_merged(workdir, merged)


def test_a_lora_run_can_be_trained_on(photos, lora_run, tmp_path):
    workdir, _ = lora_run
    config, _ = built(tmp_path, workdir, photos)
    assert_same(restore_trained(tmp_path, config), restore_trained(workdir, read_config(workdir)))
    assert not (tmp_path / "frozen" / "base.safetensors").exists()


@pytest.mark.devices(8)
def test_sharded_lora_equals_unsharded(base, photos, tmp_path, monkeypatch, lora_run):
    """Base and adapters cut over fsdp and tensor: the same losses."""
    monkeypatch.setattr(sharding, "MIN_SHARD_SIZE", 64)
    mesh = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
    result = run(tmp_path, base, photos, num_steps=4, **mesh, **LORA)
    cut = [not x.sharding.is_fully_replicated for x in jax.tree.leaves(result.state.params)]
    assert sum(cut) > len(cut) / 2
    np.testing.assert_allclose(losses(tmp_path)[1], losses(lora_run[0])[1][:4], atol=1e-4)


def test_a_given_tokenizer_replaces_the_other_runs(base, photos, tmp_path):
    config = small.small_vqgan()
    vqgan = prepare_workdir(tmp_path / "vqgan", config)
    shutil.copytree(base / "frozen", tmp_path / "frozen")
    from paella_jax.runs.weights import load_tree

    variables = load_tree(base / "frozen" / "vqgan.safetensors")
    codebook = np.flip(variables["params"]["codebook"], 0).copy()
    state = {
        "params": {"vqgan": {**variables["params"], "codebook": codebook}}, "ema_params": {},
        "model_state": {"vqgan": variables["batch_stats"]},
    }  # fmt: skip
    checkpointer = Checkpointer(vqgan)
    checkpointer.save(1, state)
    checkpointer.close()
    _, method = built(tmp_path / "run", base, photos, tokenizer=vqgan, **LORA)
    np.testing.assert_array_equal(method.frozen["vqgan"]["params"]["codebook"], codebook)


def super_resolution_run(workdir, **overrides):
    """An untrained run with both tokenizers in its folder, and its config."""
    config = small.config_of(
        "muse:super_resolution_tiny", model__codebook_size=32, text__width=32, text__num_layers=1,
        super_resolution__width=32, super_resolution__num_heads=2, **overrides,
    )  # fmt: skip
    prepare_workdir(workdir, config)
    return config


def test_super_resolution_runs_carry_the_small_pictures_tokenizer_along(tmp_path):
    base, new = tmp_path / "base", tmp_path / "new"
    super_resolution_run(base, low_tokenizer="somewhere/gone")
    small.carry_random_tokenizer(base)
    small.carry_random_tokenizer(base / "frozen" / "low")
    write = Checkpointer(base)
    write.save(1, {"params": {"a": np.zeros(1)}, "ema_params": {}, "model_state": {}})
    write.close()
    files = lambda run: sorted(
        str(file.relative_to(run)) for file in run.rglob("*vqgan*") if file.is_file()
    )
    whole = files(base)
    assert len(whole) == 4

    finetune = lambda **overrides: settle_config(
        small.config_of("muse:finetune", init_from=base, **overrides), new
    )
    config = finetune()
    assert config.low_tokenizer == "somewhere/gone"
    carry_frozen(config, new)
    prepare(config, new)
    assert files(new) == whole, "nothing is read from where it once came from"

    for overrides, left in (
        ({"tokenizer": "other"}, [name for name in whole if "low" in name]),
        ({"low_tokenizer": "other"}, [name for name in whole if "low" not in name]),
    ):
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        config = finetune(**overrides)
        carry_frozen(config, new)
        assert files(new) == left
        with pytest.raises(CheckpointError, match="other is not a run folder"):
            prepare(config, new)


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"init_from": ""}, r"preset 'finetune' trains on .* --config\.init_from=RUN"),
        ({"init_from": "/nowhere"}, "init_from: /nowhere is not a run folder"),
        ({"model__widths": "(64,)", "text__width": 64},
         r"(?s)other networks.*model\.widths: \(32,\) -> \(64,\)\n  text\.width: 32 -> 64"),
        ({"lora__rank": -2}, "lora.rank must be .*at least 0 .*got -2"),
        ({"lora__rank": 2, "lora__pattern": "nothing"}, "'nothing' fits no matrix"),
        ({"data__folder": "/nowhere"}, "'/nowhere' is not a folder"),
    ],
)  # fmt: skip
def test_clear_errors(base, photos, tmp_path, overrides, words):
    values = {"init_from": base, "photos": photos} | overrides
    if "data__folder" in values:
        values["photos"] = values.pop("data__folder")
    with pytest.raises(ConfigError, match=words):
        built(tmp_path, **values)


def test_another_family_is_refused(photos, tmp_path):
    vqgan = prepare_workdir(tmp_path / "vqgan", small.small_vqgan())
    with pytest.raises(ConfigError, match="holds a run of method 'vqgan', this one is 'tokens'"):
        settled(tmp_path / "run", vqgan, photos)


def test_folder_without_captions(base, photos, tmp_path):
    shutil.copy(photos / "00.jpg", tmp_path)
    with pytest.raises(ConfigError, match="1 images without captions"):
        built(tmp_path / "run", base, tmp_path)


def test_weights_that_do_not_fit_are_listed(base, photos, tmp_path):
    """A folder whose config does not tell the truth."""
    shutil.copytree(base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["model"]["depths"] = [2]
    write_noted(tmp_path / "base", "config.json", json.dumps(config))
    words = r"(?s)does not fit.*down_0_block_3/depthwise/bias: absent -> \[32\]"
    with pytest.raises(ConfigError, match=words):
        built(tmp_path / "run", tmp_path / "base", photos)


def test_lora_needs_a_base_of_its_own_family(tmp_path):
    config = small.small_paella(lora__rank=2)
    workdir = prepare_workdir(tmp_path, config)
    small.carry_random_tokenizer(workdir)
    with pytest.raises(ConfigError, match=r"lora\.rank 2 needs .*init_from=RUN"):
        build_method(config, workdir)


def test_a_config_that_was_never_settled_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="trains on from another run"):
        build_method(small.config_of("paella:finetune"), tmp_path)
