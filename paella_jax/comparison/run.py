"""A whole comparison: plan -> tokenizer, classifier -> trainings -> measurements -> report."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from paella_jax.comparison.claims import Task, do_together
from paella_jax.comparison.embedded import EmbeddedShapes
from paella_jax.comparison.folder import claim_folder
from paella_jax.comparison.measure import (
    Judge,
    make_judge,
    measure_network,
    measure_speed,
    row_file,
    with_speed,
)
from paella_jax.comparison.own_images import OwnImages
from paella_jax.comparison.plan import (
    Training,
    check_equal,
    check_measure,
    describe,
    training_config,
    trainings,
)
from paella_jax.comparison.progress import progress
from paella_jax.comparison.report import write_report
from paella_jax.comparison.rows import Row
from paella_jax.comparison.search import CLEAR, check_search, read_search, with_searched_rates
from paella_jax.comparison.subject import Subject
from paella_jax.comparison.train import (
    Trained,
    check_finished,
    check_tokenizer,
    planned,
    read_trained,
    run_folder,
    tokenizer_folder,
    train_network,
    train_tokenizer,
)
from paella_jax.comparison.variants import left_out, samplers_of
from paella_jax.config import ConfigError
from paella_jax.data.build import make_source
from paella_jax.files.atomic import write_atomically
from paella_jax.files.kept import read_kept
from paella_jax.images.plots import check_plots
from paella_jax.training.finish import is_trained, settle
from paella_jax.training.metrics import report


def compare(config: ConfigDict, out: Path) -> dict[str, Any]:
    """Trains and measures every cell, or what is left of it, and writes the report.

    Args:
      config: a config of configs/compare.py.
      out: folder of everything; a second call with the same config goes on where one stopped, or
        divides the work with one that runs. Seeds, budgets and variants may be added.

    Returns:
      The report, as in `comparison.json`.

    Raises:
      ConfigError, CheckpointError: before anything is trained, for settings that make no sense.
      Stopped: by SIGTERM, with everything saved.
    """
    if "measure" not in config:
        raise ConfigError("this is no config of a comparison; give --config compare:quick")
    check_plots()
    check_measure(config)
    check_search(config)
    todo = trainings(config)
    if lacking := left_out(config):
        report(f"not compared, as their cells are not: variants {', '.join(lacking)}")
    subject = _check_all(config, todo, out)
    claim_folder(config, out)
    do_together([*_tokenizer_task(config, out), *subject.prepare()], out)
    if not config.tokenizer:
        settle(tokenizer_folder(config, out))
    first = [t for t in todo if t.seed == config.seeds[0]]
    check_equal([(t, planned(config, t, tokenizer_folder(config, out))[0]) for t in first])
    config = with_searched_rates(config, subject, tokenizer_folder(config, out), out)
    trained = _train_all(config, todo, out)
    judge = make_judge(subject)
    rows = _measure_all(config, judge, trained, out)
    speed = out / "speed.json"
    time_all = lambda: write_atomically(
        speed, json.dumps(measure_speed(config, judge, trained), indent=2)
    )
    do_together([Task("speed", speed.is_file, time_all)], out)
    steps = config.measure.main_steps
    rows = with_speed(rows, read_kept(speed), steps)
    return write_report(rows, out, [*_notes(config, judge), *_search_notes(config, out)], steps)


def _tokenizer_task(config: ConfigDict, out: Path) -> list[Task]:
    """The task of training the tokenizer, none where a trained one is given."""
    if config.tokenizer:
        return []
    finished = partial(is_trained, tokenizer_folder(config, out))
    return [Task("tokenizer", finished, partial(train_tokenizer, config, out))]


def _train_all(config: ConfigDict, todo: list[Training], out: Path) -> list[Trained]:
    tokenizer = tokenizer_folder(config, out)
    plans = [(training, *planned(config, training, tokenizer)) for training in todo]
    report(describe(plans))
    for training, run, _ in plans:
        check_finished(config, training, run, out)
    report(progress(config, plans, out))

    def work(training: Training, run: ConfigDict) -> None:
        train_network(config, training, run, out)
        report(progress(config, plans, out))

    tasks = [
        Task(
            training.name,
            partial(is_trained, run_folder(training, out)),
            partial(work, training, run),
        )
        for training, run, _ in plans
    ]
    do_together(tasks, out)
    return [read_trained(training, size, out) for training, _, size in plans]


def _measure_all(config: ConfigDict, judge: Judge, trained: list[Trained], out: Path) -> list[Row]:
    tasks, found = [], []
    for group in _groups(trained):
        files = [row_file(out, t, s) for t in group for s in samplers_of(config, t.training)]
        name = f"measure_{group[0].training.group}"
        work = partial(measure_network, config, judge, group, out)
        tasks.append(Task(name, partial(_all_there, files), work))
        found += files
    do_together(tasks, out)
    return [read_kept(file) for file in found]


def _all_there(files: list[Path]) -> bool:
    return all(file.is_file() for file in files)


def _check_all(config: ConfigDict, todo: list[Training], out: Path) -> Subject:
    """Builds every training's config once, so that a wrong cell ends here; returns the data."""
    runs = [training_config(config, training, "unknown yet") for training in todo]
    run = runs[0]  # a cell's: variants may not change the data
    make_source(run.data, "train", 0)
    check_tokenizer(config, run)
    if run.data.source == "shapes":
        shapes = EmbeddedShapes(run.data.spec, config.measure, out / "classifier.safetensors")
        shapes.check(run.text)
        return shapes
    own = OwnImages(run.data, config.measure)
    own.check()
    return own


