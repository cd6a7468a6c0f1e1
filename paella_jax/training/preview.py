"""What a run looks at while it trains: samples that it draws, and the loss of held-back ones."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.runs.digests import is_noted, noting
from paella_jax.runs.folder import METRICS_FILE, read_metrics
from paella_jax.training.method import Method
from paella_jax.training.metrics import MetricWriter, report
from paella_jax.training.placing import place
from paella_jax.training.sharding import frozen_shardings
from paella_jax.training.state import TrainState
from paella_jax.typing import Tree


def draw_preview(
    method: Method, writer: MetricWriter, workdir: Path, state: TrainState, frozen: Tree, step: int
) -> None:
    """Draws and scores samples, then looks at held-back ones, where the method has either.

    One line of metrics has both. Training of one process does not end for what fails here, nor one
    for the other; of several it does, since the others wait for this one's part. Without a line for
    the last step the next call looks again.
    """
    scores: dict[str, float] | None = None
    try:
        if method.preview is not None:
            with jax.transfer_guard("allow"):
                scores = _drawn(method, writer, workdir, state, frozen, step)
    except Exception as error:
        if jax.process_count() > 1:
            raise
        report(f"preview of step {step} failed, training goes on: {error}")
    try:
        if method.validation is not None:
            with jax.transfer_guard("allow"):
                scores = (scores or {}) | method.validation(state, frozen)
    except Exception as error:
        if jax.process_count() > 1:
            raise
        report(f"validation of step {step} failed, training goes on: {error}")
    if scores is not None:
        writer.write(step, scores)


def _drawn(
    method: Method, writer: MetricWriter, workdir: Path, state: TrainState, frozen: Tree, step: int
) -> dict[str, float]:
    assert method.preview is not None
    file = _preview_file(workdir, step)
    file.parent.mkdir(exist_ok=True)
    name = file.relative_to(workdir).as_posix()
    with noting(workdir, name) if writer.enabled else nullcontext():
        scores = method.preview(state, frozen, file)
    if file.is_file():  # some have scores alone
        writer.show(step, file)
    return scores


def _preview_file(workdir: Path, step: int) -> Path:
    return workdir / "samples" / f"step_{step:07d}.png"


def draw_missing_preview(
    config: ConfigDict, workdir: Path, method: Method, state: TrainState, mesh: Mesh
) -> None:
    """What a stop between the last save and the last preview left out."""
    step = config.num_steps
    rows = read_metrics(workdir / METRICS_FILE)
    is_scored = any(row["step"] == step and "loss" not in row for row in rows)
    file = _preview_file(workdir, step)
    is_lost = not file.is_file() and is_noted(workdir, file.relative_to(workdir).as_posix())
    looks = method.preview is not None or method.validation is not None
    if looks and (is_lost or not is_scored):
        frozen = place(method.frozen, frozen_shardings(method.frozen, mesh))
        with MetricWriter(workdir, config, step) as writer:
            draw_preview(method, writer, workdir, state, frozen, step)
