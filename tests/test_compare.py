"""The comparison: equal budgets, cells that make sense, and a whole small run that resumes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import small

from paella_jax.comparison import plan, search
from paella_jax.comparison import train as train_cells
from paella_jax.comparison.claims import Task, claim, do_together
from paella_jax.comparison.embedded import EmbeddedShapes
from paella_jax.comparison.folder import claim_folder
from paella_jax.comparison.intervals import packed
from paella_jax.comparison.measure import steps_of, with_speed
from paella_jax.comparison.plan import (
    Training,
    check_equal,
    check_measure,
    set_budget,
    size_of,
    training_config,
    trainings,
)
from paella_jax.comparison.progress import progress
from paella_jax.comparison.run import compare
from paella_jax.comparison.search import best_rate, best_whole, has_improved, to_train_whole
from paella_jax.comparison.train import (
    check_finished,
    planned,
    read_trained,
    train_network,
)
from paella_jax.comparison.variants import left_out, samplers_of, variants_of
from paella_jax.config import ConfigError, differing_fields, load_config
from paella_jax.evaluation.captions import scored_samples
from paella_jax.runs.checked_lines import metrics_line
from paella_jax.runs.checkpoint import CheckpointError
from paella_jax.runs.digests import write_noted
from paella_jax.runs.folder import read_config
from paella_jax.training.finish import TRAINED, Stopped
from paella_jax.training.loop import RunResult, TrainingDiverged

RECIPE = str(small.ROOT / "configs/paella.py:tiny")
TINY = (
    "model.codebook_size=32", "model.token_width=16", "model.widths=(32,)", "model.depths=(1,)",
    "text.width=32", "text.hidden_dim=32", "text.num_layers=1", "batch_size=8",
    "transformer.width=16", "transformer.depth=1", "transformer.feed_forward_width=32",
)  # fmt: skip


def comparison(preset="tiny", **overrides):
    texts = [f"--config.{k.replace('__', '.')}={v}" for k, v in overrides.items()]
    config = load_config(str(small.ROOT / f"configs/compare.py:{preset}"), texts)
    config.training = RECIPE if preset == "tiny" else str(small.ROOT / "configs/paella.py:shapes")
    return config


def test_every_combination_is_trained_once_per_seed():
    config = comparison("shapes")
    todo = trainings(config)
    cells = [t for t in todo if not t.variant]
    assert len(set(todo)) == len(todo) and len(cells) == 2 * 3 * 5
    assert [t.seed for t in todo[:6]] == [0] * 6  # an early look sees every network
    names = {t.variant for t in todo}
    assert {"", "2x", "4x", "uniform_density", "no_level"} <= names
    assert sum(t.variant == "2x" for t in todo) == 2 * 3 * 5


def test_equal_flops_times_images():
    """By hand: what a network costs more, it sees fewer of."""
    config = comparison("quick")
    unet, transformer = (Training("mask", name, 0) for name in ("unet", "transformer"))
    reference, other = (training_config(config, t, "") for t in (unet, transformer))
    costs = size_of(reference), size_of(other)
    set_budget(reference, config, costs[0], costs[0])
    set_budget(other, config, costs[1], costs[0])
    assert reference.num_steps * reference.batch_size == config.budget.images
    spent = [c.flops * r.num_steps for c, r in zip(costs, (reference, other), strict=True)]
    assert costs[0].flops != costs[1].flops
    assert abs(spent[0] / spent[1] - 1) < 0.002


def test_the_cells_share_all_but_the_cell():
    config = comparison("quick")
    runs = [training_config(config, Training(c, "unet", 0), "") for c in ("mask", "uniform")]
    for block in ("data", "text", "optim", "model", "transformer"):
        assert runs[0][block].to_dict() == runs[1][block].to_dict()
    assert [r.objective.density for r in runs] == ["cosine", "uniform"]
    assert runs[0].seed == runs[1].seed == 0 and runs[0].text.units == "words"


def test_variants_differ_in_what_they_say():
    config = comparison("quick")
    base, changed = (
        training_config(config, Training("mask", "transformer", 1, name), "")
        for name in ("", "uniform_density")
    )
    assert differing_fields(base, changed) == ["objective.density: 'cosine' -> 'uniform'"]
    assert samplers_of(config, Training("mask", "transformer", 1, "no_level")) == ("confidence",)
    config.variants.no_level = ("gan", "mask", "confidence", ("transformer.time_width=0",))
    with pytest.raises(ConfigError, match=r"no_level is of 'gan': cells\.networks can have"):
        trainings(config)


def test_a_network_s_size_is_traced_once(monkeypatch):
    traced = []
    monkeypatch.setattr(plan, "_known_sizes", {})
    monkeypatch.setattr(plan, "_traced_size", lambda run: traced.append(run) or len(traced))
    config = comparison("quick")
    sizes = [
        plan.size_of(training_config(config, Training("mask", network, seed), ""))
        for seed in (0, 1)
        for network in ("unet", "uvit")
    ]
    assert sizes == [1, 2, 1, 2]
    wider = training_config(config, Training("mask", "unet", 0), "")
    wider.model.widths = (512,)
    assert plan.size_of(wider) == 3


def test_variants_are_drawn_at_the_main_steps_alone():
    measure = comparison("quick").measure
    cell = Training("mask", "unet", 0)
    assert steps_of(measure, cell) == (4, 8, 12, 24)
    assert steps_of(measure, replace(cell, variant="full_loss")) == (12,)


def test_larger_budgets_are_variants():
    config = comparison("quick", budget__multiples="(2.0,)")
    unet = Training("uniform", "unet", 0)
    steps = [
        planned(config, t, Path("x"))[0].num_steps for t in (unet, replace(unet, variant="2x"))
    ]
    assert steps == [2000, 4000]


@pytest.mark.parametrize("preset", ["quick", "folder"])
def test_every_preset_s_cells_are_equal_with_their_budgets(preset):
    """As `compare` checks it before it searches: the numbers of updates differ, as planned."""
    config = comparison(preset, seeds="(0,)")
    cells = [training for training in trainings(config) if not training.variant]
    plans = [(training, planned(config, training, Path("x"))[0]) for training in cells]
    check_equal(plans)
    assert len({run.num_steps for _, run in plans}) == 3


@pytest.mark.parametrize("kind", ["flops", "seconds"])
def test_how_long_is_told_by_what_is_done(kind, tmp_path):
    config = comparison("quick", budget__kind=kind, budget__multiples="(2.0,)")
    cells = [Training("uniform", "unet", 0), Training("uniform", "unet", 0, "2x")]
    plans = [(cell, *planned(config, cell, tmp_path)) for cell in cells]
    assert progress(config, plans, tmp_path) == "0 of 2 trainings are done"
    for training, _, _ in plans:
        folder = tmp_path / "runs" / training.name
        folder.mkdir(parents=True)
        write_noted(folder, TRAINED, json.dumps({"images": 1, "seconds": 900.0}))
        told = progress(config, plans, tmp_path)
        if training == cells[0]:
            left = "the others take one process about 0.5 hours"
            assert told == f"1 of 2 trainings are done; {left}"
    assert told == "2 of 2 trainings are done"


def test_cells_that_differ_elsewhere_are_refused():
    config = comparison("quick")
    todo = [Training("mask", network, 0) for network in ("unet", "uvit")]
    plans = [(t, training_config(config, t, "")) for t in todo]
    check_equal(plans)
    plans[1][1].text.num_layers = 3
    with pytest.raises(
        ConfigError, match=r"(?s)unet_mask_0 and uvit_mask_0 differ.*text.num_layers"
    ):
        check_equal(plans)


@pytest.mark.parametrize(
    "scores, decided",
    [
        ({"1e-3": [2.0, 2.1], "2e-3": [1.5, 1.6]}, True),
        ({"1e-3": [2.0, 2.1], "2e-3": [2.05, 2.04]}, False),
        ({"1e-3": [2.0, 2.1], "2e-3": [float("nan"), 2.0]}, True),
        ({"1e-3": [float("nan")], "2e-3": [float("nan")]}, False),
    ],
)
def test_a_search_that_decided_nothing_is_noticed(scores, decided):
    assert has_improved(scores) is decided


@pytest.mark.slow
def test_equal_parameters():
    config = comparison("quick", budget__kind="parameters")
    unet = size_of(training_config(config, Training("mask", "unet", 0), "")).parameters
    matched = training_config(config, Training("mask", "transformer", 0), "")
    before = training_config(comparison("quick"), Training("mask", "transformer", 0), "")
    assert abs(size_of(matched).parameters / unet - 1) < 0.05
    assert abs(size_of(before).parameters / unet - 1) > 0.2
    config.budget.reference = "transformer"
    transformer = size_of(training_config(config, Training("mask", "transformer", 0), ""))
    matched = training_config(config, Training("mask", "unet", 0), "")
    assert abs(size_of(matched).parameters / transformer.parameters - 1) < 0.1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"budget__kind": "luck"}, "budget.kind must be one of"),
        ({"budget__reference": "uvit", "cells__networks": "('unet',)"}, "none of cells.networks"),
        ({"cells__samplers": "()"}, "cells.samplers is empty"),
        ({"cells__samplers": "('best',)"}, "cell.sampler must be one of random, confidence"),
        ({"cells__networks": "('unet', 'gan')"}, "learning_rate"),
        ({"seeds": "()"}, "seeds is empty"),
        ({"measure__main_steps": 5}, "measure.main_steps 5 must be one of"),
        ({"measure__diversity_images": 1}, "at least 2"),
        ({"measure__guidance": "()"}, "must not be empty"),
        ({"overrides": "('transformer.time_width=0',)"}, "told how many tokens are random"),
        ({"overrides": "('data.source=folder',)"}, "is not a folder of images with captions"),
        ({"overrides": "('nonsense=1',)"}, "unknown config field"),
        ({"tokenizer": "nowhere"}, "is not a run folder"),
        ({"seeds": "(0, 0)"}, "has one twice"),
        ({"search__rates": "(1e-3, 2e-3)", "budget__kind": "seconds"}, "a budget of images"),
        ({"search__rates": "(1e-3,)"}, "at least two different positive rates"),
        (
            {"search__rates": "(1e-3, 2e-3)", "search__fraction": 1.5},
            "search.fraction must be at least 0 and at most 1, got 1.5",
        ),
        ({"budget__images": -5}, "budget.images must be .*at least 1 .*got -5"),
        ({"measure__images": 1}, "measure.images must be at least 8"),
        ({"measure__speed_rounds": 0}, "at least 1"),
        ({"measure__temperature": "(1.0,)"}, "give pairs"),
        ({"measure__steps": "(0, 4)"}, "measure.steps must be .*at least 1"),
        ({"overrides": "('data.image_size=36',)"}, "36 does not fit spec"),
        ({"overrides": "('text.max_length=10',)"}, "words with its end"),
        ({"budget__multiples": "(1.0,)"}, "variant 1x is the cell itself"),
        ({"measure__distinct": True}, "different captions for this part of its heldout split"),
        ({"tokenizer_config": "configs/vqgan.py:shapes"}, "has 1024 codes, the networks 128"),
        ({"tokenizer_config": "configs/resnet_vqgan.py:f8"}, "is an f8 tokenizer"),
    ],
)
def test_senseless_comparisons_end_before_training(change, message, tmp_path):
    with pytest.raises((ConfigError, CheckpointError, KeyError), match=message):
        compare(comparison(**change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_presets_measure_what_they_say():
    for preset in ("shapes", "quick", "tiny"):
        check_measure(comparison(preset))
    assert set(comparison("quick").measure.steps) < set(comparison("shapes").measure.steps)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small.untrained(tmp_path_factory.mktemp("tokenizer"), small.small_vqgan())


def test_a_tokenizer_of_another_codebook_size_ends_before_training(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="has 32 codes, the networks 128"):
        compare(comparison(tokenizer=tokenizer), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_guidance_is_tuned_on_captions_that_are_not_measured():
    for preset, spec in (("quick", "shapes"), ("tiny", "tiny")):
        config = comparison(preset)
        config.measure.images, config.measure.tuning_images = 40, 20
        samples = EmbeddedShapes(spec, config.measure, Path("none")).samples()
        seen, heldout, tuning = (own[1] for own in samples[:3])
        assert [len(seen), len(heldout), len(tuning)] == [40, 40, 2 * 20]
        assert not set(tuning) & (set(seen) | set(heldout)) and not set(seen) & set(heldout)
        assert len(set(tuning)) >= 8 and len(set(seen)) >= 15, preset


def test_real_images_are_of_other_captions_of_the_same_kind():
    """Else the true images are among them, and a mix that differs makes mistakes look better."""
    measure = comparison("quick").measure
    measure.images, measure.real_images = 64, 64
    subject = EmbeddedShapes("shapes", measure, Path("none"))
    real, (images, seen) = subject.real_images(), subject.samples().seen
    pixels = lambda images: {image.tobytes() for image in images}
    assert len(real) == 64 and not pixels(real) & pixels(images)
    two = lambda captions: sum(" and " in text for text in captions)
    others = scored_samples("shapes", "validation", 128, False, True)[1]
    assert others[:64] == seen and abs(two(others[64:]) - two(seen)) < 20


def test_a_rate_that_diverges_counts_against_itself(tmp_path, monkeypatch):
    def diverge(run, workdir):
        raise TrainingDiverged("the loss of step 3 is nan")

    monkeypatch.setattr(search, "train_run", diverge)
    monkeypatch.setattr(search, "go_on_from", lambda *_: None)
    config = comparison(search__rates="(1e-3, 1e-2)")
    trial = search._Trial(config, None, "", tmp_path, Training("mask", "unet", 0), 1e-2, 0.5)
    trial.file.parent.mkdir()
    trial.run()
    scores = search._scored([trial], tmp_path)
    assert scores == {"unet_mask": {"0.01": [math.inf]}} and trial.file.is_file()
    assert best_rate({"0.01": [math.inf], "0.001": [2.0]}) == 0.001
    assert search._finite(scores) == {"unet_mask": {"0.01": [None]}}


def test_variants_of_cells_that_are_not_compared_are_left_out():
    config = comparison("quick", cells__networks="('unet',)", cells__samplers="('random',)")
    names = {name for _, _, name in variants_of(config)}
    assert names == {"masks_alone", "corrupted_loss", "full_loss", "without_level"}
    assert left_out(config) == ["no_level", "uniform_density"]
    config.variants.full_loss = ("unet", "mask", "random", ("data.spec=single",))
    with pytest.raises(ConfigError, match=r"full_loss changes data\.spec=single, which all cells"):
        variants_of(config)


def test_a_variant_of_masks_alone_differs_from_random_tokens_in_them_alone():
    config = comparison("quick")
    masks = training_config(config, Training("mask", "unet", 0, "masks_alone"), "")
    cell = training_config(config, Training("uniform", "unet", 0), "")
    differing = differing_fields(cell, masks)
    assert {text.split(":")[0] for text in differing} == {
        "cell.corruption", "cell.sampler", "objective.loss_positions"
    }  # fmt: skip
    assert "objective.loss_positions: None -> 'all'" in differing, "None is all for random tokens"


def test_a_cell_is_timed_once_whatever_its_seeds():
    rows = [{"cell": "a", "seed": seed, "by_steps": {"2": {"seen_exact": 1.0}}} for seed in (0, 1)]
    timed = with_speed(rows, {"a": 0.5}, 2)
    assert [row["by_steps"][2]["seconds_per_image"] for row in timed] == [0.5, None]


@pytest.fixture(scope="module")
def compared(tokenizer, tmp_path_factory):
    """A whole small comparison: its config, folder and report."""
    config = comparison(
        tokenizer=tokenizer,
        overrides=repr(TINY),
        seeds="(0, 1)",
        cells__networks="('transformer',)",
        budget__reference="transformer",
        cells__corruptions="('mask',)",
        budget__images=16,
        search__rates="(1e-3, 1e-2)",
        search__seeds="(0, 1)",
        search__fraction=0.5,
        measure__steps="(2,)",
        measure__main_steps=2,
        measure__guidance="(2.0,)",
        measure__choice_temperature="((0.5, 0.0),)",
        measure__images=8,
        measure__batch_size=8,
        measure__classifier_steps=2,
    )
    with config.unlocked():
        field = ("transformer", "mask", "confidence", ("transformer.time_width=0",))
        config.variants.no_level = field
    out = tmp_path_factory.mktemp("compared") / "out"
    return config, out, compare(config, out)


@pytest.mark.slow
def test_a_whole_comparison(compared):
    _, _, report = compared
    variants = [row for row in report["rows"] if row["variant"]]
    assert len(report["rows"]) == 2 * 2 + len(variants) and len(variants) == 2
    assert "Variant transformer / mask / confidence / no_level:" in report["verdict"][-1]
    assert "kernel distance of" in " ".join(report["notes"])
    times = [row["by_steps"]["2"]["seconds_per_image"] for row in report["rows"]]
    assert sum(time is not None and time > 0 for time in times) == 2, "one of each cell"
    for row in report["rows"]:
        scores = row["by_steps"]["2"]
        assert 0 <= scores["seen_exact"] <= 1 and scores["frechet"] > 0
        assert scores["diversity"] >= 0 and scores["kernel"] is not None
        assert 0 <= scores["heldout_clean"] <= scores["heldout_exact"]
        assert set(row["cross_entropy"]) == {"10", "30", "50", "70", "90"}
        assert row["images_trained"] >= 8
    for row in report["rows"]:
        ((_, digits),) = row["exact_by_steps"].items()
        assert digits == packed(row["exact_of"])


@pytest.mark.slow
def test_a_comparison_keeps_its_search_and_pictures(compared):
    _, out, _ = compared
    searched = json.loads((out / "search.json").read_text())
    ((pair, by_rate),) = searched["tried"].items()
    assert pair == "transformer_mask" and set(by_rate) == {"0.001", "0.01"}
    assert all(len(values) == 2 for values in by_rate.values())
    assert searched["chosen"][pair] == best_whole(searched["whole"][pair])
    rates = [read_config(run).optim.learning_rate for run in (out / "runs").glob("*_[01]")]
    assert rates == [searched["chosen"][pair]] * 4, "a variant takes the rate of its cell"
    chosen = searched["chosen"][pair]
    for seed in (0, 1):  # the search's own whole training, and one of the comparison
        begun = out / "search" / f"transformer_mask_{seed}_{chosen:g}"
        whole = out / "runs" / f"transformer_mask_{seed}"
        calls = json.loads((whole / "timing.json").read_text())
        assert [call["steps"] for call in calls] == [1, 2], "it went on from its beginning"
        assert read_config(whole).optim.decay_steps == read_config(begun).optim.decay_steps == 2
    assert "Chosen: transformer_mask" in (out / "comparison.md").read_text()
    written = {f"comparison.{ending}" for ending in ("md", "html", "json", "png")}
    written |= {"comparison_samples.png", "comparison_steps.png"}
    assert written <= {f.name for f in out.iterdir()}
    assert sorted(f.name for f in (out / "measured").glob("*.npz")) == [
        "transformer_mask_0_confidence.npz", "transformer_mask_0_random.npz",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_comparison_makes_up_for_what_is_lost(compared):
    config, out, report = compared
    lost = out / "measured" / "transformer_mask_0_random.json"
    kept = out / "measured" / "transformer_mask_0_confidence.json"
    before, stamp = json.loads(lost.read_text()), kept.stat().st_mtime_ns
    runs = {f: f.stat().st_mtime_ns for f in out.glob("runs/*/trained.json")}
    lost.unlink()
    again = compare(config, out)
    assert json.loads(lost.read_text()) == before, "the same cell gives the same numbers"
    assert kept.stat().st_mtime_ns == stamp
    assert {f: f.stat().st_mtime_ns for f in out.glob("runs/*/trained.json")} == runs
    assert again["rows"] == report["rows"]

    recipe = out / "runs" / "transformer_mask_1" / "config.json"
    changed = recipe.read_text().replace('"beta2": 0.98', '"beta2": 0.9')
    write_noted(recipe.parent, recipe.name, changed)
    with pytest.raises(ConfigError, match=r"beta2: 0\.9 -> 0\.98"):
        compare(config, out)
    config.budget.images = 32
    with pytest.raises(ConfigError, match="holds another comparison"):
        compare(config, out)


def test_a_folder_takes_additions_alone(tmp_path):
    config = comparison(tokenizer="t", budget__multiples="(2.0,)", seeds="(0,1)")
    claim_folder(config, tmp_path)
    larger = config.copy_and_resolve_references()
    larger.budget.multiples, larger.seeds = (4.0, 2.0), (0, 1, 2)
    with larger.unlocked():
        larger.variants.other = ("unet", "mask", "random", ("objective.text_drop=0.2",))
    claim_folder(larger, tmp_path)
    claim_folder(larger, tmp_path)
    for name, change in (
        ("budget.multiples", lambda c: c.budget.update(multiples=(2.0,))),
        ("seeds", lambda c: c.update(seeds=(1, 0, 2))),
        ("seeds", lambda c: c.update(seeds=(0, 1))),
        ("variants.other", lambda c: c.variants.update(other=("uvit", "mask", "random", ()))),
        ("budget.images", lambda c: c.budget.update(images=32)),
    ):
        changed = larger.copy_and_resolve_references()
        with changed.unlocked():
            change(changed)
        with pytest.raises(ConfigError, match=rf"(?s)holds another comparison.*{name}"):
            claim_folder(changed, tmp_path)


@pytest.mark.slow
def test_a_budget_in_seconds(tokenizer, tmp_path):
    config = comparison(
        tokenizer=tokenizer, overrides=repr(TINY), budget__kind="seconds", budget__seconds=0.5
    )
    training = Training("mask", "unet", 0)
    run, size = planned(config, training, tokenizer)
    train_network(config, training, run, tmp_path)
    told = json.loads((tmp_path / "runs/unet_mask_0.calibration.json").read_text())
    done = read_trained(training, size, tmp_path)
    assert done.images == 8 * max(round(0.5 / told["seconds_per_step"]), 1)
    check_finished(config, training, run, tmp_path)


def test_a_multiple_of_a_budget_in_seconds(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(train_cells, "_seconds_per_step", lambda run, workdir: 0.1)
    monkeypatch.setattr(train_cells, "train_run", lambda run, workdir: steps.append(run.num_steps))
    config = comparison(
        tokenizer=tokenizer, overrides=repr(TINY), budget__kind="seconds", budget__seconds=5.0,
        budget__multiples="(2.0,)",
    )  # fmt: skip
    steps: list[int] = []
    for variant in ("", "2x"):
        training = Training("mask", "unet", 0, variant)
        train_network(config, training, planned(config, training, tokenizer)[0], tmp_path)
    assert steps == [50, 100]


def test_the_time_of_an_update_leaves_compiling_and_saving_out(tokenizer, tmp_path, monkeypatch):
    def fake_train(run, folder, method):
        assert method.preview is None
        rows = [{"step": 20, "images_per_second": 0.1}, {"step": 40, "images_per_second": 16.0}]
        (folder / "metrics.jsonl").write_text("".join(map(metrics_line, rows)))
        return RunResult(None, 40, seconds=900.0, compile_seconds=60.0, stopped=stopped)

    monkeypatch.setattr(train_cells, "train", fake_train)
    config = comparison(tokenizer=tokenizer, overrides=repr(TINY))
    run, _ = planned(config, Training("mask", "unet", 0), tokenizer)
    workdir, stopped = tmp_path / "runs" / "one", "SIGTERM"
    with pytest.raises(Stopped):
        train_cells._seconds_per_step(run, workdir)
    stopped = ""
    assert train_cells._seconds_per_step(run, workdir) == 8 / 16.0
    assert [file.name for file in workdir.parent.iterdir()] == ["one.calibration.json"]


def test_sigterm_in_the_last_step_ends_the_comparison_and_keeps_the_cell(
    tokenizer, tmp_path, monkeypatch
):
    ended = lambda run, folder, method: RunResult(None, run.num_steps, 1.0, 0.5, stopped="SIGINT")
    monkeypatch.setattr("paella_jax.training.finish.train", ended)
    config, training = (
        comparison(tokenizer=tokenizer, overrides=repr(TINY)),
        Training("mask", "unet", 0),
    )
    run, size = planned(config, training, tokenizer)
    with pytest.raises(Stopped):
        train_network(config, training, run, tmp_path)
    assert read_trained(training, size, tmp_path).images == run.num_steps * 8


def test_processes_share_the_work(tmp_path):
    """Each task is done once, and both return only when all are done."""
    made, lock = [], threading.Lock()

    def work(name):
        time.sleep(0.02)
        with lock:
            made.append(name)
        (tmp_path / name).touch()

    names = [f"task_{i}" for i in range(12)]
    tasks = [Task(n, (tmp_path / n).is_file, partial(work, n)) for n in names]
    with ThreadPoolExecutor(3) as pool:
        done = [pool.submit(do_together, tasks, tmp_path, wait=0.01) for _ in range(3)]
        for one in done:
            one.result()
            assert all(task.done() for task in tasks)
    assert sorted(made) == sorted(names)


def test_claims(tmp_path):
    file = tmp_path / "one"
    with claim(file) as first, claim(file) as second:
        assert first and not second
        assert str(os.getpid()) in file.read_text()
    with pytest.raises(RuntimeError), claim(file):
        raise RuntimeError("the work failed")
    with claim(file) as mine:
        assert mine, "others may try"


def test_the_claim_of_a_killed_process_is_free(tmp_path):
    """Even before anyone has waited for it."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from paella_jax.comparison.claims import claim\n"
        "with claim(Path(sys.argv[1])) as mine: print(mine, flush=True); time.sleep(60)"
    )
    file = tmp_path / "one"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True, cwd=small.ROOT
    )
    try:
        assert other.stdout.readline().strip() == "True"
        with claim(file) as mine:
            assert not mine
        other.kill()
        assert other.stdout.read() == ""  # its end
        with claim(file) as mine:
            assert mine
    finally:
        other.kill()
        other.wait()