def _groups(trained: list[Trained]) -> list[list[Trained]]:
    """The trainings that differ in their seeds alone."""
    groups: dict[str, list[Trained]] = {}
    for one in trained:
        groups.setdefault(one.training.group, []).append(one)
    return list(groups.values())


def _search_notes(config: ConfigDict, out: Path) -> list[str]:
    chosen = read_search(out).get("chosen", {})
    if not chosen:
        rates = ", ".join(f"{name} {rate:g}" for name, rate in config.learning_rate.items())
        return [f"Learning rates as given, one per network, without a search: {rates}."]
    search = config.search
    tried = ", ".join(f"{rate:g}" for rate in search.rates)
    found = ", ".join(f"{pair} {rate:g}" for pair, rate in chosen.items())
    return [
        f"Learning rates: {tried} for each network and corruption, {len(search.seeds)} seeds, the "
        f"first {search.fraction:.0%} of each training, then the best one, the next lower one, and "
        "lower ones until one is clearly worse trained whole, by cross-entropy on images that are "
        f"not measured (search.json); of rates within {CLEAR:.0%} the lowest. Chosen: {found}. "
        f"The chosen whole training is the comparison's own of seed {search.seeds[0]}, if that is "
        "one of its seeds. Variants and larger budgets have their cell's rate."
    ]


def _notes(config: ConfigDict, judge: Judge) -> list[str]:
    images = f"the {config.budget.reference} sees {config.budget.images:,} images"
    budget = {
        "flops": f"equal forward FLOPs x images; {images}",
        "seconds": f"{config.budget.seconds:.0f} s of updates each",
        "parameters": f"equal images, widths changed to about equal parameters; {images}",
    }[config.budget.kind]
    real = judge.real_against_real
    count = lambda clean: f"{len(clean[1])} ({len(set(clean[1]))} different)"
    own = judge.samples
    return [
        f"Budget: {budget}.",
        f"Seeds: {', '.join(str(seed) for seed in config.seeds)}. Scores are on "
        f"{count(own.seen)} seen and {count(own.heldout)} held-out captions; temperature and "
        f"guidance were chosen for each cell on {count(own.tuning)} others, half of each kind, at "
        f"{config.measure.main_steps} steps, and are the same at other numbers of steps. Masked "
        "cells with the confidence sampler have choice temperatures to choose from besides.",
        f"{judge.subject.note()} From {config.measure.real_images} images of other captions the "
        f"true images of the seen captions are at a Fréchet distance of {real['frechet']:.2f} and "
        f"a kernel distance of {real['kernel']:.2f}: what a perfect network would get.",
        f"Seconds per image are at guidance {config.measure.speed_guidance:g} for every cell.",
    ]
