"""What a run looks at while it trains: samples that it draws, and the loss of held-back ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.runs.digests import is_noted, noting
from paella_jax.runs.folder import METRICS_FILE, read_metrics
from paella_jax.training.cluster import ClusterError
from paella_jax.training.distributed import failed_alike
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

    One line of metrics has both. Training does not end for what fails here, nor one for the other;
    without a line for the last step the next call looks again. Of several processes all have to
    fail alike: where one alone does, the others may wait for its part, and training ends.
    """
    scores: dict[str, float] | None = None
    if method.preview is not None:
        with _survived(f"preview of step {step}"), jax.transfer_guard("allow"):
            scores = _drawn(method, writer, workdir, state, frozen, step)
    if method.validation is not None:
        with _survived(f"validation of step {step}"), jax.transfer_guard("allow"):
            scores = (scores or {}) | method.validation(state, frozen)
    if scores is not None:
        writer.write(step, scores)


@contextmanager
def _survived(name: str) -> Iterator[None]:
    """Reports an error of the block, and raises it where other processes did not have one."""
    caught: Exception | None = None
    try:
        yield
    except Exception as error:
        caught = error
    try:
        alike = failed_alike(name, caught is not None)
    except ClusterError:
        if caught is None:
            raise
        alike = False
    if caught is not None:
        if not alike:
            raise caught
        report(f"{name} failed, training goes on: {caught}")


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
