"""Measures trained cells: every sampler with its own best guidance, on the same captions."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.comparison.plan import cell_name
from paella_jax.comparison.train_cells import Trained
from paella_jax.data.sources import ShapesSource
from paella_jax.evaluation.classifier import ClassifierFeatures
from paella_jax.evaluation.comparison_rows import Row
from paella_jax.evaluation.diversity import diversity
from paella_jax.evaluation.frechet import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
)
from paella_jax.evaluation.shapes_report import score_images, summary
from paella_jax.evaluation.timing import interleaved
from paella_jax.evaluation.token_cross_entropy import LEVELS, corrupted_token_scores
from paella_jax.models.conditioning import ConditionInputs
from paella_jax.pipeline import TokenPipeline, load_tokens
from paella_jax.training.checkpoint import write_atomically
from paella_jax.training.metrics import report

MEASURED_SEED, TUNING_SEED = 101, 102  # of the captions; the same for every cell
ATTRIBUTES = ("color", "shape", "size", "position")
TOKEN_BATCH = 64


class Judge(NamedTuple):
    """What all cells are measured with.

    Attributes:
      spec: of the data.
      classifier: trained on real images.
      real: statistics of real images' features.
      seen: captions with combinations that training has.
      heldout: captions with combinations that training never has.
      tuning: captions for choosing guidance, of the seen kind.
      clean: images uint8 and captions whose tokens are corrupted.
    """

    spec: str
    classifier: ClassifierFeatures
    real: FeatureStatistics
    seen: list[str]
    heldout: list[str]
    tuning: list[str]
    clean: tuple[np.ndarray, list[str]]


def make_judge(config: ConfigDict, spec: str, classifier: ClassifierFeatures) -> Judge:
    """Captions and real images of a comparison."""
    measure = config.measure
    texts = lambda split, count, seed: _samples(spec, split, count, seed)[1]
    real, _ = _samples(spec, "validation", measure.real_images, MEASURED_SEED)
    return Judge(
        spec,
        classifier,
        feature_statistics(classifier.features(real)),
        texts("validation", measure.images, MEASURED_SEED),
        texts("heldout", measure.images, MEASURED_SEED),
        texts("validation", measure.tuning_images, TUNING_SEED),
        _samples(spec, "validation", measure.token_images, MEASURED_SEED),
    )


def _samples(spec: str, split: str, count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    source = ShapesSource(spec, split, count, seed)
    samples = [source[i] for i in range(count)]
    return np.stack([s["image"] for s in samples]), [s["caption"] for s in samples]


def measure_network(config: ConfigDict, judge: Judge, group: Sequence[Trained], out: Path) -> None:
    """Writes the rows of one network and corruption, all seeds and samplers, that are not there.

    The seeds share one pipeline, so that its programs are compiled once.
    """
    pipeline: TokenPipeline | None = None
    for trained in group:
        scores: dict[str, Any] | None = None
        for sampler in config.cells.samplers:
            file = row_file(out, trained, sampler)
            if file.is_file():
                continue
            if pipeline is None or scores is None:
                loaded = load_tokens(trained.workdir)
                if pipeline is None:
                    pipeline = loaded
                pipeline.set_params(loaded.params, loaded.frozen)
                scores = _token_scores(pipeline, judge)
            row = _row(config, judge, pipeline, trained, sampler) | scores
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(row, indent=2))
            report(f"measured {row['cell']}, seed {row['seed']}")


def row_file(out: Path, trained: Trained, sampler: str) -> Path:
    """Where a cell's row is kept."""
    return out / "cells" / f"{trained.training.name}_{sampler}.json"


