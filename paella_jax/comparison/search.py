"""The same short search of the learning rate for every network and corruption.

A rate found with one corruption serves another badly: the networks are at a knife edge. So each
pair begins its training at every rate, with several seeds, and the cross-entropy of corrupted
tokens on images that are not measured tells the best. Beginnings favour high rates, at which some
networks never read their captions to the end; so the best rate and the next lower one are then
trained whole, with the first seed, and lower ones as long as they are not clearly worse. One seed
says little at the edge: a rate is only taken before a lower one where it is better by a fifth. What
was begun is not trained again: whole trainings go on from there. `search.json` has all of it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from paella_jax.comparison.claims import Task, do_together
from paella_jax.comparison.measure import token_scores
from paella_jax.comparison.subject import Subject
from paella_jax.comparison.train import beginning, go_on_from, planned, run_folder, train_run
from paella_jax.comparison.training import Training
from paella_jax.config import ConfigError
from paella_jax.files.atomic import write_atomically
from paella_jax.files.kept import read_kept
from paella_jax.pipelines.load import load_tokens
from paella_jax.training.loop import TrainingDiverged
from paella_jax.training.metrics import report

FILE = "search.json"
LEAST_GAIN = 0.01  # of the cross-entropy, between the worst rate and the best
TIE = 0.02  # of the cross-entropy: less does not tell the beginnings of two rates apart
# The same of whole trainings, of which there is one each. A rate that was better by 16 % with the
# first seed left two other seeds on their plateau (docs/results.md 5).
CLEAR = 0.2
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
      out: of the comparison; the runs of the search are in `search/`.
    """
    search = config.search
    if not search.rates:
        return config
    trial = partial(_Trial, config, subject, tokenizer, out)
    pairs = [(n, c) for n in config.cells.networks for c in config.cells.corruptions]
    # Each pair has one program: processes that begin together compile different ones.
    begun = [
        trial(Training(corruption, network, seed), rate, search.fraction)
        for rate in search.rates
        for seed in search.seeds
        for network, corruption in pairs
    ]
    scores = _scored(begun, out)
    whole: list[_Trial] = []
    found: Scores = {}
    while True:
        next_ones = [
            trial(Training(corruption, network, search.seeds[0]), rate, 1.0)
            for network, corruption in pairs
            for name in [f"{network}_{corruption}"]
            for rate in to_train_whole(scores[name], found.get(name, {}))
        ]
        if not next_ones:
            break
        whole += next_ones
        found = _scored(whole, out)
    return _settle(config, scores, found, whole)


def pair_name(training: Training) -> str:
    """Network and corruption, which share a learning rate."""
    return f"{training.network}_{training.corruption}"


@dataclass(frozen=True)
class _Trial:
    """One training of the search: a rate, and how much of the training."""

    config: ConfigDict
    subject: Subject
    tokenizer: Path
    out: Path
    training: Training
    rate: float
    fraction: float

    @property
    def file(self) -> Path:
        """Its result, beside its run folder of the same name."""
        own = beginning(self.out, self.training, self.rate)
        return own.with_name(f"{own.name}{'_whole' if self.fraction == 1 else ''}.json")

    @property
    def workdir(self) -> Path:
        """Its run folder."""
        return self.file.with_name(self.file.name.removesuffix(".json"))

    def run(self) -> None:
        """Trains and writes the cross-entropy."""
        run, _ = planned(self.config, self.training, self.tokenizer)
        run.optim.learning_rate = self.rate
        if self.fraction < 1:
            run.num_steps = max(round(run.num_steps * self.fraction), 1)
            run.checkpoint.every = run.num_steps
        workdir = self.workdir
        go_on_from(beginning(self.out, self.training, self.rate), workdir)
        found = {"cross_entropy": self._trained(run, workdir), "steps": run.num_steps}
        write_atomically(self.file, json.dumps(found))

    def _trained(self, run: ConfigDict, workdir: Path) -> float | None:
        """Its cross-entropy; None of what diverged, which a rate that is too high may do."""
        try:
            train_run(run, workdir)
        except TrainingDiverged as error:
            report(f"warning: {workdir} diverged, which counts against its rate: {error}")
            return None
        pipeline = load_tokens(workdir)
        levels = token_scores(pipeline, self.subject.search_tokens())["cross_entropy"]
        return float(np.mean(list(levels.values())))

    def adopt(self) -> None:
        """Makes a whole training the comparison's own, which then need not train it again."""
        folder = run_folder(self.training, self.out)
        folder.parent.mkdir(exist_ok=True)
        os.replace(self.workdir, folder)


