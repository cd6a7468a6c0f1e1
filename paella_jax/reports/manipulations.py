"""How far a distance moves when nobody would call the images different (Würstchen, Table 3).

Each small change is made to all images of a folder, and the changed set is scored against the
unchanged one. A difference between two models that is smaller than what a little brightness does
says nothing about which of them draws better.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from paella_jax.encoders.feature_network import FeatureNetwork
from paella_jax.evaluation.distances import frechet_estimate, kernel_estimate
from paella_jax.evaluation.estimates import Estimate, mean_of, need
from paella_jax.evaluation.image_measures import psnr
from paella_jax.files.atomic import write_atomically
from paella_jax.outside import say
from paella_jax.reports.gathered import as_json
from paella_jax.reports.image_sets import ImageSet, open_images

LEAST = 40  # images: of a half, 20


class Manipulation(NamedTuple):
    """A change, its strengths, and what it makes of an image at one of them."""

    name: str
    strengths: tuple[float, ...]
    unit: str
    change: Callable[[Image.Image, float], Image.Image]


def _jpeg(image: Image.Image, quality: float) -> Image.Image:
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=int(quality))
    return Image.open(stored, formats=["JPEG"]).convert("RGB")


def _shift(image: Image.Image, pixels: float) -> Image.Image:
    """To the right and down; the border is repeated."""
    by = int(pixels)
    moved = np.pad(np.asarray(image), ((by, 0), (by, 0), (0, 0)), mode="edge")
    return Image.fromarray(np.ascontiguousarray(moved[: image.height, : image.width]))


MANIPULATIONS = (
    Manipulation(
        "brightness", (0.9, 0.95, 1.05, 1.1), "×",
        lambda image, by: ImageEnhance.Brightness(image).enhance(by),
    ),
    Manipulation(
        "contrast", (0.8, 0.9, 1.1, 1.2), "×",
        lambda image, by: ImageEnhance.Contrast(image).enhance(by),
    ),
    Manipulation("JPEG quality", (95, 85, 60), "", _jpeg),
    Manipulation(
        "blur, radius", (0.3, 0.6, 1.0), " px",
        lambda image, by: image.filter(ImageFilter.GaussianBlur(by)),
    ),
    Manipulation("shift", (1, 2, 4), " px", _shift),
)  # fmt: skip


class Measured(NamedTuple):
    """A manipulation at a strength; the last row, of two halves of the images, has no PSNR."""

    name: str
    fid: Estimate
    kid: Estimate
    psnr: Estimate | None


def measure_manipulations(
    place: str, network: FeatureNetwork, out: Path, num_images: int | None = None
) -> str:
    """Scores every manipulation of some images and writes manipulations.json and .md.

    Args:
      place: of the images, as `open_images` takes it.
      network: whose features are measured.
      out: folder of the report.
      num_images: so many, evenly spaced; None takes all.

    Returns:
      The table as Markdown.

    Raises:
      ValueError: too few images.
    """
    images = open_images("--manipulations", place)
    if num_images is not None:
        images.take(num_images)
    need(len(images), LEAST, "the table of manipulations")
    clean = network.extract(images.images()).vectors
    rows = []
    for name, strengths, unit, change in MANIPULATIONS:
        for strength in strengths:
            likeness: list[float] = []
            moved = _changed(images, change, strength, likeness)
            vectors = network.extract(moved).vectors
            shown = f"{name} {unit if unit == '×' else ''}{strength:g}{'' if unit == '×' else unit}"
            fid, kid = (
                frechet_estimate(vectors, clean),
                kernel_estimate(vectors, clean, paired=True).whole,
            )
            rows.append(Measured(shown, fid, kid, mean_of(likeness)))
            say(f"{shown}: FID {fid.show(2)}")
    halves = clean[::2], clean[1::2]
    fid, kid = frechet_estimate(*halves), kernel_estimate(*halves).whole
    rows.append(
        Measured(f"none: {len(halves[0])} against the other {len(halves[1])}", fid, kid, None)
    )
    out.mkdir(parents=True, exist_ok=True)
    report = {"images": len(clean), "features": network.name, "rows": rows}
    write_atomically(out / "manipulations.json", as_json(report))
    page = _table(rows)
    write_atomically(out / "manipulations.md", page)
    return page


def _changed(
    images: ImageSet,
    change: Callable[[Image.Image, float], Image.Image],
    strength: float,
    likeness: list[float],
) -> Iterator[np.ndarray]:
    """The changed images; how like the clean ones they are is put into `likeness`."""
    for image in images.images():
        changed = np.asarray(change(Image.fromarray(image), strength))
        pair = (x[None].astype(np.float32) / 255.0 for x in (changed, image))
        likeness.append(float(psnr(*pair)[0]))
        yield changed


def _table(rows: list[Measured]) -> str:
    lines = ["| change | FID | KID × 1000 | PSNR dB |", "|---|---|---|---|"]
    for row in rows:
        kid = Estimate(*(1000.0 * x for x in row.kid)).show(2)
        likeness = "" if row.psnr is None else f"{row.psnr.value:.1f}"
        lines.append(f"| {row.name} | {row.fid.show(2)} | {kid} | {likeness} |")
    return "\n".join(lines) + "\n"
