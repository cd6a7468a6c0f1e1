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
from paella_jax.comparison.pictures import keep_drawn
from paella_jax.comparison.rows import Row
from paella_jax.comparison.train import Trained
from paella_jax.comparison.training import cell_name
from paella_jax.comparison.variants import samplers_of
from paella_jax.evaluation.captions import scored_samples
from paella_jax.evaluation.classifier import ClassifierFeatures
from paella_jax.evaluation.diversity import diversity
from paella_jax.evaluation.frechet import FeatureStatistics, feature_statistics, frechet_distance
from paella_jax.evaluation.kernel_distance import kernel_distance
from paella_jax.evaluation.oracle import score_images, summary
from paella_jax.evaluation.timing import interleaved
from paella_jax.evaluation.token_cross_entropy import LEVELS, corrupted_token_scores
from paella_jax.evaluation.tuning import best, mean_attributes, tried_settings, try_all
from paella_jax.files.atomic import write_atomically
from paella_jax.models.conditioning import ConditionInputs
from paella_jax.pipelines.tokens import TokenPipeline, load_tokens
from paella_jax.sampling.schedule import first_and_last
from paella_jax.training.metrics import report

TOKEN_BATCH = 64


Clean = tuple[np.ndarray, list[str]]


class Judge(NamedTuple):
    """What all cells are measured with.

    Attributes:
      spec: variant of the embedded data.
      classifier: trained on real images.
      real: statistics of real images' features.
      real_features: the features themselves, float [images, features].
      seen: captions with combinations that training has.
      heldout: captions with combinations that training never has.
      tuning: captions for choosing guidance, of the seen kind; none of them is in `seen`.
      clean: images uint8 and captions whose tokens are corrupted.
      real_against_real: what the true images of the seen captions get, by name of the distance.
    """

    spec: str
    classifier: ClassifierFeatures
    real: FeatureStatistics
    real_features: np.ndarray
    seen: list[str]
    heldout: list[str]
    tuning: list[str]
    clean: Clean
    real_against_real: dict[str, float]


def make_judge(config: ConfigDict, spec: str, classifier: ClassifierFeatures) -> Judge:
    """Captions and real images of a comparison."""
    measure = config.measure
    images, _ = scored_samples(spec, "validation", measure.real_images, for_tuning=False)
    features = classifier.features(images)
    seen, heldout, tuning = measured_captions(config, spec)
    true, _ = scored_samples(spec, "validation", measure.images, False, measure.distinct)
    clean = scored_samples(spec, "validation", measure.token_images, for_tuning=False)
    judge = Judge(
        spec, classifier, feature_statistics(features), features, seen, heldout, tuning, clean, {}
    )
    return judge._replace(real_against_real=_distances(judge, true))


def _distances(judge: Judge, images: np.ndarray) -> dict[str, float]:
    """How far images are from real ones, by their features."""
    features = judge.classifier.features(images)
    return {
        "frechet": frechet_distance(judge.real, feature_statistics(features)),
        "kernel": kernel_distance(judge.real_features, features),
    }


def measured_captions(config: ConfigDict, spec: str) -> tuple[list[str], list[str], list[str]]:
    """Captions seen, held out and for tuning: all different, where `measure.distinct` is set.

    Raises:
      ConfigError: the data has too few captions for one of them.
    """
    measure = config.measure
    draw = partial(scored_samples, spec, distinct=measure.distinct)
    return (
        draw("validation", measure.images, for_tuning=False)[1],
        draw("heldout", measure.images)[1],
        draw("validation", measure.tuning_images, for_tuning=True)[1],
    )


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
                scores = token_scores(pipeline, judge.clean)
            row = _row(config, judge, pipeline, trained, sampler) | scores
            file.parent.mkdir(parents=True, exist_ok=True)
            if trained.training.seed == config.seeds[0] and not trained.training.variant:
                captions = {"seen": judge.seen, "heldout": judge.heldout}
                steps = config.measure.main_steps
                kept = file.with_suffix(".npz")
                keep_drawn(kept, pipeline, row, captions, judge.spec, steps)
            write_atomically(file, json.dumps(row, indent=2))
            report(f"measured {row['cell']}, seed {row['seed']}")


