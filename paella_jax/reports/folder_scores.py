"""Scores of a folder of images against a folder of real ones, whoever drew them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paella_jax.evaluation.distances import check_counts
from paella_jax.evaluation.estimates import mean_of
from paella_jax.evaluation.image_measures import psnr
from paella_jax.reports.gathered import Judges, ScoreError, gather
from paella_jax.reports.image_sets import ImageSet, open_images
from paella_jax.reports.scores import (
    distances,
    notes_on,
    of_the_images,
    of_the_pairs,
    real_against_real,
    write_report,
)


def score_folders(
    images: str, reference: str, judges: Judges, out: Path, *, prompts: str = "", paired: bool
) -> str:
    """Writes scores.json and scores.md.

    Args:
      images: folder of the images to score, or another source of them.
      reference: likewise, of real images.
      judges: the networks.
      out: folder of the report.
      prompts: text file with a caption per image, where none lie beside them.
      paired: both folders have the same file names; a real image is what its namesake should be.

    Returns:
      The report's table as Markdown.

    Raises:
      ValueError: folders without images, too few or too many unreadable ones, missing namesakes.
    """
    captions = judges.clip is not None or judges.pick is not None
    drawn = open_images("--images", images, prompts, captions)
    real = open_images("--reference", reference, captions=captions)
    if paired and drawn.names != real.names:
        other = sorted(set(drawn.names) ^ set(real.names))
        raise ScoreError(
            f"--paired needs the same file names in both folders, {len(other)} differ, the first: "
            f"{other[0]}"
        )
    check_counts(len(drawn), len(real))
    ours, theirs = gather(drawn.images(), judges), gather(real.images(), judges)
    row = {"name": Path(images).name}
    row |= of_the_images(ours, judges, drawn.read_captions()) | distances(ours, theirs, paired)
    floor = real_against_real(theirs, None, len(ours))
    floor |= of_the_images(theirs, judges, real.read_captions())
    if paired:
        if drawn.unreadable or real.unreadable:
            raise ScoreError("--paired needs folders whose images can all be read")
        row |= of_the_pairs(ours, theirs) | _likeness(drawn, real)
    skipped = {"unreadable": {"images": drawn.unreadable, "reference": real.unreadable}}
    notes = notes_on(len(ours), len(theirs), judges)
    return write_report(out, [row, floor], notes, **skipped)


def _likeness(drawn: ImageSet, real: ImageSet) -> dict[str, object]:
    """PSNR of the pairs, which must have the same sizes."""
    values = []
    for name, ours, theirs in zip(drawn.names, drawn.images(), real.images(), strict=True):
        if ours.shape != theirs.shape:
            sizes = " and ".join(f"{x.shape[1]}x{x.shape[0]}" for x in (ours, theirs))
            raise ScoreError(f"--paired needs pairs of one size; {name} has {sizes} pixels")
        pair = (x[None].astype(np.float32) / 255.0 for x in (ours, theirs))
        values.append(psnr(*pair)[0])
    return {"psnr": mean_of(values)}