def _scored(trials: Sequence[_Trial], out: Path) -> Scores:
    do_together([Task(f"search_{t.file.stem}", t.file.is_file, t.run) for t in trials], out)
    scores: Scores = {}
    for trial in trials:
        own = scores.setdefault(pair_name(trial.training), {}).setdefault(f"{trial.rate:g}", [])
        found = read_kept(trial.file, "cross_entropy")["cross_entropy"]
        own.append(math.inf if found is None else found)
    return scores


def _settle(
    config: ConfigDict, scores: Scores, whole: Scores, trials: Sequence[_Trial]
) -> ConfigDict:
    """Chooses, keeps the chosen whole trainings, writes search.json, and warns of ends."""
    out, rates = trials[0].out, sorted(config.search.rates)
    chosen = {pair: best_whole(by_rate) for pair, by_rate in whole.items()}
    for pair, rate in chosen.items():
        if rate in (rates[0], rates[-1]):
            report(f"warning: {pair} is best at {rate:g}, an end of search.rates: widen it")
        if not has_improved(scores[pair]):
            report(
                f"warning: the search of {pair} did not decide: all rates end within "
                f"{LEAST_GAIN:.0%} of each other; give it a larger search.fraction"
            )
    best = [t for t in trials if t.rate == chosen[pair_name(t.training)]]
    own = [t for t in best if t.training.seed in config.seeds]
    there = lambda trial: run_folder(trial.training, out).is_dir
    do_together([Task(f"adopt_{t.file.stem}", there(t), t.adopt) for t in own], out)
    found = {"tried": _finite(scores), "whole": _finite(whole), "chosen": chosen}
    write_atomically(out / FILE, json.dumps(found, indent=2))
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for pair, rate in chosen.items():
            config.learning_rate[pair] = rate
    return config


def _finite(scores: Scores) -> dict[str, dict[str, list[float | None]]]:
    """None for what diverged: JSON has no infinity."""
    known = lambda values: [value if math.isfinite(value) else None for value in values]
    return {pair: {rate: known(own) for rate, own in some.items()} for pair, some in scores.items()}


def to_train_whole(
    by_rate: Mapping[str, list[float]], whole: Mapping[str, list[float]]
) -> list[float]:
    """Which rates to train whole next: none where the best one has a worse one below it.

    First the best rate of the beginnings and the next lower one, then lower ones until one is
    clearly worse.

    Args:
      by_rate: cross-entropies of the beginnings.
      whole: of what was trained whole; empty at first.
    """
    best = best_whole(whole) if whole else best_rate(by_rate)
    lower = [rate for rate in map(float, by_rate) if rate < best]
    tried = {float(rate) for rate in whole}
    wanted = [max(lower), best] if lower else [best]
    return [rate for rate in wanted if rate not in tried]


def best_rate(by_rate: Mapping[str, list[float]], tie: float = TIE) -> float:
    """The lowest rate whose mean over the seeds is about the best one's (within `tie`, a share).

    A run that diverged counts as infinite.
    """
    mean = lambda values: float(np.mean([v if np.isfinite(v) else np.inf for v in values]))
    means = {float(rate): mean(values) for rate, values in by_rate.items()}
    best = min(means.values())
    return min(rate for rate, value in means.items() if value <= (1 + tie) * best)


def best_whole(by_rate: Mapping[str, list[float]]) -> float:
    """The same of whole trainings, one for each rate: a higher rate has to be clearly better."""
    return best_rate(by_rate, CLEAR)


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
    return read_kept(file) if file.is_file() else {}
