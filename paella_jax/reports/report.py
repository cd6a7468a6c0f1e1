"""The report of a run on the embedded shapes: scores, ceilings, curves, images."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from paella_jax.config import ConfigError
from paella_jax.data.shapes import SCORED, get_spec
from paella_jax.data.sources import ShapesSource
from paella_jax.evaluation.oracle import score, score_images, summary
from paella_jax.files.atomic import write_atomically
from paella_jax.images.plots import save_curves
from paella_jax.images.write import save_grid
from paella_jax.pipelines.load import load
from paella_jax.runs.folder import METRICS_FILE, read_metrics
from paella_jax.training.timing import account, describe_account


def evaluate_run(
    checkpoint: Path,
    out: Path,
    *,
    num_images: int | None = None,
    step_counts: Sequence[int] = (),
    stage_seconds: Mapping[str, float] | None = None,
    super_resolution: str = "",
) -> dict[str, Any]:
    """Samples captions of both splits, scores them with the oracle and writes the report.

    Args:
      checkpoint: run folder that `paella_jax.load` takes, trained on the embedded data.
      out: folder for report.json, samples.png and training.png.
      num_images: per split.
      step_counts: numbers of sampling steps to compare, on a quarter of the seen captions.
      stage_seconds: seconds of earlier stages, copied into the report.
      super_resolution: run folder of a network that enlarges what the checkpoint draws.

    Raises:
      CheckpointError: no such run. ConfigError: the run was not trained on the embedded data.
    """
    began = time.perf_counter()
    options = {"super_resolution": super_resolution} if super_resolution else {}
    pipeline = load(checkpoint, **options)
    config = pipeline.config
    if config.data.source != "shapes":
        raise ConfigError("evaluate scores runs on the embedded data (data.source=shapes) only")
    out.mkdir(parents=True, exist_ok=True)
    count = num_images or config.evaluation.num_images
    report: dict[str, Any] = {"scores": {}, "tokenizer": {}}
    shown: list[tuple[np.ndarray, list[str], list[bool]]] = []
    for name, split in SCORED.items():
        source = ShapesSource(config.data.spec, split, count, config.seed + 1)
        captions = [source[i]["caption"] for i in range(count)]
        seconds = time.perf_counter()
        images = _sample(pipeline, captions)
        seconds = time.perf_counter() - seconds
        result = score_images(images, captions, config.data.spec)
        report["scores"][name] = summary(result) | {"images": count, "seconds": round(seconds, 1)}
        report["scores"][name]["confusion"] = result.to_dict()["confusion"]
        report["tokenizer"][name] = _ceiling(pipeline, source)
        shown.append((images[:16], captions[:16], np.asarray(result.exact_images)[:16].tolist()))
    seen = ShapesSource(config.data.spec, "validation", count, config.seed + 1)
    captions = [seen[i]["caption"] for i in range(min(count, max(count // 4, 8)))]
    report["exact_by_steps"] = {
        str(steps): summary(
            score_images(_sample(pipeline, captions, steps), captions, config.data.spec)
        )["exact"]
        for steps in step_counts
    }
    save_grid(
        out / "samples.png",
        np.concatenate([images for images, _, _ in shown]),
        [text for _, texts, _ in shown for text in texts],
        [ok for _, _, oks in shown for ok in oks],
        columns=8,
    )
    _draw_training(checkpoint, out / "training.png", report["exact_by_steps"])
    own = {"evaluate": round(time.perf_counter() - began, 1)}
    report["seconds"] = dict(stage_seconds or {}) | own
    report["training"] = account(checkpoint)
    report["settings"] = config.to_dict()
    report["environment"] = {
        "jax": jax.__version__,
        "python": platform.python_version(),
        "devices": [str(d) for d in jax.devices()],
    }
    write_atomically(out / "report.json", json.dumps(report, indent=2))
    return report


def _sample(pipeline: Any, captions: Sequence[str], num_steps: int | None = None) -> np.ndarray:
    return pipeline.generate(
        captions,
        seed=list(range(len(captions))),
        batch_size=pipeline.config.evaluation.batch_size,
        num_steps=num_steps,
    ).images


def _ceiling(pipeline: Any, source: ShapesSource) -> dict[str, Any]:
    """Scores of the tokenizer's reconstructions and of the clean renders themselves."""
    spec = get_spec(source.spec_name)
    clean = np.stack([source[i]["image"] for i in range(len(source))])
    scenes = [source.scene(i) for i in range(len(source))]
    images = clean.astype(np.float32) / 255.0
    rebuilt = pipeline.decode(pipeline.encode(images))
    return {
        "reconstruction_exact": summary(score(rebuilt, scenes, spec))["exact"],
        "reconstruction_mse": round(float(np.square(rebuilt - images).mean()), 6),
        "oracle_on_clean_exact": summary(score(clean, scenes, spec))["exact"],
    }


def _draw_training(checkpoint: Path, file: Path, by_steps: Mapping[str, float]) -> None:
    rows = read_metrics(checkpoint / METRICS_FILE)
    curve = lambda name: (
        tuple(zip(*[(row["step"], row[name]) for row in rows if name in row], strict=True))
        or ((), ())
    )
    named = lambda **names: {label: curve(name) for label, name in names.items()}
    panels: dict[str, Any] = {
        "loss": named(loss="loss", **{"loss on noised tokens": "loss_noised"}),
        "token accuracy": named(all="accuracy", noised="accuracy_noised"),
        "exact match against training step": named(validation="preview_exact"),
    }
    if by_steps:
        points = ([int(s) for s in by_steps], list(by_steps.values()))
        panels["exact match against sampling steps"] = {"validation": points}
    save_curves(file, panels)


def show(report: Mapping[str, Any]) -> str:
    """A short table of a report."""
    names = ["exact", "clean", "count", "position", "color", "shape", "size", "background"]
    lines = ["split      " + "".join(f"{n:>12}" for n in [*names, "tokenizer"])]
    for split, scores in report["scores"].items():
        ceiling = report["tokenizer"][split]["reconstruction_exact"]
        cells = [scores[n] for n in names] + [ceiling]
        lines.append(f"{split:<11}" + "".join(f"{value:>12.3f}" for value in cells))
    if report["exact_by_steps"]:
        pairs = ", ".join(f"{k}: {v:.3f}" for k, v in report["exact_by_steps"].items())
        lines.append(f"exact match by sampling steps   {pairs}")
    lines.append("seconds    " + ", ".join(f"{k} {v:.0f}" for k, v in report["seconds"].items()))
    if report.get("training"):
        lines.append(f"training   {describe_account(report['training'])}")
    return "\n".join(lines)
