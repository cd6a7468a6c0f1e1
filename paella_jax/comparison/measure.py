"""Measures trained cells: every sampler with its own best guidance, on the same captions."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.comparison.intervals import packed
from paella_jax.comparison.pictures import MEASURED, keep_drawn
from paella_jax.comparison.rows import Row
from paella_jax.comparison.subject import Clean, Marks, Samples, Subject, marker
from paella_jax.comparison.train import Trained
from paella_jax.comparison.training import Training, cell_name
from paella_jax.comparison.variants import samplers_of
from paella_jax.evaluation.diversity import diversity
from paella_jax.evaluation.frechet import FeatureStatistics, feature_statistics, frechet_distance
from paella_jax.evaluation.kernel_distance import kernel_distance
from paella_jax.evaluation.timing import interleaved
from paella_jax.evaluation.token_cross_entropy import LEVELS, corrupted_token_scores
from paella_jax.evaluation.tuning import Tried, tried_settings, try_all
from paella_jax.evaluation.tuning import best as best_of
from paella_jax.files.atomic import write_atomically
from paella_jax.models.conditioning import ConditionInputs
from paella_jax.pipelines.load import load_tokens
from paella_jax.pipelines.tokens import TokenPipeline
from paella_jax.training.metrics import report

TOKEN_BATCH = 64
SPLITS = ("seen", "heldout")  # of `Samples`: what is scored


class Judge(NamedTuple):
    """What all cells are measured with.

    Attributes:
      subject: marks images.
      samples: captions with their true images, by what they are for.
      real: statistics of real images' features.
      real_features: the features themselves, float [images, features].
      real_against_real: what the true images of the seen captions get, by name of the distance.
    """

    subject: Subject
    samples: Samples
    real: FeatureStatistics
    real_features: np.ndarray
    real_against_real: dict[str, float]


def make_judge(subject: Subject) -> Judge:
    """Captions and real images of a comparison."""
    features = subject.features(subject.real_images())
    samples = subject.samples()
    judge = Judge(subject, samples, feature_statistics(features), features, {})
    return judge._replace(real_against_real=_distances(judge, samples.seen[0]))


def _distances(judge: Judge, images: np.ndarray) -> dict[str, float]:
    """How far images are from real ones, by their features."""
    features = judge.subject.features(images)
    return {
        "frechet": frechet_distance(judge.real, feature_statistics(features)),
        "kernel": kernel_distance(judge.real_features, features),
    }


def measure_network(config: ConfigDict, judge: Judge, group: Sequence[Trained], out: Path) -> None:
    """Writes the rows of one network and corruption, all seeds and samplers, that are not there.

    All seeds use one pipeline, so that its programs are compiled once.
    """
    pipeline: TokenPipeline | None = None
    for trained in group:
        scores: dict[str, Any] | None = None
        for sampler in samplers_of(config, trained.training):
            file = row_file(out, trained, sampler)
            if file.is_file():
                continue
            if pipeline is None or scores is None:
                loaded = load_tokens(trained.workdir)
                if pipeline is None:
                    pipeline = loaded
                pipeline.set_params(loaded.params, loaded.frozen)
                scores = token_scores(pipeline, judge.samples.tokens)
            row = _row(config, judge, pipeline, trained, sampler) | scores
            file.parent.mkdir(parents=True, exist_ok=True)
            if trained.training.seed == config.seeds[0] and not trained.training.variant:
                captions = {name: getattr(judge.samples, name)[1] for name in SPLITS}
                steps = config.measure.main_steps
                kept = file.with_suffix(".npz")
                keep_drawn(kept, pipeline, row, captions, judge.subject, steps)
            write_atomically(file, json.dumps(row, indent=2))
            report(f"measured {row['cell']}, seed {row['seed']}")


def row_file(out: Path, trained: Trained, sampler: str) -> Path:
    """The file that a cell's row is kept in."""
    return out / MEASURED / f"{trained.training.name}_{sampler}.json"


def _row(
    config: ConfigDict, judge: Judge, pipeline: TokenPipeline, trained: Trained, sampler: str
) -> Row:
    training, measure = trained.training, config.measure
    tried = _tune(config, judge, pipeline, sampler)
    best = best_of(tried).settings
    shared: dict[str, Any] = {"sampler": sampler, "batch_size": measure.batch_size, **best}
    by_steps, exact_of, exact_by_steps = {}, {}, {}
    for steps in steps_of(measure, training):
        scores: dict[str, Any] = {"diversity": None, "seconds_per_image": None}
        exact = {}
        for split in SPLITS:
            captions = getattr(judge.samples, split)[1]
            images = _draw(pipeline, captions, **shared, num_steps=steps)
            marks = judge.subject.mark(images, captions)
            exact[split] = _exact_of(marks, captions)
            scores |= _scores(split, marks)
            if split == "seen":
                scores |= _distances(judge, images)
        exact_by_steps[steps] = packed(exact)
        if steps == measure.main_steps:
            exact_of = exact
        by_steps[steps] = scores
    prompts = judge.samples.seen[1][: measure.diversity_prompts]
    options = shared | {"num_steps": measure.main_steps}
    images = _draw(pipeline, prompts, num_images_per_prompt=measure.diversity_images, **options)
    images = images.reshape(len(prompts), measure.diversity_images, *images.shape[1:])
    spread = diversity(images, judge.subject.features)
    by_steps[measure.main_steps]["diversity"] = spread.features
    return {
        "cell": cell_name(training, sampler),
        "corruption": training.corruption,
        "network": training.network,
        "sampler": sampler,
        "variant": training.variant,
        "marked_by": judge.subject.marked_by,
        "seed": training.seed,
        "parameters": trained.size.parameters,
        "flops": trained.size.flops,
        "images_trained": trained.images,
        "train_seconds": trained.seconds,
        "guidance": best["guidance_scale"][1],
        **{name: list(pair) for name, pair in best.items()},
        "by_steps": by_steps,
        "exact_of": exact_of,
        "exact_by_steps": exact_by_steps,
        "tried": [one._asdict() for one in tried],
    }


