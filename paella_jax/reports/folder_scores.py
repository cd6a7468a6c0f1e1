"""Scores of a folder of images against a folder of real ones, whoever drew them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from paella_jax.evaluation.distances import check_counts
from paella_jax.reports.gathered import Judges, ScoreError, gather
from paella_jax.reports.image_sets import ImageSet, open_images
from paella_jax.reports.pair_scores import PairScores
from paella_jax.reports.scores import (
    distances,
    notes_on,
    of_the_images,
    of_the_pairs,
    real_against_real,
    write_report,
)


def score_folders(
    images: str,
    reference: str,
    judges: Judges,
    out: Path,
    *,
    prompts: str = "",
    paired: bool,
    perceptual: str = "",
) -> str:
    """Writes scores.json and scores.md.

    Args:
      images: folder of the images to score, or another source of them.
      reference: likewise, of real images.
      judges: the networks.
      out: folder of the report.
      prompts: text file with a caption per image, where none lie beside them.
      paired: both folders have the same file names, suffixes apart; a real image is what its
        namesake should be.
      perceptual: file of VGG weights, for LPIPS of the pairs.

    Returns:
      The report's table as Markdown.

    Raises:
      ValueError: folders without images, too few or too many unreadable ones, missing namesakes,
        or images without captions where those are judged.
    """
    captions = judges.clip is not None or judges.pick is not None
    drawn = open_images("--images", images, prompts, captions)
    real = open_images("--reference", reference, captions=captions)
    unscored = _check_captions(drawn, real) if captions else []
    if paired:
        _pair(drawn, real)
    check_counts(len(drawn), len(real))
    pairs = PairScores(perceptual)
    ours, theirs = gather(drawn.images(), judges), gather(real.images(), judges)
    row = {"name": Path(images).name}
    row |= of_the_images(ours, judges, drawn.read_captions()) | distances(ours, theirs, paired)
    floor = real_against_real(theirs, None, len(ours))
    floor |= of_the_images(theirs, judges, real.read_captions())
    if paired:
        if drawn.unreadable or real.unreadable:
            raise ScoreError("--paired needs folders whose images can all be read")
        pairs.add_all(_pairs(drawn, real))
        row |= of_the_pairs(ours, theirs) | pairs.row()
    skipped = {"unreadable": {"images": drawn.unreadable, "reference": real.unreadable}}
    notes = notes_on(len(ours), len(theirs), judges) + unscored
    if not paired and drawn.names == real.names:
        notes.append("Both have the same file names; --paired compares them one by one as well.")
    return write_report(out, [row, floor], notes, **skipped)


def _check_captions(drawn: ImageSet, real: ImageSet) -> list[str]:
    """Whether there is a caption for each image, before all are looked at.

    Returns:
      A note where real images have none, which is usual.

    Raises:
      ScoreError: an image to score has none.
    """
    if name := drawn.uncaptioned():
        raise ScoreError(
            f"--clip and --pick score how an image fits its caption, {name} of --images "
            f"{drawn.place} has none: put a text of its name beside each, or give --prompts FILE"
        )
    if name := real.uncaptioned():
        return [f"{name} of the reference has no caption: its row is without scores of captions."]
    return []


def _pair(drawn: ImageSet, real: ImageSet) -> None:
    """Puts real images into the order of those that have their names, but for a suffix."""
    ours, theirs = (_keys(images.names) for images in (drawn, real))
    other = sorted(set(ours) ^ set(theirs))
    if other:
        raise ScoreError(
            f"--paired needs the same file names in both folders, {len(other)} differ, the first: "
            f"{other[0]}"
        )
    places = dict(zip(theirs, real.positions, strict=True))
    real.positions = [places[key] for key in ours]


def _keys(names: list[str]) -> list[str]:
    """Names without suffixes, where they are still different."""
    short = [str(Path(name).with_suffix("")) for name in names]
    return short if len(set(short)) == len(names) else names


def _pairs(drawn: ImageSet, real: ImageSet) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for name, ours, theirs in zip(drawn.names, drawn.images(), real.images(), strict=True):
        if ours.shape != theirs.shape:
            sizes = " and ".join(f"{x.shape[1]}x{x.shape[0]}" for x in (ours, theirs))
            raise ScoreError(f"--paired needs pairs of one size; {name} has {sizes} pixels")
        yield ours, theirs
