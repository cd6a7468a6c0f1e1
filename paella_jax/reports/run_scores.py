"""Scores of a run on real images: drawn with held-back captions, or reconstructed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from paella_jax.data.loader import Source
from paella_jax.images.write import save_table
from paella_jax.pipelines.load import load
from paella_jax.reports.gathered import (
    Gathered,
    Judges,
    ScoreError,
    first,
    gather,
    keeping,
)
from paella_jax.reports.group_scores import Said, learn_groups
from paella_jax.reports.score_curves import draw_curves
from paella_jax.reports.scored_run import (
    AXES,
    Asked,
    Subject,
    draw,
    images_of,
    rebuild,
    shown_of,
)
from paella_jax.reports.scored_subject import DIRECT, DRAWING, REBUILDING, make_subject
from paella_jax.reports.scores import (
    Row,
    distances,
    notes_on,
    of_copies,
    of_the_images,
    of_the_pairs,
    real_against_real,
    write_report,
)
from paella_jax.reports.tokenizer_scores import score_rebuilding
from paella_jax.runs.folder import read_config

TRAINING_SEED = 2**20  # of the first training image that is rebuilt; drawn ones have 0, 1, ...


def score_run(asked: Asked, judges: Judges) -> str:
    """Writes scores.json, scores.md and scores.png, and with axes curves.json and curves.png.

    Returns:
      The table as Markdown.

    Raises:
      ValueError: a run that draws and rebuilds nothing, no data, or too few images for a score.
    """
    config = read_config(asked.checkpoint)
    check_method(asked.checkpoint, config.method)
    _check(asked, config.method)
    subject = make_subject(asked, config)
    if config.method in REBUILDING:
        return score_rebuilding(asked, subject, judges)
    return _score_drawing(asked, subject, judges)


def check_method(checkpoint: str | Path, method: str) -> None:
    """Raises ScoreError where a run cannot be scored by itself."""
    if method == DIRECT:
        raise ScoreError(
            f"{checkpoint} holds a run of method {method!r}, which decodes what a Stage C draws "
            "and is scored beside one: give a Stage C run on the embedded data, and this one with "
            f"it (--checkpoint STAGE_C --direct {checkpoint})"
        )
    if method not in (*DRAWING, *REBUILDING):
        raise ScoreError(
            f"{checkpoint} holds a run of method {method!r}, which makes no images; give one of "
            f"{', '.join((*DRAWING, *REBUILDING))}"
        )


def _check(asked: Asked, method: str) -> None:
    if unknown := sorted(set(asked.axes) - set(AXES)):
        raise ScoreError(f"--curve knows {' and '.join(AXES)}, not {', '.join(unknown)}")
    if method in REBUILDING and (asked.axes or asked.prompts):
        raise ScoreError(f"--curve and --prompts are for runs that draw, this is a {method!r}")
    if method in DRAWING and asked.perceptual:
        raise ScoreError("--perceptual compares reconstructions; this run draws")


class _Known(NamedTuple):
    """Images of the data: their places in it, what was gathered of them, and what is said."""

    places: list[int]
    images: Gathered
    said: list[Said]


def _look_at(source: Source, places: list[int], judges: Judges, kept: list[np.ndarray]) -> _Known:
    said: list[Said] = []
    images = gather(keeping(images_of(source, places, said), kept, shown_of(len(places))), judges)
    return _Known(places, images, said)


def _look_at_some(source: Source | None, count: int, judges: Judges) -> _Known | None:
    """As many images of a source, evenly spaced; None where there are none, or 0 were asked for."""
    if source is None or not count:
        return None
    return _look_at(source, first(range(len(source)), count), judges, [])


def _score_drawing(asked: Asked, subject: Subject, judges: Judges) -> str:
    options = {"super_resolution": asked.super_resolution} if asked.super_resolution else {}
    pipe = load(asked.checkpoint, **options)
    cut = pipe.cut_text
    shown: list[np.ndarray] = []
    real = _look_at(subject.held, subject.samples(), judges, shown)
    wanted = [Said(cut(one.caption), one.group) for one in real.said]
    own_captions = [one.caption for one in wanted]
    if asked.prompts:
        wanted = [Said(cut(text)) for text in subject.prompts]
    captions = [one.caption for one in wanted]
    if blank := [n for n, text in enumerate(captions) if not text.strip()]:
        raise ScoreError(f"{len(blank)} captions are empty, the first is number {blank[0]}")
    source, marks = subject.own.training, None
    training = _look_at_some(source, asked.training_images, judges)
    others = training
    if subject.others is not source:
        others = _look_at_some(subject.others, asked.training_images, judges)
    if subject.grouping:
        teacher = source if subject.others is None else subject.others
        known = training if others is None else others
        assert known is not None and teacher is not None  # or there is no grouping
        sides = (teacher, TRAINING_SEED)
        rebuild_all = lambda: _rebuilt(pipe, subject, *sides, known, Judges(judges.network))
        marks = learn_groups(subject.grouping, known.images, known.said, wanted, rebuild_all)
    mark = (lambda *_: {}) if marks is None else marks.mark

    drawn: list[np.ndarray] = []
    seen = shown_of(len(captions))
    ours = gather(keeping(draw(pipe, captions, subject.batch), drawn, seen), judges)
    row: Row = {"name": asked.checkpoint.name} | _settings(subject.config)
    paired = not asked.prompts
    row |= of_the_images(ours, judges, captions) | distances(ours, real.images, paired)
    row |= of_the_pairs(ours, real.images) if paired else {}
    row |= mark("drawn", ours, wanted)
    rows, nearest = [row], None
    if training is not None and source is not None:
        # What is usual, images of the run's own data say: others may all be farther away.
        usual = real
        if subject.own.held is not None:
            places = first(range(len(subject.own.held)), subject.count)
            usual = _look_at(subject.own.held, places, judges, [])
        copies, found = of_copies(ours, training.images, usual.images)
        row |= copies
        nearest = [source[training.places[n]]["image"] for n in found[seen]]
    ceiling = _rebuilt(pipe, subject, subject.held, 0, real, judges) if paired else None
    if ceiling is not None:
        scores = _of_a_perfect_predictor(ceiling, real.images, judges)
        rows.append(scores | mark("encoded and decoded", ceiling, real.said))
    floor = real_against_real(real.images, others and others.images, len(ours))
    floor |= of_the_images(real.images, judges, own_captions)
    rows.append(floor | mark("real", real.images, real.said))
    columns = {"drawn": drawn, "true": shown if paired else None, "nearest training": nearest}
    asked.out.mkdir(parents=True, exist_ok=True)
    _save(asked.out / "scores.png", columns, [captions[n] for n in seen])
    more: dict[str, Any] = {}
    if asked.axes:
        more["curves"] = draw_curves(asked, subject, pipe, captions, real.images, judges)
    notes = [*notes_on(len(ours), len(real.said), judges), *subject.notes]
    if marks is not None:
        more["groups"] = marks.report
        notes.append(marks.note())
    return write_report(asked.out, rows, notes, **more)


def _settings(config: ConfigDict) -> Row:
    """Steps and guidance of a run, as a table shows them."""
    guidance = config.sampler.get("guidance_scale")
    ends = list(guidance) if isinstance(guidance, list | tuple) else [guidance]
    shown = " to ".join(f"{x:g}" for x in dict.fromkeys(ends) if x is not None)
    steps = config.sampler.get("num_steps", config.sampler.get("segments"))
    return {"steps": sum(steps) if isinstance(steps, list | tuple) else steps, "guidance": shown}


def _rebuilt(
    pipe: Any, subject: Subject, source: Source, seed: int, known: _Known, judges: Judges
) -> Gathered | None:
    """Images of the data through the run's own decoder; None where nothing encodes them."""
    if not pipe.can_encode:
        return None

    def run(images: np.ndarray, count: int, seed: int) -> np.ndarray:
        # Würstchen's decoder draws, each image with a noise of its own.
        seeds = list(range(seed, seed + len(images)))
        own = {"seed": seeds} if pipe.beside == "latents" else {}
        return np.asarray(pipe.decode(pipe.encode(images), **own))[:count]

    return gather(rebuild(run, source, known.places, subject.batch, seed), judges)


def _of_a_perfect_predictor(rebuilt: Gathered, real: Gathered, judges: Judges) -> Row:
    """The scores of true images through the run's own decoder, which it cannot pass."""
    row: Row = {"name": "true images, encoded and decoded"}
    row |= of_the_images(rebuilt, judges, ())
    return row | distances(rebuilt, real, True) | of_the_pairs(rebuilt, real)


def _save(file: Path, columns: dict[str, list[np.ndarray] | None], captions: Sequence[str]) -> None:
    """A row per caption: what was drawn, the true image, the nearest training image."""
    shown = {title: images for title, images in columns.items() if images}
    side = next(iter(shown.values()))[0].shape
    # A super-resolution run draws larger images than the data has.
    shown = {title: images for title, images in shown.items() if images[0].shape == side}
    count = min(map(len, shown.values()))
    table = np.stack([np.stack(images[:count]) for images in shown.values()], axis=1)
    save_table(file, table.astype(np.float32) / 255.0, list(shown), list(captions[:count]))
