"""Ahead-of-time compilation of the train step: for the loop, and for `paella_jax.compile`."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.training.method import Method
from paella_jax.training.metrics import report
from paella_jax.training.optim import Pace, pace_of
from paella_jax.training.placing import abstract_batch, place
from paella_jax.training.pulse import pulse
from paella_jax.training.sharding import replicated
from paella_jax.training.step import make_train_step
from paella_jax.typing import Tree

MIB = 2**20
# For a program that is only looked at: no machine code worth running, the same partitioning.
FOR_LOOKING = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def compile_step(
    config: ConfigDict,
    method: Method,
    state: Tree,
    frozen: Tree,
    base_key: Any,
    mesh: Mesh,
    options: dict[str, Any] | None = None,
    batch: Tree = None,
) -> tuple[Any, float]:
    """Compiles the step for shapes; nothing is computed. Returns (compiled, seconds).

    Args:
      config: the run's config.
      method: its first sample gives the batch's shapes, unless `batch` is given.
      state: abstract train state with shardings (`loop.abstract_state`).
      frozen: frozen networks, or their shapes with shardings.
      base_key: PRNG key, or its shape with sharding.
      mesh: the current mesh.
      options: settings of the XLA compiler.
      batch: shapes with shardings.
    """
    if batch is None:
        batch = first_batch(config, method, mesh)
    began = time.perf_counter()
    step = jitted_step(config, method, state, mesh)
    pace = abstract_pace(config, mesh)
    with pulse("compiling the train step"):
        compiled = step.lower(state, frozen, batch, base_key, pace).compile(options)
    return compiled, time.perf_counter() - began


def abstract_pace(config: ConfigDict, mesh: Mesh) -> Pace:
    """Shapes of the step's last argument."""
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh))
    return jax.tree.map(shape, pace_of(config))


def jitted_step(config: ConfigDict, method: Method, state: Tree, mesh: Mesh) -> Any:
    """The train step under jit: the state is donated and keeps its shardings."""
    step = make_train_step(method.objective, config, method.after_update)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


class StepPrograms:
    """The train step of one run, compiled once for each shape of batch (buckets have several)."""

    def __init__(
        self, config: ConfigDict, method: Method, state: Tree, frozen: Tree, key: Any, mesh: Mesh
    ) -> None:
        """Compiles for the first sample's shape; arguments as in `compile_step`."""
        self._compile = lambda batch: compile_step(
            config, method, state, frozen, key, mesh, batch=batch
        )
        batch = first_batch(config, method, mesh)
        self._pace = jax.tree.map(lambda x: place(x, replicated(mesh)), pace_of(config))
        self.seconds = 0.0
        self._programs: dict[Any, Any] = {}
        self._add(batch)

    def _add(self, batch: Tree) -> Any:
        compiled, seconds = self._compile(batch)
        self.seconds += seconds
        self._programs[_shapes(batch)] = compiled
        peak = getattr(compiled.memory_analysis(), "peak_memory_in_bytes", 0) / MIB
        report(f"train step compiled in {seconds:.1f} s, peak {peak:.0f} MiB per device")
        return compiled

    def __call__(self, state: Tree, frozen: Tree, batch: dict[str, Any], key: Any) -> Any:
        """The step."""
        program = self._programs.get(_shapes(batch))
        if program is None:
            with jax.transfer_guard("allow"):
                describe_leaf = lambda x: jax.ShapeDtypeStruct(
                    x.shape, x.dtype, sharding=x.sharding
                )
                program = self._add(jax.tree.map(describe_leaf, batch))
        return program(state, frozen, batch, key, self._pace)


def _shapes(batch: dict[str, Any]) -> Any:
    return tuple(sorted((name, x.shape) for name, x in batch.items()))


def first_batch(config: ConfigDict, method: Method, mesh: Mesh) -> Tree:
    """Shapes and shardings of the global batch, from the first sample."""
    return abstract_batch(method.transform(method.source[0]), config.batch_size, mesh)


def bytes_per_device(tree: Tree) -> int:
    """Bytes that one device holds of shapes with shardings."""
    size = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(size(x) for x in jax.tree.leaves(tree))
