"""Scores of a tokenizer, or of Würstchen's Stage B: how well held-back images come back."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from paella_jax.evaluation.image_measures import code_usage
from paella_jax.images.write import save_table
from paella_jax.reports.gathered import Judges, first, gather, keeping
from paella_jax.reports.pair_scores import PairScores
from paella_jax.reports.scored_run import Asked, RoundTrip, Subject, rebuild, shown_of
from paella_jax.reports.scores import (
    Row,
    distances,
    notes_on,
    of_the_images,
    of_the_pairs,
    real_against_real,
    write_report,
)


def score_rebuilding(asked: Asked, subject: Subject, judges: Judges) -> str:
    """Writes scores.json, scores.md and scores.png; returns the table as Markdown.

    Raises:
      ValueError: too few images for a score, or a perceptual file that cannot be used.
    """
    chosen = subject.samples()
    originals = lambda: (subject.held[n]["image"] for n in chosen)
    pairs = PairScores(asked.perceptual)
    counts: np.ndarray | None = None
    if subject.config.method == "vqgan":
        run, counts = _tokenizer(asked)
    else:
        run = _stage_b(asked)

    def watched(images: np.ndarray, count: int, seed: int) -> np.ndarray:
        clipped = np.clip(run(images, count, seed), 0.0, 1.0)
        pairs.add(clipped, images[:count], len(images))
        return clipped

    rebuilt = rebuild(watched, subject.held, chosen, subject.batch)
    shown: list[np.ndarray] = []
    seen = shown_of(len(chosen))
    ours = gather(keeping(rebuilt, shown, seen), judges)
    real = gather(originals(), judges)
    row: Row = {"name": asked.checkpoint.name} | pairs.row()
    if counts is not None:
        usage = code_usage(counts)
        row |= {"codes_used": f"{usage.used} of {usage.codes}", "perplexity": usage.perplexity}
    row |= of_the_images(ours, judges, ()) | distances(ours, real, True) | of_the_pairs(ours, real)
    training, source = None, subject.others
    if source is not None:
        others = first(range(len(source)), len(chosen))
        training = gather((source[n]["image"] for n in others), judges)
    floor = real_against_real(real, training, len(ours)) | of_the_images(real, judges, ())
    asked.out.mkdir(parents=True, exist_ok=True)
    true = [subject.held[chosen[n]]["image"] for n in seen]
    table = np.stack([np.stack(true), np.stack(shown)], axis=1).astype(np.float32) / 255.0
    titles = [f"{value:.1f} dB" for value in np.asarray(pairs.psnr)[seen]]
    save_table(asked.out / "scores.png", table, ["true", "rebuilt"], titles)
    notes = [*notes_on(len(ours), len(real), judges), *subject.notes]
    return write_report(asked.out, [row, floor], notes)


def _tokenizer(asked: Asked) -> tuple[RoundTrip, np.ndarray]:
    """Through a tokenizer and back; the array gets the number of times each code is used."""
    from paella_jax.families.vqgan import load_vqgan_run

    _, model, variables = load_vqgan_run(asked.checkpoint)
    counts = np.zeros(model.codebook_size, np.int64)

    @jax.jit
    def there_and_back(variables: Any, images: Any) -> tuple[Any, Any]:
        tokens = model.apply(variables, images, method="encode_tokens")
        return tokens, model.apply(variables, tokens, method="decode_tokens")

    def run(images: np.ndarray, count: int, seed: int) -> np.ndarray:
        tokens, rebuilt = there_and_back(variables, images)
        some = np.asarray(tokens)[:count].reshape(-1)
        counts[:] += np.bincount(some, minlength=len(counts))
        return np.asarray(rebuilt)[:count]

    return run, counts


def _stage_b(asked: Asked) -> RoundTrip:
    """Through the compressor, Stage B and Stage A, without a caption."""
    from paella_jax.pipelines.load import load_wuerstchen

    pipe = load_wuerstchen(asked.checkpoint)

    def run(images: np.ndarray, count: int, seed: int) -> np.ndarray:
        seeds = list(range(seed, seed + len(images)))
        return pipe.reconstruct(images, seed=seeds).images[:count]

    return run