def test_the_best_rate_is_the_lowest_mean_of_runs_that_did_not_diverge():
    tried = {"0.001": [1.0, 1.2], "0.002": [0.5, float("nan")], "0.004": [0.9, 1.1]}
    assert best_rate(tried) == 0.004


def test_the_best_beginning_and_lower_rates_while_they_pay_are_trained_whole():
    tried = {"0.004": [1.4], "0.002": [1.0], "0.0005": [1.2], "0.001": [1.1]}
    assert to_train_whole(tried, {}) == [0.001, 0.002]
    assert to_train_whole(tried, {"0.002": [0.5], "0.001": [0.61]}) == []
    assert to_train_whole(tried, {"0.002": [0.5], "0.001": [0.59]}) == [0.0005]
    assert to_train_whole(tried, {"0.002": [0.5], "0.001": [0.4], "0.0005": [0.3]}) == []
    assert best_whole({"0.002": [0.5], "0.001": [0.59]}) == 0.001
    assert best_whole({"0.002": [0.5], "0.001": [0.61]}) == 0.002
    assert to_train_whole({"0.002": [1.0], "0.004": [1.1]}, {}) == [0.002]


def test_of_rates_that_are_about_equal_the_lower_one_is_taken():
    assert best_rate({"0.004": [1.0, 1.0], "0.002": [1.0, 1.01], "0.001": [1.1, 1.1]}) == 0.002
    assert best_rate({"0.004": [1.0, 1.0], "0.002": [1.0, 1.1], "0.001": [1.1, 1.1]}) == 0.004
