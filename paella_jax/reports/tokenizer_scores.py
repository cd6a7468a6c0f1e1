"""Scores of a tokenizer, or of Würstchen's Stage B: how well held-back images come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from paella_jax.evaluation.estimates import mean_of
from paella_jax.evaluation.image_measures import code_usage, psnr
from paella_jax.images.write import save_table
from paella_jax.reports.gathered import Judges, first, gather, keeping
from paella_jax.reports.scored_run import SHOWN, Asked, RoundTrip, Subject, rebuild
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
    compare = _Comparison(asked.perceptual)
    counts: np.ndarray | None = None
    if subject.config.method == "vqgan":
        run, counts = _tokenizer(asked)
    else:
        run = _stage_b(asked)
    watched = lambda images, count: compare(images, run(images, count))
    rebuilt = rebuild(watched, subject.held, chosen, subject.batch)
    shown: list[np.ndarray] = []
    ours = gather(keeping(rebuilt, shown, SHOWN), judges)
    real = gather(originals(), judges)
    row: Row = {"name": asked.checkpoint.name, "psnr": mean_of(compare.psnr)}
    if compare.lpips:
        row["lpips"] = mean_of(compare.lpips)
    if counts is not None:
        usage = code_usage(counts)
        row |= {"codes_used": f"{usage.used} of {usage.codes}", "perplexity": usage.perplexity}
    row |= of_the_images(ours, judges, ()) | distances(ours, real, True) | of_the_pairs(ours, real)
    others = first(range(len(subject.training)), len(chosen))
    training = gather((subject.training[n]["image"] for n in others), judges)
    floor = real_against_real(real, training, len(ours)) | of_the_images(real, judges, ())
    asked.out.mkdir(parents=True, exist_ok=True)
    true = [subject.held[n]["image"] for n in chosen[: len(shown)]]
    pairs = np.stack([np.stack(true), np.stack(shown)], axis=1).astype(np.float32) / 255.0
    titles = [f"{value:.1f} dB" for value in compare.psnr[: len(shown)]]
    save_table(asked.out / "scores.png", pairs, ["true", "rebuilt"], titles)
    notes = notes_on(len(ours), len(real), judges)
    return write_report(asked.out, [row, floor], notes)


class _Comparison:
    """PSNR and LPIPS of every pair that goes through."""

    def __init__(self, perceptual: str) -> None:
        self.psnr: list[float] = []
        self.lpips: list[float] = []
        self._distance: Callable[..., Any] | None = None
        if perceptual:
            from paella_jax.models.perceptual import load_perceptual, perceptual_distance

            network = load_perceptual(perceptual)
            self._distance = jax.jit(lambda a, b: perceptual_distance(network, a, b))

    def __call__(self, images: np.ndarray, rebuilt: np.ndarray) -> np.ndarray:
        """Takes a batch of originals, and as many of them as count when they came back."""
        clipped, count = np.clip(rebuilt, 0.0, 1.0), len(rebuilt)
        self.psnr += psnr(clipped, images[:count]).tolist()
        if self._distance is not None:
            filled = np.concatenate([clipped, images[count:]])  # one program for all batches
            self.lpips += np.asarray(self._distance(filled, images))[:count].tolist()
        return clipped


def _tokenizer(asked: Asked) -> tuple[RoundTrip, np.ndarray]:
    """Through a tokenizer and back; the array gets the number of times each code is used."""
    from paella_jax.families.vqgan import load_vqgan_run

    _, model, variables = load_vqgan_run(asked.checkpoint)
    counts = np.zeros(model.codebook_size, np.int64)

    @jax.jit
    def there_and_back(variables: Any, images: Any) -> tuple[Any, Any]:
        tokens = model.apply(variables, images, method="encode_tokens")
        return tokens, model.apply(variables, tokens, method="decode_tokens")

    def run(images: np.ndarray, count: int) -> np.ndarray:
        tokens, rebuilt = there_and_back(variables, images)
        some = np.asarray(tokens)[:count].reshape(-1)
        counts[:] += np.bincount(some, minlength=len(counts))
        return np.asarray(rebuilt)[:count]

    return run, counts


def _stage_b(asked: Asked) -> RoundTrip:
    """Through the compressor, Stage B and Stage A, without a caption."""
    from paella_jax.pipelines.load import load_wuerstchen

    pipe = load_wuerstchen(asked.checkpoint)
    seeds = lambda images: list(range(len(images)))
    return lambda images, count: pipe.reconstruct(images, seed=seeds(images)).images[:count]
