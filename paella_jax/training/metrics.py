"""Metric lines: JSONL always, TensorBoard and W&B on request, and a progress bar."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path

import jax
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from paella_jax.config import ConfigError, StoppedAtOnce, flatten_config
from paella_jax.files.atomic import naming, sync, write_atomically
from paella_jax.outside import escaped_lines
from paella_jax.runs.checked_lines import metrics_line
from paella_jax.runs.folder import METRICS_FILE, read_metrics
from paella_jax.training.trackers import Tracker, trackers


def report(message: str) -> None:
    """One line for the person watching, on process 0."""
    if jax.process_index() == 0:
        tqdm.write(escaped_lines(message))


class MetricWriter:
    """Appends {"step", name: value} lines to `metrics.jsonl` on process 0.

    Under `with`, which ends the other writers: a process may train several runs.
    """

    def __init__(self, workdir: Path, config: ConfigDict, resume_step: int = 0) -> None:
        self.enabled = jax.process_index() == 0
        self.file = workdir / METRICS_FILE
        self.others: list[Tracker] = []
        if not self.enabled:
            return
        _cut_after(self.file, resume_step)
        self.others = trackers(workdir, config, resume_step)

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, StoppedAtOnce):  # nothing is waited for then
            self._close(failed=kind is not None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line and hands it to the other writers."""
        if not self.enabled:
            return
        with naming(self.file), self.file.open("a") as stream:
            stream.write(metrics_line({"step": step, **values}))
        for other in self.others:
            other.write(step, values)

    def sync(self) -> None:
        """Waits until what was written is on the disk, as a save is that comes next."""
        if self.enabled and self.file.is_file():
            sync(self.file)

    def show(self, step: int, file: Path) -> None:
        """Hands an image of the run folder to the other writers, where there are any."""
        for other in self.others:
            other.show(step, file)

    def _close(self, failed: bool) -> None:
        for other in self.others:
            try:
                other.close(failed)
            except Exception as error:  # what was trained is saved, or told by its own error
                report(f"{type(other).__name__} could not be closed: {error}")


# What a config asks for: a field, its value (None: any), the package and the extra that has it.
OPTIONAL = (
    ("log.tensorboard", None, "tensorboardX", "tensorboard"),
    ("log.wandb", None, "wandb", "wandb"),
    ("data.source", "parquet", "pyarrow", "data"),
    ("data.source", "tfds", "tensorflow_datasets", "data"),
    ("data.source", "array_record", "array_record", "data"),
)


def check_packages(config: ConfigDict) -> None:
    """Raises ConfigError where a training needs a package that is not there.

    For the start of a command: what needs them is made behind longer work.
    """
    values = flatten_config(config)
    for field, wanted, package, extra in OPTIONAL:
        value = values.get(field)
        asked = bool(value) if wanted is None else value == wanted
        if asked and importlib.util.find_spec(package) is None:
            shown = field if wanted is None else f"{field}={wanted}"
            raise ConfigError(f"{shown} needs: pip install 'paella_jax[{extra}]'")


def _cut_after(file: Path, step: int) -> None:
    """Drops lines past the checkpoint a run resumes from, so that no step stands twice."""
    if file.is_file():
        kept = [metrics_line(row) for row in read_metrics(file) if row["step"] <= step]
        write_atomically(file, "".join(kept))
    else:
        read_metrics(file)  # tells where they are lost


class Progress:
    """Progress bar with ETA on process 0, and the rate of images since it was last asked."""

    def __init__(self, start: int, total: int, batch_size: int, title: str) -> None:
        self.batch_size = batch_size
        self.bar = tqdm(
            total=total,
            initial=start,
            desc=title,
            unit="step",
            disable=jax.process_index() != 0,
            mininterval=5.0,
            dynamic_ncols=True,
        )
        self._mark, self._steps = time.perf_counter(), 0

    def step(self) -> None:
        """Counts one update."""
        self.bar.update(1)
        self._steps += 1

    def images_per_second(self) -> float:
        """The rate since the last call."""
        now = time.perf_counter()
        rate = self._steps * self.batch_size / max(now - self._mark, 1e-9)
        self._mark, self._steps = now, 0
        return rate

    def show(self, values: Mapping[str, float]) -> None:
        """Puts a few numbers behind the bar."""
        names = [n for n in ("loss", "accuracy", "mse", "images_per_second") if n in values]
        self.bar.set_postfix_str(" ".join(f"{n}={values[n]:.4g}" for n in names), refresh=False)

    def close(self) -> None:
        """Ends the bar's line."""
        self.bar.close()