def _row(
    config: ConfigDict, judge: Judge, pipeline: TokenPipeline, trained: Trained, sampler: str
) -> Row:
    training, measure = trained.training, config.measure
    best = _tune(config, judge, pipeline, sampler)
    shared: dict[str, Any] = {"sampler": sampler, "batch_size": measure.batch_size, **best}
    by_steps = {}
    for steps in measure.steps:
        options = shared | {"num_steps": steps}
        seen = _draw(pipeline, judge.seen, **options)
        heldout = _draw(pipeline, judge.heldout, **options)
        drawn = feature_statistics(judge.classifier.features(seen))
        by_steps[steps] = {
            **_scores("seen", seen, judge.seen, judge.spec),
            **_scores("heldout", heldout, judge.heldout, judge.spec),
            "frechet": frechet_distance(judge.real, drawn),
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
        "cell": cell_name(training.corruption, training.network, sampler),
        "corruption": training.corruption,
        "network": training.network,
        "sampler": sampler,
        "seed": training.seed,
        "parameters": trained.size.parameters,
        "flops": trained.size.flops,
        "images_trained": trained.images,
        "train_seconds": trained.seconds,
        "guidance": best["guidance_scale"],
        "temperature": list(best["temperature"]),
        "by_steps": by_steps,
    }


def _tune(
    config: ConfigDict, judge: Judge, pipeline: TokenPipeline, sampler: str
) -> dict[str, Any]:
    """The temperature and guidance with the most exact matches on the tuning captions.

    Mean attributes decide between equal ones, then the smaller guidance.
    """
    measure = config.measure

    def quality(temperature: tuple[float, float], guidance: float) -> tuple[float, ...]:
        images = _draw(
            pipeline,
            judge.tuning,
            num_steps=measure.main_steps,
            temperature=temperature,
            guidance_scale=guidance,
            sampler=sampler,
            batch_size=measure.batch_size,
        )
        scores = _scores("seen", images, judge.tuning, judge.spec)
        return scores["seen_exact"], scores["seen_attributes"], -guidance

    pairs = [(t, float(g)) for t in measure.temperature for g in measure.guidance]
    temperature, guidance = max(pairs, key=lambda pair: quality(*pair))
    return {"temperature": temperature, "guidance_scale": guidance}


def _draw(pipeline: TokenPipeline, captions: Sequence[str], **options: Any) -> np.ndarray:
    seeds = list(range(len(captions)))
    return pipeline.generate(list(captions), seed=seeds, **options).images


def _scores(split: str, images: np.ndarray, captions: Sequence[str], spec: str) -> dict[str, float]:
    scores = summary(score_images(images, captions, spec))
    attributes = float(np.mean([scores[name] for name in ATTRIBUTES]))
    return {f"{split}_exact": scores["exact"], f"{split}_attributes": attributes}


def _token_scores(pipeline: TokenPipeline, judge: Judge) -> dict[str, dict[str, float]]:
    """Cross-entropy and accuracy of corrupted tokens at every level, given the captions."""
    images, captions = judge.clean
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


def measure_speed(
    config: ConfigDict, judge: Judge, rows: Sequence[Row], trained: Sequence[Trained]
) -> dict[str, float]:
    """Seconds per image of every cell at its main steps: one interleaved run, medians.

    The first seed stands for all.
    """
    measure = config.measure
    captions = [judge.seen[i % len(judge.seen)] for i in range(measure.speed_images)]
    first = {t.training.name: t for t in trained if t.training.seed == config.seeds[0]}
    loaded = {name: load_tokens(one.workdir) for name, one in first.items()}
    variants = {}
    for row in rows:
        if row["seed"] != config.seeds[0]:
            continue
        name = f"{row['network']}_{row['corruption']}_{row['seed']}"
        variants[row["cell"]] = partial(
            _draw,
            loaded[name],
            captions,
            num_steps=measure.main_steps,
            sampler=row["sampler"],
            temperature=tuple(row["temperature"]),
            guidance_scale=row["guidance"],
            batch_size=measure.batch_size,
        )
    times = interleaved(variants, measure.speed_rounds)
    return {cell: statistics.median(seconds) / len(captions) for cell, seconds in times.items()}


def with_speed(rows: Sequence[Row], speed: Mapping[str, float], steps: int) -> list[Row]:
    """The rows with the seconds per image of their cells."""
    timed = []
    for row in rows:
        by_steps = {int(s): dict(one) for s, one in row["by_steps"].items()}
        by_steps[steps]["seconds_per_image"] = speed[row["cell"]]
        timed.append(row | {"by_steps": by_steps})
    return timed
