"""A whole comparison: plan -> tokenizer -> trainings -> measurements -> speed -> report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from paella_jax.comparison.measure import (
    make_judge,
    measure_network,
    measure_speed,
    with_speed,
)
from paella_jax.comparison.plan import (
    Training,
    check_measure,
    describe,
    training_config,
    trainings,
)
from paella_jax.comparison.train_cells import Trained, planned, train_cell, train_tokenizer
from paella_jax.config import ConfigError, differing_fields, from_json, to_json
from paella_jax.evaluation.classifier import load_or_train_classifier
from paella_jax.evaluation.comparison_report import write_report
from paella_jax.evaluation.comparison_rows import Row
from paella_jax.training.checkpoint import write_atomically
from paella_jax.training.metrics import report

CONFIG = "comparison_config.json"


def compare(config: ConfigDict, out: Path) -> dict[str, Any]:
    """Trains and measures every cell, or what is left of it, and writes the report.

    Args:
      config: of configs/compare.py.
      out: folder of everything; a second call with the same config goes on where one stopped.

    Returns:
      The report, as in `comparison.json`.

    Raises:
      ConfigError: before anything is trained, for settings that make no sense.
      Stopped: by SIGTERM, with everything saved.
    """
    check_measure(config)
    todo = trainings(config)
    spec = _check_all(config, todo)
    _claim(config, out)
    tokenizer = train_tokenizer(config, out)
    plans = [(training, *planned(config, training, tokenizer)) for training in todo]
    report(describe(plans))
    trained = [train_cell(config, *plan, out) for plan in plans]
    classifier = load_or_train_classifier(
        out / "classifier.safetensors", spec, num_steps=config.measure.classifier_steps
    )
    judge = make_judge(config, spec, classifier)
    rows: list[Row] = []
    for group in _groups(trained):
        rows += measure_network(config, judge, group, out)
        report(f"measured {len(rows)} of {len(todo) * len(config.cells.samplers)} rows")
    file = out / "speed.json"
    if not file.is_file():
        speed = measure_speed(config, judge, rows, trained)
        write_atomically(file, json.dumps(speed, indent=2))
    rows = with_speed(rows, json.loads(file.read_text()), config.measure.main_steps)
    return write_report(rows, out, _notes(config, judge.classifier.accuracy))


def _check_all(config: ConfigDict, todo: list[Training]) -> str:
    """Builds every training's config once, so that a wrong cell ends here; returns the data."""
    spec = ""
    for training in todo:
        run = training_config(config, training, "unknown yet")
        if run.data.source != "shapes":
            raise ConfigError(
                f"training {config.training!r} is on data.source={run.data.source}; a comparison "
                "needs the embedded data, which it can score"
            )
        spec = run.data.spec
    return spec


def _claim(config: ConfigDict, out: Path) -> None:
    """Writes the config, or checks that the folder belongs to it.

    Raises:
      ConfigError: another comparison is there.
    """
    file = out / CONFIG
    if file.is_file():
        differing = differing_fields(from_json(file.read_text()), config)
        if differing:
            raise ConfigError(
                f"{out} holds another comparison; choose another --out. Differences (old -> new):"
                "\n  " + "\n  ".join(differing)
            )
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(file, to_json(config))


def _groups(trained: list[Trained]) -> list[list[Trained]]:
    """The trainings of one network and corruption together."""
    groups: dict[tuple[str, str], list[Trained]] = {}
    for one in trained:
        groups.setdefault((one.training.network, one.training.corruption), []).append(one)
    return list(groups.values())


def _notes(config: ConfigDict, accuracy: Any) -> list[str]:
    budget = {
        "flops": "equal forward FLOPs x images",
        "seconds": f"{config.budget.seconds:.0f} s of training each",
        "parameters": "equal images, widths changed to about equal parameters",
    }[config.budget.kind]
    seen = accuracy.get("validation", {}).get("exact")
    return [
        f"Budget: {budget}; the {config.budget.reference} sees {config.budget.images:,} images.",
        f"Seeds: {', '.join(str(seed) for seed in config.seeds)}. Scores are on "
        f"{config.measure.images} captions per split; temperature and guidance were chosen on "
        f"{config.measure.tuning_images} others.",
        "The classifier behind the Fréchet distance and diversity reads "
        + (f"{seen:.1%} of real images exactly." if seen is not None else "real images."),
    ]
