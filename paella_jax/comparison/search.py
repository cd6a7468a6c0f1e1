"""The same short search of the learning rate for every network and corruption.

A rate found with one corruption serves another badly: the networks are at a knife edge. So each
pair begins its training at every rate and keeps the one with the lowest cross-entropy of corrupted
tokens on images that are not measured. What begins is the training as it will be: short runs whose
rate falls to zero ask for rates at which a long one never reads its captions. `search.json` has all
of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from paella_jax.comparison.claims import Task, do_together
from paella_jax.comparison.measure import token_scores
from paella_jax.comparison.subject import Subject
from paella_jax.comparison.train import planned, train_run
from paella_jax.comparison.training import Training
from paella_jax.config import ConfigError
from paella_jax.files.atomic import write_atomically
from paella_jax.pipelines.tokens import load_tokens
from paella_jax.training.metrics import report

FILE = "search.json"
LEAST_GAIN = 0.01  # of the cross-entropy, between the worst rate and the best
TIE = 0.02  # of the cross-entropy: less does not tell two rates apart
Scores = dict[str, dict[str, list[float]]]  # pair -> rate -> a cross-entropy per seed


def check_search(config: ConfigDict) -> None:
    """Raises ConfigError for a search that could not choose."""
    search = config.search
    if not search.rates:
        return
    if len(set(search.rates)) < 2 or min(search.rates) <= 0:
        raise ConfigError(
            f"search.rates {search.rates} must be at least two different positive rates, or empty "
            "to train with learning_rate as it stands"
        )
    if config.budget.kind == "seconds":
        raise ConfigError(
            "a search takes a part of a budget of images; with budget.kind=seconds set "
            "--config.search.rates=() and learning_rate"
        )
    if not search.seeds or not 0 < search.fraction <= 1:
        raise ConfigError("search needs seeds, and a fraction of the training in (0, 1]")


def with_searched_rates(
    config: ConfigDict, subject: Subject, tokenizer: Path, out: Path
) -> ConfigDict:
    """The config with a learning rate of its own for every network and corruption.

    Args:
      config: of the comparison; unchanged where `search.rates` is empty.
      subject: of the comparison.
      tokenizer: run folder.
      out: of the comparison; the short runs are in `search/`.
    """
    search = config.search
    if not search.rates:
        return config
    pairs = [(n, c) for n in config.cells.networks for c in config.cells.corruptions]
    files, tasks = {}, []
    for network, corruption in pairs:
        for rate in search.rates:
            for seed in search.seeds:
                training = Training(corruption, network, seed)
                file = out / "search" / f"{training.name}_{rate:g}.json"
                files[training, rate] = file
                work = partial(_try, config, training, rate, subject, tokenizer, file)
                tasks.append(Task(f"search_{file.stem}", file.is_file, work))
    do_together(tasks, out)
    scores: Scores = {}
    for (training, rate), file in files.items():
        own = scores.setdefault(pair_name(training), {}).setdefault(f"{rate:g}", [])
        own.append(json.loads(file.read_text())["cross_entropy"])
    return _settle(config, scores, out)


def pair_name(training: Training) -> str:
    """Network and corruption, which share a learning rate."""
    return f"{training.network}_{training.corruption}"


def _try(
    config: ConfigDict,
    training: Training,
    rate: float,
    subject: Subject,
    tokenizer: Path,
    file: Path,
) -> None:
    run, _ = planned(config, training, tokenizer)
    run.optim.learning_rate = rate
    run.optim.decay_steps = run.num_steps
    run.num_steps = max(round(run.num_steps * config.search.fraction), 1)
    run.checkpoint.every = run.num_steps
    workdir = file.with_suffix("")
    train_run(run, workdir)
    pipeline = load_tokens(workdir)
    levels = token_scores(pipeline, subject.search_tokens())["cross_entropy"]
    mean = float(np.mean(list(levels.values())))
    write_atomically(file, json.dumps({"cross_entropy": mean, "steps": run.num_steps}))


def _settle(config: ConfigDict, scores: Scores, out: Path) -> ConfigDict:
    """Chooses, writes search.json, and warns of rates at an end of the grid."""
    chosen = {pair: best_rate(by_rate) for pair, by_rate in scores.items()}
    rates = sorted(config.search.rates)
    for pair, rate in chosen.items():
        if rate in (rates[0], rates[-1]):
            report(f"warning: {pair} is best at {rate:g}, an end of search.rates: widen it")
        if not has_improved(scores[pair]):
            report(
                f"warning: the search of {pair} did not decide: all rates end within "
                f"{LEAST_GAIN:.0%} of each other; give it a larger search.fraction"
            )
    write_atomically(out / FILE, json.dumps({"tried": scores, "chosen": chosen}, indent=2))
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for pair, rate in chosen.items():
            config.learning_rate[pair] = rate
    return config


def best_rate(by_rate: Mapping[str, list[float]]) -> float:
    """The lowest rate whose mean over the seeds is about the best one's (within `TIE`).

    The beginning of a training favours high rates, so the lower of two equals is taken. A run that
    diverged counts as infinite.
    """
    mean = lambda values: float(np.mean([v if np.isfinite(v) else np.inf for v in values]))
    means = {float(rate): mean(values) for rate, values in by_rate.items()}
    best = min(means.values())
    return min(rate for rate, value in means.items() if value <= (1 + TIE) * best)


def has_improved(by_rate: Mapping[str, list[float]]) -> bool:
    """Whether the best rate's cross-entropy is clearly below the worst one's."""
    means = [float(np.mean(values)) for values in by_rate.values()]
    known = [mean for mean in means if np.isfinite(mean)]
    if len(known) < len(means):
        return bool(known)  # some diverged, some did not
    return min(known) < (1 - LEAST_GAIN) * max(known)


def read_search(out: Path) -> dict[str, Any]:
    """What was tried and chosen; empty where nothing was."""
    file = out / FILE
    return json.loads(file.read_text()) if file.is_file() else {}
