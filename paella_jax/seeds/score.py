"""Tunes and scores what a seed has trained: the same captions and image seeds for all seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.data.shapes import SCORED, get_spec
from paella_jax.data.shapes_captions import parse_caption
from paella_jax.evaluation.captions import check_lengths, scored_samples
from paella_jax.evaluation.oracle import score_images, summary
from paella_jax.evaluation.tuning import (
    Settings,
    best,
    combinations,
    mean_attributes,
    oracle_mark,
    tried_settings,
    try_all,
)
from paella_jax.files.atomic import write_atomically
from paella_jax.files.kept import read_kept
from paella_jax.pipelines.load import load, load_tokens
from paella_jax.reports.stages import compare_decoders
from paella_jax.reports.task_scores import score_tasks
from paella_jax.seeds.plan import Seed
from paella_jax.training.finish import TRAINED
from paella_jax.training.metrics import report

TASKS = "tasks"  # the rows of a seed's image tasks
BATCH = 32  # of sampling: it divides the default numbers of images, so that programs are few
GUIDANCE = (1.0, 1.5, 2.0, 3.0, (1.0, 1.5), (1.0, 3.0))  # a pair rises over the steps
TEMPERATURE = ((1.0, 1.0), (0.7, 0.3), (0.5, 0.5))
# What is tried beside the run's own settings. Of token predictors, with both corruptions:
TOKENS = ConfigDict(
    {
        "guidance": GUIDANCE,
        "temperature": TEMPERATURE,
        "choice_temperature": ((0.0, 0.0), (0.5, 0.0), (2.0, 0.0)),
    }
)
SECOND_SCALE = {
    "super_resolution_guidance": (1.0, 2.0, (1.0, 3.0)),
    "super_resolution_temperature": TEMPERATURE,
}
STAGE_C = {
    "guidance_scale": (1.5, 3.0, 5.0),
    "stepper": ("ddpm", "ddim", "dpm++"),
    "num_steps": (12, 30),
}

Images = tuple[np.ndarray, list[str]]


class Measured(NamedTuple):
    """What all seeds are scored on.

    Attributes:
      spec: variant of the embedded data.
      splits: "seen" and "heldout" -> real images uint8 and their captions.
      tuning: captions of the seen kind, none of which is scored.
    """

    spec: str
    splits: dict[str, Images]
    tuning: list[str]

    def counts(self) -> dict[str, dict[str, float]]:
        """Of each kind: how many captions, how many different ones, and objects in one."""
        kinds = {name: captions for name, (_, captions) in self.splits.items()}
        found = {}
        for name, own in (kinds | {"tuning": self.tuning}).items():
            objects = [len(parse_caption(text, get_spec(self.spec)).objects) for text in own]
            mean = round(float(np.mean(objects)), 2)
            found[name] = {"captions": len(own), "different": len(set(own)), "objects": mean}
        return found


def measured(config: ConfigDict, num_images: int, tuning_images: int) -> Measured:
    """Captions for a run's config, each once as far as the data has so many.

    Raises:
      ConfigError: one is too long for the run.
    """
    spec = config.data.spec
    some = partial(_different, spec)
    splits = {
        name: some(split, num_images, for_tuning=False if name == "seen" else None)
        for name, split in SCORED.items()
    }
    found = Measured(spec, splits, some("validation", tuning_images, for_tuning=True)[1])
    every = [*found.tuning, *(text for _, captions in splits.values() for text in captions)]
    check_lengths(every, config.text)
    return found


def _different(spec: str, split: str, count: int, for_tuning: bool | None) -> Images:
    """Captions of a split, each once if the data has so many."""
    try:
        return scored_samples(spec, split, count, for_tuning, distinct=True)
    except ConfigError:
        return scored_samples(spec, split, count, for_tuning)


def score_seed(seed: Seed, data: Measured, file: Path) -> None:
    """Writes what a seed's finished runs draw, with the preset's sampler and with a tuned one."""
    own, config = seed.trainings, seed.trainings["run"].config
    first = own.get("base", own["run"]).workdir
    options = {"super_resolution": own["run"].workdir} if "base" in own else {}
    pipeline = load(first, **options)
    chosen: Settings = {}
    rounds = []
    for settings in tuning_rounds(config):
        draw = partial(_draw, pipeline, data.tuning, **chosen)
        tried = try_all([{}, *settings], draw, oracle_mark(data.tuning, data.spec))
        rounds.append([one._asdict() for one in tried])
        chosen = chosen | best(tried).settings
    report(f"tuned {seed.name}: {chosen or 'the preset is best'}")
    finished = {n: read_kept(one.workdir / TRAINED) for n, one in own.items()}
    result = {
        "seed": seed.seed,
        "stands_on": seed.stands_on,
        "runs": {name: str(one.workdir) for name, one in own.items()},
        "updates": {name: one.config.num_steps for name, one in own.items()},
        "seconds": {name: one["seconds"] for name, one in finished.items()},
        "tried": rounds,
        "chosen": chosen,
        "preset": _scores(pipeline, data, {}),
        "tuned": _scores(pipeline, data, chosen),
        "ceiling": {name: _ceiling(pipeline, data, name) for name in data.splits},
    }
    if "direct" in own:
        folder, count = file.with_suffix(""), len(data.splits["seen"][1])
        decoded = compare_decoders(own["run"].workdir, own["direct"].workdir, folder, count)
        result["decoders"] = decoded
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(result, indent=2))


def score_seed_tasks(seed: Seed, file: Path) -> None:
    """Writes how well a seed's run does the image tasks, with the settings that a user gets."""
    rows = score_tasks(load_tokens(seed.trainings["run"].workdir))
    report(f"scored the image tasks of {seed.name}")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps({TASKS: rows}, indent=2))


def tuning_rounds(config: ConfigDict) -> list[list[Settings]]:
    """What is tried of a run's sampler; a round keeps what the rounds before have chosen."""
    if config.method == "stage_c":
        return [combinations(STAGE_C)]
    # A super-resolution's own settings come behind those of its base, which is of the same cell.
    base = tried_settings(TOKENS, config.cell.corruption, config.cell.sampler)
    enlarges = config.cell.network == "super_resolution"
    return [base, combinations(SECOND_SCALE)] if enlarges else [base]


def _draw(pipeline: Any, captions: Sequence[str], **settings: Any) -> np.ndarray:
    seeds = list(range(len(captions)))
    return pipeline.generate(list(captions), seed=seeds, batch_size=BATCH, **settings).images


def _scores(pipeline: Any, data: Measured, settings: Settings) -> dict[str, dict[str, float]]:
    scores = {}
    for name, (_, captions) in data.splits.items():
        images = _draw(pipeline, captions, **settings)
        own = summary(score_images(images, captions, data.spec))
        scores[name] = own | {"attributes": round(mean_attributes(own), 4)}
    return scores


def _ceiling(pipeline: Any, data: Measured, name: str) -> float:
    """Exact images among the reconstructions of a split's real ones."""
    images, captions = data.splits[name]
    rebuilt = pipeline.decode(pipeline.encode(images.astype(np.float32) / 255.0))
    return float(summary(score_images(rebuilt, captions, data.spec))["exact"])
