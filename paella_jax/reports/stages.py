"""Who does the work in Würstchen: latents decoded by Stage B and directly (appendix D)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from paella_jax.config import ConfigError
from paella_jax.data.sources import ShapesSource
from paella_jax.evaluation.oracle import score_images, summary
from paella_jax.families.direct_decoder import load_direct_decoder
from paella_jax.families.stage_b import COMPRESSOR, load_stage_b
from paella_jax.files.atomic import write_atomically
from paella_jax.images.write import save_grid
from paella_jax.pipelines.load import load_wuerstchen

SHOWN = 8
Row = dict[str, Any]


def compare_decoders(
    checkpoint: str | Path, direct: str | Path, out: Path, num_images: int = 256
) -> dict[str, Row]:
    """Scores drawn and compressed images by both decoders; writes stages.json and stages.png.

    Args:
      checkpoint: Stage C run trained on the embedded data.
      direct: run of configs/direct_decoder.py on the same Stage B run.
      out: folder for the files.
      num_images: captions of the seen split.

    Raises:
      CheckpointError: runs of other kinds. ConfigError: not trained on the embedded data, or on
        different compressors.
    """
    ours, theirs = (load_stage_b(run)[3][COMPRESSOR] for run in (checkpoint, direct))
    if not jax.tree.all(jax.tree.map(np.array_equal, ours, theirs)):
        raise ConfigError(f"{direct} was trained on another Stage B's compressor than {checkpoint}")
    pipeline, decode = load_wuerstchen(checkpoint), load_direct_decoder(direct)
    config = pipeline.config
    if config.data.source != "shapes":
        raise ConfigError("the oracle scores runs on the embedded data (data.source=shapes) only")
    source = ShapesSource(config.data.spec, "validation", num_images, config.seed + 1)
    samples = [source[i] for i in range(num_images)]
    captions = [sample["caption"] for sample in samples]
    images = np.stack([sample["image"] for sample in samples]).astype(np.float32) / 255.0
    seeds = list(range(num_images))
    drawn = pipeline.generate(captions, seed=seeds)
    compressed = pipeline.encode(images)
    ways = {
        "drawn by Stage C, decoded by Stages B and A": drawn.images,
        "drawn by Stage C, decoded directly": decode(drawn.latents_c),
        "compressed, decoded by Stages B and A": pipeline.decode(compressed, seed=seeds),
        "compressed, decoded directly": decode(compressed),
    }
    rows: dict[str, Row] = {}
    for name, decoded in ways.items():
        rows[name] = summary(score_images(decoded, captions, config.data.spec))
        if name.startswith("compressed"):
            rows[name]["mse"] = round(float(np.square(decoded - images).mean()), 5)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "stages.json", json.dumps(rows, indent=2))
    titles = [name if i == 0 else "" for name in ways for i in range(SHOWN)]
    shown = np.concatenate([decoded[:SHOWN] for decoded in ways.values()])
    save_grid(out / "stages.png", shown, titles, columns=SHOWN)
    return rows


def show_decoders(rows: Mapping[str, Row]) -> str:
    """The comparison as a text table."""
    names = ["exact", "position", "color", "shape", "size"]
    lines = [" " * 46 + "".join(f"{name:>10}" for name in names)]
    for title, row in rows.items():
        lines.append(f"{title:<46}" + "".join(f"{row[name]:>10.3f}" for name in names))
    return "\n".join(lines)
