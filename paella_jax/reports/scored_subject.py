"""What a run is scored on: images and captions, and what of its own is compared with them."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from paella_jax.data.build import make_source
from paella_jax.data.loader import Source
from paella_jax.evaluation.distances import LEAST
from paella_jax.evaluation.neighbours import AMONG
from paella_jax.outside import say
from paella_jax.reports.gathered import ScoreError, first
from paella_jax.reports.group_scores import Grouping, grouping
from paella_jax.reports.image_sets import read_prompts
from paella_jax.reports.scored_data import (
    OwnImages,
    check_enough,
    is_own,
    note_on_other_data,
    own_images,
    scored_data,
)
from paella_jax.reports.scored_run import Asked, Subject

DRAWING = ("tokens", "stage_c")
REBUILDING = ("vqgan", "stage_b")
DIRECT = "direct_decoder"
USUAL = 256  # images, where a config does not say how many


def make_subject(asked: Asked, config: ConfigDict) -> Subject:
    """A run with its data, checked before anything is drawn.

    Raises:
      ValueError: no data, too few images for a score, or groups that cannot be had.
    """
    own = config.get("evaluation", ConfigDict())
    grouped = _grouping(asked, own.get("groups", ""), config.method)
    prompts = _prompts(asked)
    data = scored_data(config, asked.data, asked.overrides, grouped.by)
    held, scores_own = make_source(data, "validation", config.seed), is_own(config, data)
    wanted = asked.num_images or own.get("num_images", USUAL)
    batch = min(own.get("batch_size", 64), wanted)
    check_enough(data, len(held), wanted, config.seed, scores_own)
    others = _apart(make_source(data, "train", config.seed), None if scores_own else held)
    known = OwnImages()
    if scores_own:
        known = OwnImages(others)
    elif config.method in DRAWING and asked.training_images:
        known = own_images(config, grouped.by if others is None else "")
    if known.why and others is None:
        if asked.groups:
            raise ScoreError(
                f"--groups {asked.groups} learns from the run's own training images, which cannot "
                f"be had: {known.why}; leave it out, or have it learn from images of the place "
                "that are not scored (--config.data.split=0.5)"
            )
        grouped = Grouping()
    count = min(wanted, len(held))
    notes = _notes_on_data(asked, len(held), count, known, scores_own)
    return Subject(config, held, others, known, count, batch, grouped, notes, prompts)


def _apart(rest: Source, held: Any) -> Source | None:
    """The images of a place that are not scored; None where all are, and so are these too."""
    if held is None:
        return rest
    names = [getattr(source, "records", None) for source in (rest, held)]
    first_of = [None if records is None else records.name(0) for records in names]
    return None if first_of[0] == first_of[1] else rest


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


def _notes_on_data(asked: Asked, held: int, count: int, known: OwnImages, own: bool) -> list[str]:
    """What a reader has to know of the data; told at once too, before hours of drawing.

    Args:
      asked: of the scores.
      held: images that can be scored, of which `count` are.
      count: of those.
      known: the run's own images.
      own: whether those are scored.
    """
    notes = []
    if asked.num_images and asked.num_images > held:
        notes.append(f"{asked.num_images} images were asked for; there are {held} to score.")
    if known.why:
        notes.append(
            f"The run's own training images cannot be had ({known.why}): near copies and the "
            "nearest training image are left out."
        )
    if known.training is not None:
        notes.append(note_on_other_data(asked.checkpoint, len(known.training), own))
    if known.held is not None and len(known.held) < AMONG <= count:
        notes.append(
            f"The search for copies needs {AMONG} images that the run's own data holds back, there "
            f"are {len(known.held)}: it is left out."
        )
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