def row_file(out: Path, trained: Trained, sampler: str) -> Path:
    """The file that a cell's row is kept in."""
    return out / "cells" / f"{trained.training.name}_{sampler}.json"


def _row(
    config: ConfigDict, judge: Judge, pipeline: TokenPipeline, trained: Trained, sampler: str
) -> Row:
    training, measure = trained.training, config.measure
    best = _tune(config, judge, pipeline, sampler)
    shared: dict[str, Any] = {"sampler": sampler, "batch_size": measure.batch_size, **best}
    by_steps, exact_of, exact_by_steps = {}, {}, {}
    for steps in measure.steps:
        options = shared | {"num_steps": steps}
        seen = _draw(pipeline, judge.seen, **options)
        heldout = _draw(pipeline, judge.heldout, **options)
        drawn_of = {"seen": (seen, judge.seen), "heldout": (heldout, judge.heldout)}
        exact = {n: _exact_of(*both, judge.spec) for n, both in drawn_of.items()}
        exact_by_steps[steps] = packed(exact)
        if steps == measure.main_steps:
            exact_of = exact
        by_steps[steps] = {
            **_scores("seen", seen, judge.seen, judge.spec),
            **_scores("heldout", heldout, judge.heldout, judge.spec),
            **_distances(judge, seen),
            "diversity": None,
            "seconds_per_image": None,
        }
    prompts = judge.seen[: measure.diversity_prompts]
    options = shared | {"num_steps": measure.main_steps}
    images = _draw(pipeline, prompts, num_images_per_prompt=measure.diversity_images, **options)
    images = images.reshape(len(prompts), measure.diversity_images, *images.shape[1:])
    spread = diversity(images, judge.classifier.features)
    by_steps[measure.main_steps]["diversity"] = spread.features
    return {
        "cell": cell_name(training, sampler),
        "corruption": training.corruption,
        "network": training.network,
        "sampler": sampler,
        "variant": training.variant,
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
        "guidance_tried": [list(first_and_last("guidance", w)) for w in measure.guidance],
    }


def _tune(
    config: ConfigDict, judge: Judge, pipeline: TokenPipeline, sampler: str
) -> dict[str, Any]:
    """The sampler's settings with the most exact matches on the tuning captions."""
    shared = {"num_steps": config.measure.main_steps, "batch_size": config.measure.batch_size}
    draw = partial(_draw, pipeline, judge.tuning, sampler=sampler, **shared)
    settings = tried_settings(config.measure, pipeline.config.cell.corruption, sampler)
    return best(try_all(settings, draw, judge.tuning, judge.spec)).settings


def _draw(pipeline: TokenPipeline, captions: Sequence[str], **options: Any) -> np.ndarray:
    seeds = list(range(len(captions)))
    return pipeline.generate(list(captions), seed=seeds, **options).images


def _scores(split: str, images: np.ndarray, captions: Sequence[str], spec: str) -> dict[str, float]:
    scores = summary(score_images(images, captions, spec))
    found = {name: scores[name] for name in ("exact", "clean")}
    found["attributes"] = mean_attributes(scores)
    return {f"{split}_{name}": value for name, value in found.items()}


def _exact_of(images: np.ndarray, captions: Sequence[str], spec: str) -> dict[str, list[bool]]:
    """Caption -> whether each of its images is exact."""
    found: dict[str, list[bool]] = {}
    exact = score_images(images, captions, spec).exact_images.tolist()
    for caption, right in zip(captions, exact, strict=True):
        found.setdefault(caption, []).append(right)
    return found


def tuning_tokens(spec: str, count: int) -> Clean:
    """Images and captions of the seen kind that nothing is measured on."""
    return scored_samples(spec, "validation", count, for_tuning=True)


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
        return networks.logits(params, tokens, t, cond)

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
    captions = [judge.seen[i % len(judge.seen)] for i in range(measure.speed_images)]
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
