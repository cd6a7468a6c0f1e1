"""The loop: resume, accumulation, averages, termination, divergence, damaged checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import small
from PIL import Image

from paella_jax.config import ConfigError, StoppedAtOnce
from paella_jax.data.build import make_source
from paella_jax.families.vqgan_training import vqgan_method
from paella_jax.registry import build_method
from paella_jax.reports import previews
from paella_jax.runs.checkpoint import CheckpointError, restore_variables, stored_tree
from paella_jax.runs.digests import write_noted
from paella_jax.runs.folder import (
    prepare_workdir,
    read_config,
    read_metrics,
    taken_back_if_refused,
)
from paella_jax.runs.whole_steps import complete_steps
from paella_jax.training.loop import TrainingDiverged, _Run, _stop_signals, train
from paella_jax.training.metrics import MetricWriter, check_packages
from paella_jax.training.timing import Clock

SHALLOW = {"model__patterns": "('CT',)"}  # without attention: compiles sooner


def run(workdir, preview=False, **overrides):
    config = small.small_paella(**overrides)
    workdir = prepare_workdir(workdir, config)
    if not (workdir / "frozen").exists():
        small.carry_random_tokenizer(workdir)
    method = build_method(config, workdir)
    if not preview:
        object.__setattr__(method, "preview", None)
    return train(config, workdir, method)


def assert_same_state(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), a, b)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A four-step run, preview included."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, run(workdir, preview=True)


def test_run_folder_holds_everything(finished):
    workdir, result = finished
    assert result.step == 4 and not result.stopped
    assert (workdir / "samples" / "step_0000004.png").stat().st_size > 500
    rows = read_metrics(workdir / "metrics.jsonl")
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == [1, 2, 3, 4]
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
    assert any("preview_exact" in row for row in rows)
    assert read_config(workdir).method == "tokens"


def test_a_preview_that_fails_ends_nothing(tmp_path, capsys):
    """Training goes on, and the last state is saved before the last preview."""
    config = small.small_paella(num_steps=3, log__preview_every=1)
    workdir = prepare_workdir(tmp_path, config)
    small.carry_random_tokenizer(workdir)
    method, seen = build_method(config, workdir), []

    def preview(state, frozen, file):
        seen.append(int(state.step))
        raise ValueError("no caption can be drawn")

    object.__setattr__(method, "preview", preview)
    assert train(config, workdir, method).step == 3
    assert seen == [1, 2, 3] and restore_variables(workdir)[0] == 3
    assert capsys.readouterr().out.count("no caption can be drawn") == 3

    def works(state, frozen, file):
        seen.append(int(state.step))
        file.touch()
        return {"preview_exact": 0.5}

    object.__setattr__(method, "preview", works)
    file = workdir / "metrics.jsonl"
    for count in (1, 1, 2, 2):  # a finished run gets what it lacks, once: the image or its line
        if count == 2 and len(seen) == 4:
            rows = file.read_text().splitlines(keepends=True)
            file.write_text("".join(row for row in rows if "preview_exact" not in row))
        assert train(config, workdir, method).step == 3
        assert seen == [1, 2, 3, *[3] * count]
        assert [r for r in read_metrics(file) if "preview_exact" in r] == [
            {"step": 3, "preview_exact": 0.5}
        ]


def test_a_run_can_be_the_beginning_of_a_longer_one(tmp_path):
    """The rate of `optim.decay_steps` is that of so many steps, whatever part of them is run."""
    options = {"optim__schedule": "cosine", "optim__warmup_steps": 1, "log__every": 1}
    rates = {}
    for name, own in {
        "whole": {"num_steps": 4},
        "beginning": {"num_steps": 3, "optim__decay_steps": 4},
        "shorter": {"num_steps": 3},
    }.items():
        run(tmp_path / name, **own, **options, **SHALLOW)
        rows = read_metrics(tmp_path / name / "metrics.jsonl")
        rates[name] = [row["learning_rate"] for row in rows if "learning_rate" in row]
    assert rates["beginning"] == rates["whole"][:3] != rates["shorter"]


def test_optional_packages_are_looked_for_at_the_start(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_packages(small.small_paella())
    for change, words in (
        ({"log__wandb": "project"}, r"log\.wandb needs: pip install 'paella_jax\[wandb\]'"),
        ({"data__parquet": "photos"}, r"data\.source=parquet needs: .*paella_jax\[data\]"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_packages(small.small_paella(**change))


class FakeTracker:
    """Stands for the modules wandb and tensorboardX, their runs and writers: keeps what it gets."""

    def __init__(self):
        self.calls = []
        self.Image = lambda file: ("image", file)

    def SummaryWriter(self, folder, purge_step):
        self.calls.append(("writer", purge_step))
        return self

    def init(self, **given):
        self.calls.append(("init", given))
        return self

    def __getattr__(self, name):
        return lambda *given, **more: self.calls.append((name, *given, *more.items()))


@pytest.fixture
def fakes(monkeypatch):
    fakes = {name: FakeTracker() for name in ("wandb", "tensorboardX")}
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    return fakes


def test_trackers_get_config_metrics_and_images(tmp_path, fakes):
    """What a call that was killed told of later steps is told again: nothing of it is dropped."""
    config = small.small_paella(log__wandb="project", log__tensorboard=True)
    file = tmp_path / "grid.png"
    Image.new("RGB", (4, 2), "red").save(file)
    ids = []
    # Two folders of one name; the first resumed; one that was begun before ids were drawn.
    for place, step in (("a/run", 0), ("b/run", 0), ("a/run", 3), ("old/run", 3)):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        writer = MetricWriter(tmp_path / place, config, step)
        ((_, given), *_) = fakes["wandb"].calls
        assert given["project"] == "project" and given["resume"] == "allow"
        assert given["config"]["optim"]["learning_rate"] == config.optim.learning_rate
        ids.append(given["id"])
        writer.write(4, {"loss": 1.5})
        writer.show(4, file)
        (axis, axes, logged, shown), events = fakes["wandb"].calls[1:], fakes["tensorboardX"].calls
        assert axis == ("define_metric", "step")
        assert axes == ("define_metric", "*", ("step_metric", "step"))
        assert logged == ("log", {"step": 4, "loss": 1.5})
        assert shown == ("log", {"step": 4, "samples": ("image", str(file))})
        assert events.pop(0) == ("writer", step + 1)
        assert events[0][:2] == ("add_text", "config") and '"learning_rate"' in events[0][2]
        assert events[1] == ("add_scalar", "loss", 1.5, 4)
        assert events[2][:2] == ("add_image", "samples") and events[2][2].shape == (2, 4, 3)
        for fake in fakes.values():
            fake.calls.clear()
    assert ids[0] == ids[2] != ids[1] and ids[3] == "run" != ids[0]


def test_every_training_ends_its_trackers(finished, tmp_path, fakes, monkeypatch):
    """Or the next one of the process would write into the same run of W&B."""
    workdir, told, errors = copy_of(finished, tmp_path), [], []
    shutil.rmtree(workdir / "samples")
    method = build_method(small.small_paella(), workdir)
    object.__setattr__(method, "preview", lambda *_: {"score": 0.5})  # draws nothing

    def ends(steps):
        config = small.small_paella(num_steps=steps, log__wandb="a", log__tensorboard=True)
        with suppress(TrainingDiverged, StoppedAtOnce):
            train(config, workdir, method)
        names = ("finish", "close")
        calls = [call for fake in fakes.values() for call in fake.calls if call[0] in names]
        told.extend(call for call in fakes["wandb"].calls if call[0] == "log")
        for fake in fakes.values():
            fake.calls.clear()
        return calls

    assert ends(4) == [("finish", ("exit_code", 0)), ("close",)]  # whose preview is missing
    assert told == [("log", {"step": 4, "score": 0.5})]

    def steps(self, *_):
        if errors:
            raise errors.pop()
        return finished[1].state, ""

    monkeypatch.setattr(_Run, "steps", steps)
    assert ends(5) == [("finish", ("exit_code", 0)), ("close",)]
    errors.append(TrainingDiverged("loss"))
    assert ends(5) == [("finish", ("exit_code", 1)), ("close",)]
    errors.append(StoppedAtOnce())  # nothing is waited for
    assert ends(5) == []


def test_a_tracker_that_cannot_be_closed_ends_nothing(tmp_path, fakes, capsys):
    def finish(**_):
        raise RuntimeError("no network")

    fakes["wandb"].finish = finish
    config = small.small_paella(log__wandb="a", log__tensorboard=True)
    with MetricWriter(tmp_path, config):
        pass
    assert fakes["tensorboardX"].calls[-1] == ("close",)
    assert "WeightsAndBiases could not be closed: no network" in capsys.readouterr().out


def test_no_images_are_no_preview(tmp_path):
    """Of no method: those that read what they show at the start would fail there."""
    embeddings = np.ones((4, 8), np.float32)
    np.savez(tmp_path / "embeddings.npz", text_embedding=embeddings, image_embedding=embeddings)
    small.carry_random_tokenizer(tmp_path)
    prior = small.config_of("clip_prior:tiny", data__folder=tmp_path, model__clip_width=8)
    for config in (small.small_vqgan(), small.small_paella(), prior):
        assert build_method(config, tmp_path).preview is not None
        config.log.preview_images = 0
        assert build_method(config, tmp_path).preview is None


def test_captions_of_previews_are_cut_and_blank_ones_left_out(tmp_path):
    for index, caption in enumerate(("  ", "a " * 300, "a red circle")):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(caption)
    config = small.small_paella(data__source="folder", data__folder=tmp_path)
    cut = " ".join("a" * (config.text.max_length - 1))
    source = make_source(config.data, "validation", config.seed)
    texts = [sample["caption"] for sample in previews.drawable(config, source)]
    # A folder puts another image in the place of one without a caption.
    assert texts == [cut, cut]
    config.log.preview_images = 3
    shown = [sample["caption"] for sample in previews.drawable(config, source)]
    assert shown == [cut, cut, "a red circle"]


def test_resume_equals_an_uninterrupted_run_bitwise(finished, tmp_path):
    assert run(tmp_path, num_steps=2).step == 2
    resumed = run(tmp_path, num_steps=4)
    assert_same_state(resumed.state, finished[1].state)
    steps = [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl") if "loss" in r]
    assert steps == [1, 2, 3, 4]


def test_a_run_of_no_steps_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="num_steps must be at least 1, got 0"):
        run(tmp_path, num_steps=0)


def test_finished_run_does_nothing_more(finished):
    workdir, result = finished
    again = run(workdir)
    assert again.step == 4 and again.compile_seconds == 0.0
    assert_same_state(again.state.params, result.state.params)


@pytest.mark.devices(8)
def test_accumulation_equals_one_big_batch(tmp_path):
    network = {"network": "transformer", "corruption": "mask"}
    sizes = {"width": 128, "depth": 1, "num_heads": 2, "feed_forward_width": 128}
    settings = {f"cell__{name}": value for name, value in network.items()}
    settings |= {f"transformer__{name}": value for name, value in sizes.items()}
    settings |= {"num_steps": 1, "batch_size": 16, "mesh__data": 1, "mesh__fsdp": -1}
    whole = run(tmp_path / "whole", **settings)
    cut = run(tmp_path / "cut", optim__accumulation=2, **settings)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6)
    # Adam's first moment is the gradient times (1 - beta1): compares gradients, not +-lr steps.
    jax.tree.map(close, whole.state.opt_state[1][0].mu, cut.state.opt_state[1][0].mu)


def test_average_follows_the_parameters(finished):
    _, result = finished
    moved = [
        float(jnp.abs(a - b).max())
        for a, b in zip(
            jax.tree.leaves(result.state.params),
            jax.tree.leaves(result.state.ema_params),
            strict=True,
        )
    ]
    assert max(moved) > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path, number):
    """In the middle: the step is saved and the run goes on from it."""

    def send():
        file = tmp_path / "metrics.jsonl"
        while not (file.is_file() and len(read_metrics(file)) >= 3):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    result = run(tmp_path, num_steps=5000, checkpoint__every=100_000)
    thread.join()
    assert result.stopped == number.name and 3 <= result.step < 5000
    steps = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert steps == [result.step]
    again = run(tmp_path, num_steps=result.step + 1, checkpoint__every=100_000)
    assert again.step == result.step + 1 and not again.stopped


def test_saving_may_use_the_devices(monkeypatch):
    """Older versions of orbax let processes wait for each other by arrays that they send there."""

    class Saves:
        saved: list[int] = []

        def save(self, step, state):
            self.saved.append(step)
            jnp.sin(np.ones(3))

    clock, checkpointer = Clock(), Saves()
    writer = SimpleNamespace(sync=lambda: None)
    watchdog = SimpleNamespace(beat=lambda: None)
    parts = {"data": None, "writer": writer, "progress": None, "clock": clock}
    loop = _Run(None, None, None, checkpointer, watchdog=watchdog, **parts)
    with jax.transfer_guard("disallow"):
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            jnp.sin(np.ones(3))
        loop._save(4, None)
    assert checkpointer.saved == [4]


def test_a_second_interrupt_stops_at_once():
    before = signal.getsignal(signal.SIGINT)  # ignored where a shell started this behind itself
    with pytest.raises(KeyboardInterrupt), _stop_signals() as came:
        signal.raise_signal(signal.SIGINT)
        assert came == ["SIGINT"]
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"optim__schedule": "cosine"}, True),
        ({"optim__schedule": "cosine", "optim__decay_steps": 10}, False),  # ends where it did
        ({"optim__schedule": "constant"}, False),
    ],
)
def test_another_end_of_a_cosine_is_told(tmp_path, capsys, changes, told):
    prepare_workdir(tmp_path, small.small_paella(num_steps=10, **changes))
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    prepare_workdir(tmp_path, small.small_paella(num_steps=20, **changes))
    assert ("goes on from step 4 with num_steps: 10 -> 20" in capsys.readouterr().out) == told


def test_divergence_names_the_step_and_its_advice_works(tmp_path, capsys):
    """The newest checkpoint is from before it; a lower rate that is given goes on from there."""
    wild = {"optim__learning_rate": 1e18, "optim__clip_norm": 0.0} | SHALLOW
    run(tmp_path, num_steps=2, optim__clip_norm=0.0, **SHALLOW)
    rate, before = ["optim.learning_rate"], read_config(tmp_path).optim.learning_rate
    with pytest.raises(
        ConfigError, match=r"(?s)may go on .*--config\.optim\.learning_rate=.*1e\+18"
    ):
        run(tmp_path, num_steps=200, **wild)
    prepare_workdir(tmp_path, small.small_paella(num_steps=200, **wild), rate)
    with pytest.raises(TrainingDiverged, match=r"at step \d+;.* --config\.optim\.learning_rate="):
        run(tmp_path, num_steps=200, **wild)
    step, restored = restore_variables(tmp_path)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(restored["params"]))
    mild = wild | {"optim__learning_rate": 1e-3, "num_steps": step + 1}
    prepare_workdir(tmp_path, small.small_paella(**mild), rate)
    assert f"goes on from step {step} with optim.learning_rate: 1e+18 -> 0.001" in (
        capsys.readouterr().out
    )
    result = run(tmp_path, **mild)
    assert result.step == step + 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result.state.params))
    history = [row["changes"] for row in read_metrics(tmp_path / "history.jsonl")]
    assert [change for line in history for change in line if "rate" in change] == [
        f"optim.learning_rate: {before} -> 1e+18", "optim.learning_rate: 1e+18 -> 0.001",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"batch_size: 8 -> 16"):  # others stay what they are
        prepare_workdir(tmp_path, small.small_paella(**mild, batch_size=16), ["batch_size"])


def copy_of(finished, tmp_path):
    target = tmp_path / "copy"
    shutil.copytree(finished[0], target)
    return target


@pytest.mark.parametrize("lost", ["state/manifest.ocdbt", "_CHECKPOINT_METADATA"])
def test_a_checkpoint_that_lacks_files_is_passed_over(finished, tmp_path, capsys, lost):
    """As a copy that was cut off leaves it: the one before is used, and nothing is deleted."""
    workdir = copy_of(finished, tmp_path)
    (workdir / "checkpoints" / "4" / lost).unlink()
    assert restore_variables(workdir)[0] == 2
    resumed = run(workdir)
    assert "checkpoint 4 lacks files: moved to incomplete/" in capsys.readouterr().out
    assert resumed.step == 4 and complete_steps(workdir) == [2, 4]
    assert [folder.name for folder in (workdir / "incomplete").iterdir()] == ["4"]
    assert_same_state(resumed.state, finished[1].state)


def test_checkpoints_of_which_none_is_whole_end_the_start(finished, tmp_path):
    workdir = copy_of(finished, tmp_path)
    for step in ("2", "4"):
        (workdir / "checkpoints" / step / "state" / "_METADATA").unlink()
    with pytest.raises(CheckpointError, match=r"2, 4 lack files\. Copy them again"):
        run(workdir)


def test_truncated_checkpoint_is_refused(finished, tmp_path):
    workdir = copy_of(finished, tmp_path)
    data = [p for p in (workdir / "checkpoints" / "4" / "state").rglob("*") if p.is_file()]
    for file in data:
        if file.stat().st_size > 500:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"checkpoints/4 cannot be read"):
        run(workdir)
    with pytest.raises(CheckpointError, match="cannot be read"):
        restore_variables(workdir)


def test_the_arrays_of_a_checkpoint_by_orbax_own_list(finished, tmp_path):
    """Those that orbax finds by opening them all; a list that was cut off is told."""
    workdir = copy_of(finished, tmp_path)
    state = workdir / "checkpoints" / "4" / "state"
    with ocp.PyTreeCheckpointer() as reader:
        whole = reader.metadata(state).item_metadata.tree
    found = stored_tree(state)
    for part in ("params", "ema_params"):
        assert jax.tree.structure(found[part]) == jax.tree.structure(whole[part])
    listed = (state / "_METADATA").read_text()
    (state / "_METADATA").write_text(listed[: len(listed) // 2])
    with pytest.raises(
        CheckpointError, match=r"checkpoints/4 cannot be read: state/_METADATA is cut"
    ):
        restore_variables(workdir)


def test_half_written_checkpoint_is_ignored(finished, tmp_path):
    """What kill -9 leaves behind: a temporary folder that is no step."""
    workdir = copy_of(finished, tmp_path)
    (workdir / "checkpoints" / "6.orbax-checkpoint-tmp").mkdir()
    assert run(workdir).step == 4


def test_checkpoint_of_another_model_is_refused(finished, tmp_path):
    workdir = copy_of(finished, tmp_path)
    config = json.loads((workdir / "config.json").read_text())
    config["model"]["depths"] = [2]
    write_noted(workdir, "config.json", json.dumps(config))
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(workdir, model__depths="(2,)")


def test_workdir_of_another_config_is_refused(finished):
    with pytest.raises(ConfigError, match=r"model.depths: \(1,\) -> \(2,\)"):
        run(finished[0], model__depths="(2,)")


def test_a_refused_start_leaves_nothing_behind(tmp_path):
    """But what was there, and what was trained."""
    refused = pytest.raises(ConfigError, match="no")

    def start(name, *made):
        with taken_back_if_refused(tmp_path / name):
            prepare_workdir(tmp_path / name, small.small_paella())
            for file in made:
                (tmp_path / name / file).mkdir(parents=True)
            raise ConfigError("no")

    with refused:
        start("new", "frozen/vqgan")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with refused:
        start("mine", "frozen", "checkpoints")
    prepare_workdir(tmp_path / "run", small.small_paella())
    with refused:
        start("run")
    with refused:
        start("trained", "checkpoints/2")
    left = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    ours = {
        f"{run}/{name}" for run in ("run", "trained") for name in ("config.json", "digests.json")
    }
    assert left == {"mine/notes.txt", *ours}
    assert not (tmp_path / "new").exists() and (tmp_path / "trained/checkpoints/2").is_dir()


def test_a_failed_start_does_not_block_its_folder(tmp_path):
    """Nothing was trained: another config is welcome, and what the first one carried is gone."""
    workdir = prepare_workdir(tmp_path, small.small_paella())
    small.carry_random_tokenizer(workdir)
    prepare_workdir(workdir, small.small_paella(num_steps=9, data__threads=3))
    assert (workdir / "frozen" / "vqgan.json").is_file()  # still what this run would carry
    (workdir / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir(parents=True)
    other = small.small_paella(model__codebook_size=64, tokenizer="/vqgan")
    prepare_workdir(workdir, other)
    assert not (workdir / "frozen").exists()
    assert read_config(workdir).model.codebook_size == 64
    (workdir / "weights.safetensors").write_bytes(b"converted")
    with pytest.raises(ConfigError, match=r"codebook_size: 64 -> 32"):
        prepare_workdir(workdir, small.small_paella())


def test_runs_from_before_a_choice_go_on(finished, tmp_path):
    """Fields that say how a run is carried out and that its config does not have yet."""
    workdir = copy_of(finished, tmp_path)
    config = json.loads((workdir / "config.json").read_text())
    del config["optim"]["gradient_reduction"], config["objective"]["loss_positions"]
    for block in ("model", "transformer", "super_resolution"):
        for name in ("loop", "tied_head"):
            config[block].pop(name, None)
    write_noted(workdir, "config.json", json.dumps(config))
    with pytest.raises(ConfigError, match=r"tied_head: '\(absent\)' -> True"):
        prepare_workdir(workdir, small.small_paella(transformer__tied_head=True))
    prepare_workdir(workdir, small.small_paella())
    assert read_config(workdir).transformer.tied_head is False


def test_where_things_came_from_may_change(finished, tmp_path):
    workdir = copy_of(finished, tmp_path)
    moved = {"data__validation_folder": "/moved", "tokenizer": "/moved", "init_from": "/moved"}
    prepare_workdir(workdir, small.small_paella(**moved))
    assert (workdir / "frozen" / "vqgan.json").is_file()
    assert read_config(workdir).tokenizer == "/moved"
    for field in ("text", "clip"):  # would be another network in the run
        with pytest.raises(ConfigError, match=rf"{field}\.folder: '' -> '/new'"):
            prepare_workdir(workdir, small.small_paella(**{f"{field}__folder": "/new"}, **moved))


def test_metrics_survive_an_interrupted_cut(tmp_path, monkeypatch):
    file = tmp_path / "metrics.jsonl"
    lines = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 6))
    file.write_text(lines)
    config = small.small_paella()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            MetricWriter(tmp_path, config, resume_step=3)
    assert file.read_text() == lines
    MetricWriter(tmp_path, config, resume_step=3)
    assert [row["step"] for row in read_metrics(file)] == [1, 2, 3]


def test_unwritable_workdir(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    with pytest.raises(ConfigError, match="cannot write to workdir"):
        prepare_workdir(file / "run", small.small_paella())


def test_missing_run_folders(tmp_path):
    with pytest.raises(CheckpointError, match="not a run folder"):
        read_config(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoints folder"):
        restore_variables(tmp_path)


def test_vqgan_trains_with_adversary_and_revives_codes(tmp_path):
    config = small.small_vqgan(
        num_steps=6, objective__adversarial_weight=0.01, objective__adversarial_start=3,
        objective__discriminator_depth=3, objective__discriminator_width=32, log__every=1,
        objective__adversarial_loss="hinge", log__preview_images=2,
    )  # fmt: skip
    workdir = prepare_workdir(tmp_path, config)
    result = train(config, workdir, vqgan_method(config))
    rows = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "loss" in r]
    before, after = rows[0], rows[-1]
    plain = lambda r: r["mse"] * 10.0 + r["codebook_loss"] * 1.25
    assert before["loss"] == pytest.approx(plain(before), rel=1e-4)
    assert after["loss"] > plain(after) + 0.1  # the discriminator's hinge is about 1
    assert rows[0]["codes_used"] == 0.0
    codebook = np.asarray(result.state.params["vqgan"]["codebook"])
    assert codebook.std() > 0.1  # drawn from latents, not from U(+-1/codes)


def test_bfloat16_trains(tmp_path):
    result = run(tmp_path, num_steps=1, precision="bfloat16", **SHALLOW)
    assert result.step == 1
    assert {x.dtype for x in jax.tree.leaves(result.state.params)} == {np.dtype("float32")}
