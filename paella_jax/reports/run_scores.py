"""Scores of a run on real images: drawn with held-back captions, or reconstructed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from paella_jax.data.build import make_source
from paella_jax.data.loader import Source
from paella_jax.evaluation.distances import LEAST, check_counts
from paella_jax.images.write import save_table
from paella_jax.outside import say
from paella_jax.pipelines.load import load
from paella_jax.reports.gathered import (
    Gathered,
    Judges,
    ScoreError,
    first,
    gather,
    keeping,
)
from paella_jax.reports.group_scores import Grouping, Said, grouping, learn_groups
from paella_jax.reports.image_sets import read_prompts
from paella_jax.reports.score_curves import draw_curves
from paella_jax.reports.scored_data import is_own, note_on_other_data, scored_data
from paella_jax.reports.scored_run import (
    AXES,
    Asked,
    Subject,
    draw,
    images_of,
    rebuild,
    shown_of,
)
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

DRAWING = ("tokens", "stage_c")
REBUILDING = ("vqgan", "stage_b")
USUAL = 256  # images, where a config does not say how many
TRAINING_SEED = 2**20  # of the first training image that is rebuilt; drawn ones have 0, 1, ...


def score_run(asked: Asked, judges: Judges) -> str:
    """Writes scores.json, scores.md and scores.png, and with axes curves.json and curves.png.

    Returns:
      The table as Markdown.

    Raises:
      ValueError: a run that draws and rebuilds nothing, no data, or too few images for a score.
    """
    config = read_config(asked.checkpoint)
    _check(asked, config.method)
    subject = _subject(asked, config)
    if config.method in REBUILDING:
        return score_rebuilding(asked, subject, judges)
    return _score_drawing(asked, subject, judges)


def _check(asked: Asked, method: str) -> None:
    if method not in (*DRAWING, *REBUILDING):
        raise ScoreError(
            f"{asked.checkpoint} holds a run of method {method!r}, which makes no images; give one "
            f"of {', '.join((*DRAWING, *REBUILDING))}"
        )
    if unknown := sorted(set(asked.axes) - set(AXES)):
        raise ScoreError(f"--curve knows {' and '.join(AXES)}, not {', '.join(unknown)}")
    if method in REBUILDING and (asked.axes or asked.prompts):
        raise ScoreError(f"--curve and --prompts are for runs that draw, this is a {method!r}")
    if method in DRAWING and asked.perceptual:
        raise ScoreError("--perceptual compares reconstructions; this run draws")


def _subject(asked: Asked, config: ConfigDict) -> Subject:
    own = config.get("evaluation", ConfigDict())
    grouped = _grouping(asked, own.get("groups", ""), config.method)
    prompts = _prompts(asked)
    data = scored_data(config, asked.data, asked.overrides, grouped.by)
    data.buckets = ()  # held-back images are squares; training images beside them have to be too
    held, training = (make_source(data, split, config.seed) for split in ("validation", "train"))
    wanted = asked.num_images or own.get("num_images", USUAL)
    batch = min(own.get("batch_size", 64), wanted)
    check_counts(count := min(wanted, len(held)))
    notes = _notes_on_data(asked, len(held), len(training))
    return Subject(config, held, training, count, batch, grouped, notes, prompts)


def _prompts(asked: Asked) -> list[str]:
    """The prompts to draw instead of the held-back captions, evenly spaced where fewer are asked.

    Raises:
      ScoreError: too few for a score, which is better known before they are drawn.
    """
    if not asked.prompts:
        return []
    prompts = read_prompts(asked.prompts)
    chosen = first(prompts, asked.num_images or len(prompts))
    cut = len(chosen) < len(prompts)
    if cut:
        say(f"{len(chosen)} of the {len(prompts)} prompts of {asked.prompts} are drawn")
    if len(chosen) < LEAST:
        raise ScoreError(
            f"--prompts {asked.prompts}: FID and KID need at least {LEAST} prompts, there are "
            f"{len(chosen)} to draw; give more lines" + " or a larger --num_images" * cut
        )
    return list(chosen)


def _notes_on_data(asked: Asked, held: int, training: int) -> list[str]:
    """What a reader has to know of the data; told at once too, before hours of drawing."""
    notes = []
    if asked.num_images and asked.num_images > held:
        notes.append(f"{asked.num_images} images were asked for; the data holds {held} back.")
    if is_own(asked.data, asked.overrides):
        notes.append(note_on_other_data(asked.checkpoint, training))
    notes = [note for note in notes if note]
    for note in notes:
        say(f"warning: {note}")
    return notes


def _grouping(asked: Asked, usual: str, method: str) -> Grouping:
    """What images are marked by: what was asked for, or what the run says where that can be."""
    grouped = grouping(asked.groups or usual)
    wrong = ""
    if method in REBUILDING:
        wrong = f"is for runs that draw, this is a {method!r}"
    elif not asked.training_images:
        wrong = "learns from training images; leave --training_images 0 out"
    elif grouped.by and asked.prompts:
        wrong = "is a field, which --prompts have not; give words of the prompts, as --groups a,b"
    if asked.groups and wrong:
        raise ScoreError(f"--groups {asked.groups} {wrong}")
    return Grouping() if wrong else grouped


class _Known(NamedTuple):
    """Images of the data: their places in it, what was gathered of them, and what is said."""

    places: list[int]
    images: Gathered
    said: list[Said]


def _look_at(source: Source, places: list[int], judges: Judges, kept: list[np.ndarray]) -> _Known:
    said: list[Said] = []
    images = gather(keeping(images_of(source, places, said), kept, shown_of(len(places))), judges)
    return _Known(places, images, said)


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
    training, marks = None, None
    if asked.training_images:
        places = first(range(len(subject.training)), asked.training_images)
        training = _look_at(subject.training, places, judges, [])
    if subject.grouping:
        assert training is not None  # or there is no grouping
        known, sides = training, (subject.training, TRAINING_SEED)
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
    if training is not None:
        copies, found = of_copies(ours, training.images, real.images)
        row |= copies
        nearest = [subject.training[training.places[n]]["image"] for n in found[seen]]
    ceiling = _rebuilt(pipe, subject, subject.held, 0, real, judges) if paired else None
    if ceiling is not None:
        scores = _of_a_perfect_predictor(ceiling, real.images, judges)
        rows.append(scores | mark("encoded and decoded", ceiling, real.said))
    floor = real_against_real(real.images, training and training.images, len(ours))
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
