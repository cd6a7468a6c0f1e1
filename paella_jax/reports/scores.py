"""Scores of a set of images against real ones, as rows of a table like the papers' Table 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paella_jax.encoders.clip_judge import cosines
from paella_jax.evaluation.distances import LEAST, frechet_estimate, kernel_estimate
from paella_jax.evaluation.estimates import Estimate, mean_of
from paella_jax.evaluation.image_measures import SPLITS, inception_score
from paella_jax.evaluation.neighbours import (
    AMONG,
    NEIGHBOURS,
    centred,
    copying,
    nearest_of,
    precision_recall,
    retrieval,
)
from paella_jax.files.atomic import write_atomically
from paella_jax.reports.gathered import Gathered, Judges, as_json, first

Row = dict[str, Any]


class Column(NamedTuple):
    """One column of the table: a key of a row, its title, and how its numbers are shown."""

    key: str
    title: str
    factor: float = 1.0
    digits: int = 2


COLUMNS = (
    Column("images", "images"),
    Column("steps", "steps"),
    Column("guidance", "guidance"),
    Column("fid", "FID", digits=1),
    Column("kid", "KID × 1000", 1000.0, 1),
    Column("precision", "precision"),
    Column("recall", "recall"),
    Column("inception_score", "Inception Score"),
    Column("clip_score", "CLIP score", digits=3),
    Column("pick_score", "PickScore"),
    Column("retrieval_first", f"R@1 of {AMONG}"),
    Column("retrieval_five", f"R@5 of {AMONG}"),
    Column("caption_first", f"caption R@1 of {AMONG}"),
    Column("caption_five", f"caption R@5 of {AMONG}"),
    Column("group_right", "group right"),
    Column("psnr", "PSNR dB", digits=1),
    Column("ssim", "SSIM", digits=3),
    Column("lpips", "LPIPS", digits=3),
    Column("codes_used", "codes used"),
    Column("perplexity", "perplexity", digits=0),
    Column("blank", "blank"),
    Column("copies", "near copies"),
)


def distances(images: Gathered, real: Gathered, paired: bool = False) -> Row:
    """What says how far a set is from the real images; `paired` as `kernel_estimate` has it.

    Raises:
      ValueError: fewer images than a score needs.
    """
    kernel = kernel_estimate(images.vectors, real.vectors, paired=paired)
    shares = precision_recall(images.vectors, real.vectors, NEIGHBOURS)
    return {
        "fid": frechet_estimate(images.vectors, real.vectors),
        "kid": kernel.whole,
        "kid_of_subsets": {
            "mean": kernel.mean, "deviation": kernel.deviation, "images": kernel.subset,
        },
        "precision": shares.precision,
        "recall": shares.recall,
    }  # fmt: skip


def of_the_images(images: Gathered, judges: Judges, captions: Sequence[str]) -> Row:
    """What is known of a set without others: blank ones, classes, how it fits its captions."""
    row: Row = {"images": len(images), "blank": mean_of(images.blank)}
    logits = images.features.logits
    if judges.network.scores_classes and logits is not None and len(images) >= 2 * SPLITS:
        row["inception_score"] = inception_score(logits)
    if captions and images.clip is not None and judges.clip is not None:
        texts = judges.clip.embed_texts(captions)
        row["clip_score"] = mean_of(cosines(images.clip, texts))
        if len(images) >= AMONG:
            found = retrieval(images.clip, texts)
            row |= {"caption_first": found.first, "caption_five": found.among_five}
    if captions and images.pick is not None and judges.pick is not None:
        texts = judges.pick.embed_texts(captions)
        row["pick_score"] = mean_of(judges.pick.scale * cosines(images.pick, texts))
    return row


def of_the_pairs(images: Gathered, originals: Gathered) -> Row:
    """How often an image finds the real one that its caption belongs to, among 64.

    Fewer pairs than that give no such score.
    """
    if len(images) < AMONG:
        return {}
    drawn, true = (centred(x.vectors, originals.vectors) for x in (images, originals))
    found = retrieval(drawn, true)
    return {"retrieval_first": found.first, "retrieval_five": found.among_five}


def of_copies(images: Gathered, training: Gathered, real: Gathered) -> tuple[Row, np.ndarray]:
    """The share of images that come too near to a training image, and every nearest one."""
    if len(real) < AMONG:
        return {}, nearest_of(images.vectors, training.vectors)[0]
    found = copying(images.vectors, training.vectors, real.vectors)
    return {"copies": found.share}, found.nearest


def real_against_real(real: Gathered, others: Gathered | None, count: int) -> Row:
    """The distances that real images have: what a perfect model would reach.

    Args:
      real: images that a set is compared with.
      others: other real images, of which as many are taken as the set has, evenly spaced: data in
        the order of its classes begins with one of them. Without any, the two halves of `real` are
        compared, and few images make FID larger. Too few give no distances.
      count: of the set.
    """
    if others is not None and len(others) >= min(count, len(real)):
        spread = part(others, first(np.arange(len(others)), count))
        name = f"real images ({len(spread)} of the training against {len(real)})"
        return {"name": name} | distances(spread, real)
    if len(real) < 2 * LEAST:
        return {"name": "real images"}
    halves = part(real, slice(0, None, 2)), part(real, slice(1, None, 2))
    return {"name": f"real images ({len(halves[0])} against {len(halves[1])})"} | distances(*halves)


def part(images: Gathered, chosen: slice | np.ndarray) -> Gathered:
    """Some images of a set."""
    cut = lambda x: None if x is None else x[chosen]
    features = images.features._replace(
        vectors=images.vectors[chosen], logits=cut(images.features.logits)
    )
    return Gathered(features, images.blank[chosen], cut(images.clip), cut(images.pick))


def notes_on(count: int, real: int, judges: Judges) -> list[str]:
    """What a reader of the table has to know."""
    network = judges.network
    notes = [
        f"Features: {network.name}, {network.width} numbers per image. Brackets: 95 % intervals "
        "(leaving out a tenth of the images in turn)."
    ]
    if not network.name.startswith("inception"):
        notes.append(
            "FID and KID on these features do not compare with published numbers, which are on "
            "Inception's."
        )
    if min(count, real) <= network.width:
        notes.append(
            f"With at most {network.width} images FID is biased upwards (by the same for sets of "
            "the same size); KID is not."
        )
    if min(count, real) < AMONG:
        notes.append(f"Retrieval and the search for copies need {AMONG} images and are left out.")
    return notes


def show_table(rows: Sequence[Row]) -> str:
    """Rows as Markdown, with the columns that any of them has."""
    columns = [c for c in COLUMNS if any(row.get(c.key) is not None for row in rows)]
    lines = [
        "| | " + " | ".join(c.title for c in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for row in rows:
        cells = [_show(row.get(c.key), c) for c in columns]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _show(value: Any, column: Column) -> str:
    if value is None:
        return ""
    if isinstance(value, Estimate):
        return Estimate(*(x * column.factor for x in value)).show(column.digits)
    if hasattr(value, "deviation"):
        return f"{value.mean:.{column.digits}f} ± {value.deviation:.{column.digits}f}"
    if isinstance(value, float):
        return f"{value * column.factor:.{column.digits}f}"
    return str(value)


def write_report(out: Path, rows: Sequence[Row], notes: Sequence[str], **more: Any) -> str:
    """Writes scores.json and scores.md into a folder; returns the page."""
    page = "\n".join([show_table(rows), "", *notes, ""])
    out.mkdir(parents=True, exist_ok=True)
    report: Mapping[str, Any] = {"rows": list(rows), "notes": list(notes)} | more
    write_atomically(out / "scores.json", as_json(report))
    write_atomically(out / "scores.md", page)
    return page
