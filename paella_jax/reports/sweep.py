"""Scores against sampling settings: our version of the Paella paper's Figures 4 and 5."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paella_jax.data.shapes import SCORED
from paella_jax.data.sources import ShapesSource
from paella_jax.evaluation.oracle import score_images, summary
from paella_jax.files.atomic import write_atomically
from paella_jax.images.plots import save_curves
from paella_jax.pipelines.tokens import TokenPipeline
from paella_jax.sampling.token_sampler import SAMPLERS

STEPS = (4, 8, 12, 16, 24)
GUIDANCE = (1.0, 2.0, 3.0, 5.0, 8.0)
TEMPERATURES = ((0.3, 0.3), (0.5, 0.5), (0.7, 0.3), (1.0, 0.5), (1.0, 1.0))
# Noise on the confidences of a masked run: aMUSEd's 2, MaskGIT's 4.5, and less for small maps.
CHOICE_TEMPERATURES = ((0.0, 0.0), (0.5, 0.0), (2.0, 0.0), (4.5, 0.0))
Row = dict[str, Any]


def sweep(pipeline: TokenPipeline, out: Path, num_images: int = 64) -> dict[str, list[Row]]:
    """Scores every setting on the same captions and seeds, and writes sweep.json and sweep.png.

    Steps are swept with each guidance weight, temperatures at the run's own step count and
    guidance; random against least confident positions at every step count. For masks the noise on
    the confidences is swept too.

    Args:
      pipeline: a run trained on the embedded data.
      out: folder for the files.
      num_images: captions per split.
    """
    captions = {name: _captions(pipeline, split, num_images) for name, split in SCORED.items()}
    figure5, temperatures, figure4, choices = [], [], [], []
    for steps in STEPS:
        for scale in GUIDANCE:
            figure5.append(_row(pipeline, captions, num_steps=steps, guidance_scale=scale))
        for sampler in SAMPLERS:
            figure4.append(_row(pipeline, captions, num_steps=steps, sampler=sampler))
    for pair in TEMPERATURES:
        temperatures.append(_row(pipeline, captions, temperature=pair))
    if pipeline.config.cell.corruption == "mask":
        for pair in CHOICE_TEMPERATURES:
            options = {"sampler": "confidence", "choice_temperature": pair}
            choices.append(_row(pipeline, captions, **options))
    result = {"steps_guidance": figure5, "temperature": temperatures, "sampler": figure4}
    result |= {"choice_temperature": choices} if choices else {}
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "sweep.json", json.dumps(result, indent=2))
    _draw(result, out / "sweep.png")
    return result


def _captions(pipeline: TokenPipeline, split: str, count: int) -> list[str]:
    config = pipeline.config
    source = ShapesSource(config.data.spec, split, count, config.seed + 1)
    return [source[i]["caption"] for i in range(count)]


def _row(pipeline: TokenPipeline, captions: Mapping[str, list[str]], **settings: Any) -> Row:
    row: Row = dict(settings)
    for split, texts in captions.items():
        images = pipeline.generate(texts, seed=list(range(len(texts))), **settings).images
        scores = summary(score_images(images, texts, pipeline.config.data.spec))
        row[split] = scores["exact"]
        parts = [scores[name] for name in ("color", "shape", "size", "position")]
        row[f"{split}_attributes"] = round(float(np.mean(parts)), 4)
    return row


def _draw(result: Mapping[str, Sequence[Row]], file: Path) -> None:
    def lines(name: str, by: str, split: str) -> dict[str, Any]:
        rows = result[name]
        groups = list(dict.fromkeys(row[by] for row in rows))
        return {
            f"{by.replace('_', ' ')} {group}": (
                [row["num_steps"] for row in rows if row[by] == group],
                [row[split] for row in rows if row[by] == group],
            )
            for group in groups
        }

    temperature = result["temperature"]
    places = list(range(len(temperature)))
    panels = {
        "seen: exact match against steps": lines("steps_guidance", "guidance_scale", "seen"),
        "held-out: attributes against steps": lines(
            "steps_guidance", "guidance_scale", "heldout_attributes"
        ),
        "which tokens are corrupted again (seen)": lines("sampler", "sampler", "seen"),
        "temperature " + ", ".join(str(tuple(r["temperature"])) for r in temperature): {
            "seen exact": (places, [r["seen"] for r in temperature]),
            "held-out attributes": (places, [r["heldout_attributes"] for r in temperature]),
        },
    }
    choices = result.get("choice_temperature", [])
    if choices:
        title = "choice temperature " + ", ".join(str(r["choice_temperature"][0]) for r in choices)
        panels[title] = {"seen exact": (list(range(len(choices))), [r["seen"] for r in choices])}
    save_curves(file, panels)


def show_sweep(result: Mapping[str, Sequence[Row]]) -> str:
    """The sweep as text tables."""
    tables = []
    for name, rows in result.items():
        columns = list(rows[0])
        tables.append(name.replace("_", " "))
        tables.append("".join(f"{column:>20}" for column in columns))
        tables += ["".join(f"{row[column]!s:>20}" for column in columns) for row in rows]
    return "\n".join(tables)
