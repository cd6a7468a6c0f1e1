"""The one training loop, for every family.

Order of things: mesh -> data -> state and shardings -> restore -> compile -> steps. In a step:
save if due -> next batch -> update -> look at the metrics of the update before.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.config import ConfigError, StoppedAtOnce, UserError, WriteError
from paella_jax.data.loader import make_iterator
from paella_jax.files.compile_cache import keep_programs
from paella_jax.files.interrupts import raise_what_came
from paella_jax.runs.checkpoint import Checkpointer
from paella_jax.runs.digests import note_files
from paella_jax.runs.durable import check_renames
from paella_jax.runs.folder import METRICS_FILE, has_progress, read_metrics
from paella_jax.runs.whole_steps import set_aside_incomplete
from paella_jax.training.compiled_step import StepPrograms
from paella_jax.training.distributed import check_same_start, first_alone
from paella_jax.training.looked_at import (
    check_length,
    marks_of_data,
    told_of_data,
)
from paella_jax.training.method import Method
from paella_jax.training.metrics import MetricWriter, Progress, report
from paella_jax.training.optim import make_optimizer, pace_of
from paella_jax.training.placing import local_rows, place, shard_batch
from paella_jax.training.preview import draw_missing_preview, draw_preview
from paella_jax.training.sharding import (
    check_batch,
    frozen_shardings,
    make_mesh,
    replicated,
    state_shardings,
)
from paella_jax.training.state import TrainState, create_state
from paella_jax.training.timing import Clock, read_calls, record_killed
from paella_jax.training.watchdog import Watchdog
from paella_jax.typing import Tree


class TrainingDiverged(UserError, RuntimeError):
    """A loss or gradient is not finite; the message names the step."""


@dataclass
class RunResult:
    """How a call of `train` ended."""

    state: TrainState
    step: int
    seconds: float
    compile_seconds: float
    stopped: str  # SIGTERM or SIGINT, if one came: everything up to `step` is saved
    spent: dict[str, float] = field(default_factory=dict)  # what the seconds went into


def train(config: ConfigDict, workdir: str | Path, method: Method) -> RunResult:
    """Trains up to `config.num_steps`, resuming from the newest checkpoint in `workdir`.

    Args:
      config: a run's config, as configs/ makes them.
      workdir: an existing run folder (`runs.folder.prepare_workdir`).
      method: from `registry.build_method`.

    Raises:
      ConfigError, MeshError, CheckpointError: before anything is compiled.
      TrainingDiverged: with the step; the last saved checkpoint is from before it.
    """
    workdir = Path(workdir).absolute()
    clock = Clock(read_calls(workdir))
    keep_programs()
    if config.num_steps < 1:
        raise ConfigError(f"num_steps must be at least 1, got {config.num_steps}")
    mesh = make_mesh(config.mesh)
    check_batch(config.batch_size, config.optim.accumulation, mesh)
    with jax.set_mesh(mesh):
        return _train(config, workdir, method, mesh, clock)


def abstract_state(config: ConfigDict, method: Method, mesh: Mesh) -> tuple[Tree, Any]:
    """Shapes with shardings of the whole train state, and the function that creates it."""
    use_ema = config.optim.ema_decay > 0

    def init(key: jax.Array) -> TrainState:
        optimizer = make_optimizer(config.optim, pace_of(config))
        return create_state(*method.init(key), optimizer, use_ema)

    shapes = jax.eval_shape(lambda: init(jax.random.key(0)))
    shardings = state_shardings(shapes, mesh)
    described = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    return described, jax.jit(init, out_shardings=shardings)


def _train(
    config: ConfigDict, workdir: Path, method: Method, mesh: Mesh, clock: Clock
) -> RunResult:
    abstract, init = abstract_state(config, method, mesh)
    first_alone("checkpoints", lambda: _put_in_order(workdir, config.checkpoint.keep))
    checkpointer = Checkpointer(workdir, config.checkpoint.keep)
    newest = checkpointer.latest_step()
    check_same_start(newest, marks_of_data(method.source))
    resumed = newest is not None
    check_length(workdir, len(method.source), resumed)
    for line in told_of_data(method):
        report(line)
    if resumed:
        state = checkpointer.restore(abstract)
        report(f"resuming {workdir} at step {int(state.step)}")
    else:
        state = init(jax.random.key(config.seed))
    start = int(state.step)
    if start >= config.num_steps:
        checkpointer.close()
        if start == config.num_steps and jax.process_count() == 1:
            draw_missing_preview(config, workdir, method, state, mesh)
        clock.started(0.0)
        return RunResult(state, start, clock.seconds(), 0.0, "", clock.entry())

    data = make_iterator(
        method.source,
        method.transform,
        batch_size=config.batch_size,
        seed=config.seed,
        start=start,
        rows=local_rows(config.batch_size, mesh),
        threads=config.data.threads,
        prefetch=config.data.prefetch,
    )
    frozen = place(method.frozen, frozen_shardings(method.frozen, mesh))
    make_key = jax.jit(lambda: jax.random.key(config.seed + 1), out_shardings=replicated(mesh))
    base_key = make_key()
    step_fn = StepPrograms(config, method, abstract, frozen, base_key, mesh)
    if jax.process_index() == 0:
        record_killed(workdir, read_metrics(workdir / METRICS_FILE), start)
        clock.before = read_calls(workdir)
    with MetricWriter(workdir, config, start) as writer:
        progress = Progress(start, config.num_steps, config.batch_size, method.title)
        parts = (config, workdir, method, checkpointer, data, writer, progress, clock)
        run = _Run(*parts, Watchdog())
        clock.started(step_fn.seconds)
        try:
            state, stopped = run.steps(state, start, step_fn, frozen, base_key, mesh)
        except BaseException as error:
            progress.close()
            if not isinstance(error, StoppedAtOnce):  # nothing is waited for then
                with suppress(WriteError):
                    checkpointer.close()
            run.watchdog.stop()
            raise
        progress.close()
        with clock.spending("save"):
            checkpointer.close()
        run.watchdog.stop()
    clock.spent["compile"] = step_fn.seconds  # of buckets' other shapes, in the middle, too
    entry = clock.entry()
    return RunResult(state, int(state.step), entry["seconds"], step_fn.seconds, stopped, entry)


def _put_in_order(workdir: Path, keep: int | None) -> None:
    if not has_progress(workdir):
        check_renames(workdir)
    note_files(workdir)  # frozen networks of this call, and what a kill left unnoted
    moved = set_aside_incomplete(workdir, keep)
    if moved:
        report(moved)


@contextmanager
def _stop_signals() -> Iterator[list[str]]:
    """A list of the signals that came: SIGTERM (preemption, job limit) or SIGINT (Ctrl-C).

    The process does not die of them, but a second SIGINT ends it at once, without waiting for a
    save that is being written. Where there are several processes signals are left to JAX, which
    agrees on a step for all. Raises KeyboardInterrupt at once for one that came before, and was
    lost.
    """
    came: list[str] = []

    def note(number: int, _: object) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT:
            if name in came:
                raise StoppedAtOnce
            report("SIGINT: saving after this step, then stopping; a second one stops at once")
        came.append(name)

    before = {}
    try:
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                before[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread (a notebook server, some tests)
        pass
    try:
        raise_what_came()
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Run:
    """The parts a running loop uses; `steps` is the loop."""

    config: ConfigDict
    workdir: Path
    method: Method
    checkpointer: Checkpointer
    data: Iterator[dict[str, np.ndarray]]
    writer: MetricWriter
    progress: Progress
    clock: Clock
    watchdog: Watchdog

    def steps(
        self, state: TrainState, start: int, step_fn: Any, frozen: Tree, key: jax.Array, mesh: Mesh
    ) -> tuple[TrainState, str]:
        """Runs from `start` to the end or to a signal; returns the state and the signal's name."""
        config, pending = self.config, None
        with _stop_signals() as came, jax.transfer_guard("disallow"):
            for step in range(start, config.num_steps):
                stop = self._should_stop(bool(came), step)
                if stop or (step > start and step % config.checkpoint.every == 0):
                    self._look_at(pending, step - 1)  # never save a broken state
                    pending = None
                    self._save(step, state)
                if stop:
                    signal_name = came[0] if came else "SIGTERM"  # at another process
                    report(f"{signal_name}: saved step {step}, stopping")
                    return state, signal_name
                batch = shard_batch(self._next_batch(pending), config.batch_size, mesh)
                state, metrics = step_fn(state, frozen, batch, key)
                self._look_at(pending, step - 1)
                self.watchdog.beat()
                pending = metrics
                self.progress.step()
                if step + 1 < config.num_steps:
                    self._preview(state, frozen, step + 1)
            self._look_at(pending, config.num_steps - 1, last=True)
            self._save(config.num_steps, state)
            if not came:
                self._preview(state, frozen, config.num_steps)
        return state, came[0] if came else ""

    def _next_batch(self, running: dict[str, Any] | None) -> dict[str, np.ndarray]:
        """This process's rows; waiting counts from when the update that runs meanwhile is done."""
        done: list[float] = [] if running is not None else [time.perf_counter()]

        def note_done() -> None:
            with suppress(Exception):  # which the loop meets by itself
                jax.block_until_ready(running)
                done.append(time.perf_counter())

        if running is not None:  # a thread costs a tenth of a millisecond an update
            threading.Thread(target=note_done, daemon=True).start()
        began = time.perf_counter()
        rows = next(self.data)
        if done:
            self.clock.spent["data"] += time.perf_counter() - max(began, done[0])
        return rows

    def _save(self, step: int, state: TrainState) -> None:
        # Older versions of orbax let processes wait for each other by way of their devices.
        with self.clock.spending("save"), jax.transfer_guard("allow"):
            self.writer.sync()  # a finished save has the metrics before it
            self.checkpointer.save(step, state)
        self.watchdog.beat()

    def _preview(self, state: TrainState, frozen: Tree, step: int) -> None:
        every = self.config.log.preview_every
        if step == self.config.num_steps or (every and step % every == 0):
            with self.clock.spending("preview"):
                draw_preview(self.method, self.writer, self.workdir, state, frozen, step)
            self.watchdog.beat()

    def _should_stop(self, terminated: bool, step: int) -> bool:
        if jax.process_count() == 1:
            return terminated
        # Processes get the signal at different steps; jax agrees on one for all of them.
        return self.checkpointer.manager.reached_preemption(step)

    def _look_at(self, metrics: dict[str, jax.Array] | None, step: int, last: bool = False) -> None:
        """Checks and logs the metrics of update `step`, one update late so that nothing waits."""
        if metrics is None:
            return None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(values[name]):
                raise TrainingDiverged(
                    f"{name} is {values[name]} at step {step}; the newest checkpoint is from "
                    "before it. Look at the data, or go on from there with a lower rate: the same "
                    "command with --config.optim.learning_rate=... (and .warmup_steps=...)"
                )
        if (step + 1) % self.config.log.every == 0 or last:
            values["images_per_second"] = self.progress.images_per_second()
            values |= self.clock.told()
            self.writer.write(step + 1, values)
            self.progress.show(values)
        return None