def steps_of(measure: ConfigDict, training: Training) -> tuple[int, ...]:
    """At how many sampling steps a training is drawn: a variant at the main number alone."""
    return (measure.main_steps,) if training.variant else tuple(measure.steps)


def _tune(config: ConfigDict, judge: Judge, pipeline: TokenPipeline, sampler: str) -> list[Tried]:
    """What every setting of the sampler draws of the tuning captions."""
    shared = {"num_steps": config.measure.main_steps, "batch_size": config.measure.batch_size}
    captions = judge.samples.tuning[1]
    draw = partial(_draw, pipeline, captions, sampler=sampler, **shared)
    settings = tried_settings(config.measure, pipeline.config.cell.corruption, sampler)
    return try_all(settings, draw, marker(judge.subject, captions))


def _draw(pipeline: TokenPipeline, captions: Sequence[str], **options: Any) -> np.ndarray:
    seeds = list(range(len(captions)))
    return pipeline.generate(list(captions), seed=seeds, **options).images


def _scores(split: str, marks: Marks) -> dict[str, float]:
    found = {
        "exact": float(np.mean(marks.exact)),
        "clean": marks.clean,
        "attributes": marks.attributes,
    }
    return {f"{split}_{name}": value for name, value in found.items()}


def _exact_of(marks: Marks, captions: Sequence[str]) -> dict[str, list[bool]]:
    """Caption -> whether each of its images is exact."""
    found: dict[str, list[bool]] = {}
    for caption, right in zip(captions, marks.exact.tolist(), strict=True):
        found.setdefault(caption, []).append(right)
    return found


def token_scores(pipeline: TokenPipeline, clean: Clean) -> dict[str, dict[str, float]]:
    """Cross-entropy and accuracy of corrupted tokens at every level, given the captions."""
    images, captions = clean
    networks, tokens = pipeline.networks, jnp.asarray(pipeline.encode(images))
    keys = jax.vmap(jax.random.key)(jnp.arange(len(captions)))
    inputs = pipeline.condition_inputs(captions, (tokens.shape[1], tokens.shape[2]))

    @jax.jit
    def logits_of(
        params: Any, frozen: Any, inputs: ConditionInputs, tokens: jax.Array, t: jax.Array
    ) -> jax.Array:
        cond = networks.condition(params, frozen, inputs)
        return networks.logits({"params": params["predictor"]}, tokens, t, cond)

    def logits(tokens: jax.Array, t: jax.Array) -> jax.Array:
        parts = []
        for start in range(0, len(captions), TOKEN_BATCH):
            cut = lambda x, start=start: x[start : start + TOKEN_BATCH]
            some = jax.tree.map(cut, inputs)
            parts.append(logits_of(pipeline.params, pipeline.frozen, some, cut(tokens), cut(t)))
        return jnp.concatenate(parts)

    predictor = networks.predictor
    scores = corrupted_token_scores(
        logits,
        tokens,
        keys,
        LEVELS,
        codebook_size=predictor.codebook_size,
        mask_token=predictor.mask_token,
    )
    return {
        "cross_entropy": {level: one["cross_entropy"] for level, one in scores.items()},
        "token_accuracy": {level: one["accuracy"] for level, one in scores.items()},
    }


def measure_speed(config: ConfigDict, judge: Judge, trained: Sequence[Trained]) -> dict[str, float]:
    """Seconds per image of every cell at the main steps: one interleaved run, medians.

    All are drawn at equal guidance, whatever each has chosen, as its price is that of a second
    network's call. A training's seed does not matter: the first one's weights are used.
    """
    measure = config.measure
    seen = judge.samples.seen[1]
    captions = [seen[i % len(seen)] for i in range(measure.speed_images)]
    cells: dict[str, Callable[[], Any]] = {}
    for one in trained:
        training = one.training
        if training.variant or training.seed != config.seeds[0]:
            continue
        pipeline = load_tokens(one.workdir)
        for sampler in config.cells.samplers:
            cells[cell_name(training, sampler)] = partial(
                _draw,
                pipeline,
                captions,
                num_steps=measure.main_steps,
                sampler=sampler,
                guidance_scale=measure.speed_guidance,
                batch_size=measure.batch_size,
            )
    times = interleaved(cells, measure.speed_rounds)
    return {name: statistics.median(seconds) / len(captions) for name, seconds in times.items()}


def with_speed(rows: Sequence[Row], speed: Mapping[str, float], steps: int) -> list[Row]:
    """The rows with their cells' seconds per image, each cell's in its first row."""
    timed, left = [], dict(speed)
    for row in rows:
        by_steps = {int(s): dict(one) for s, one in row["by_steps"].items()}
        by_steps[steps]["seconds_per_image"] = left.pop(row["cell"], None)
        timed.append(row | {"by_steps": by_steps})
    return timed
