"""Compiling one preset: trace, lower, compile, account."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.compile.account import describe, estimate, held_report, too_large, verdict
from paella_jax.compile.programs import PROGRAMS, Program, sample_program, train_program
from paella_jax.compile.targets import Target, devices_of
from paella_jax.config import ConfigError
from paella_jax.evaluation.flops import flops_by_type
from paella_jax.families.start import settle_config
from paella_jax.ops.target import compiling_for
from paella_jax.training.compiled_step import FOR_LOOKING, MIB
from paella_jax.training.pulse import pulse
from paella_jax.training.sharding import MeshError, check_batch, make_mesh

# Without a GPU to try them on, XLA finds no tiles for some products ("Couldn't find output tile
# sizes"): all of them are left to cuBLAS.
OPTIONS = {"cpu": FOR_LOOKING, "gpu": {"xla_gpu_enable_triton_gemm": False}}
IMAGES_PER_DEVICE = 8  # that `--program sample` draws


def compile_preset(
    config: ConfigDict,
    target: Target | None = None,
    program: str = "train",
    images: int | None = None,
) -> dict[str, Any]:
    """Compiles one step, or the sampler, of a config; returns what `compile` prints.

    Args:
      config: a preset's.
      target: the machine; None for this one's devices.
      program: of `PROGRAMS`.
      images: that the sampler draws at once; 8 per device by default.

    Raises:
      MeshError, ConfigError, TargetError: what cannot be compiled, before anything is.
    """
    if program not in PROGRAMS:
        raise ConfigError(f"program {program!r} must be one of {', '.join(PROGRAMS)}")
    config = settle_config(config, None)
    if target is None:
        target = Target("this machine", jax.default_backend(), None, "", jax.device_count())
        devices = jax.devices()
    else:
        devices = devices_of(target)
    if program == "sample":
        mesh = make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}), devices)
        images = images or IMAGES_PER_DEVICE * len(devices)
        check_batch(images, 1, mesh)
        return _compile(config, target, mesh, program, images)
    mesh = _mesh(config, devices)
    return _compile(config, target, mesh, program, config.batch_size)


def _mesh(config: ConfigDict, devices: list[Any]) -> Mesh:
    """The config's mesh. Raises MeshError with those that the devices and the batch allow."""
    try:
        mesh = make_mesh(config.mesh, devices)
        check_batch(config.batch_size, config.optim.accumulation, mesh)
    except MeshError as error:
        able = possible_meshes(len(devices), config.batch_size // config.optim.accumulation)
        shown = ", ".join(f"({d},{f},{t})" for d, f, t in able) or "none: change batch_size"
        raise MeshError(f"{error}; possible (data,fsdp,tensor): {shown}") from error
    return mesh


def possible_meshes(devices: int, batch: int, most: int = 8) -> list[tuple[int, int, int]]:
    """Meshes (data, fsdp, tensor) that a batch spreads over evenly, whole fsdp and tensor first."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    tensors = [n for n in divisors if n <= 8 and batch % (devices // n) == 0]
    pairs = [(d, devices // n // d, n) for n in tensors for d in divisors if devices // n % d == 0]
    return sorted(pairs, key=lambda mesh: (mesh[0], mesh[2]))[:most]


def _compile(
    config: ConfigDict, target: Target, mesh: Mesh, name: str, images: int
) -> dict[str, Any]:
    seconds: dict[str, float] = {}
    with _timed("trace", seconds), compiling_for(target.platform):
        make: dict[str, Callable[..., Program]] = {
            "train": train_program,
            "encoded": partial(train_program, encoded=True),
            "sample": partial(sample_program, images=images),
        }
        program = make[name](config, mesh)
        with jax.set_mesh(mesh):  # as a train loop and a pipeline do
            traced = program.function.trace(*program.arguments)
    flops = flops_by_type(traced.jaxpr.jaxpr)
    with _timed("lower", seconds):
        lowered = traced.lower()
    options = OPTIONS.get(target.platform)
    told: dict[str, Any] = {}
    with _timed("compile", seconds):
        try:
            compiled = lowered.compile(options)
        except jax.errors.JaxRuntimeError as error:
            told = too_large(str(error)) or {}
            if not told:
                raise
    report = _head(config, target, mesh, name, program, seconds, flops)
    exchanges = None
    if not told:
        told = describe(compiled, target)
        exchanges = told.pop("exchanges")
    report |= told | held_report(program.held)
    if target.chip is not None:
        report.setdefault("capacity_mib", round(target.chip.memory / MIB))
        report["verdict"] = verdict(report["peak_mib"], report["capacity_mib"])
        if exchanges is not None:
            per_device = sum(flops.values()) / target.count
            moved = report["moved_mib"] * MIB
            report["estimate"] = estimate(target, per_device, moved, exchanges, program.images)
            if name != "sample":
                seconds_of_recipe = config.num_steps * report["estimate"]["seconds_estimated"]
                report["estimate"]["days_of_recipe"] = round(seconds_of_recipe / 86400, 1)
    return report


def _head(
    config: ConfigDict,
    target: Target,
    mesh: Mesh,
    name: str,
    program: Program,
    seconds: dict[str, float],
    flops: dict[str, int],
) -> dict[str, Any]:
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    total = sum(flops.values())
    return {
        "preset": config.preset,
        "target": target.describe(),
        "program": name,
        "mesh": dict(mesh.shape),
        "batch_size": program.images,
        "micro_batches": 1 if name == "sample" else config.optim.accumulation,
        "trained_parameters": count(program.trained),
        "frozen_parameters": count(program.frozen),
        "seconds": seconds,
        "compile_seconds": round(sum(seconds.values()), 1),
        # Products and convolutions of one call, frozen networks and recomputation included.
        "teraflops": round(total / 1e12, 3),
        "float32_share": round(flops.get("float32", 0) / max(total, 1), 4),
    }


@contextmanager
def _timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    began = time.perf_counter()
    with pulse(stage):
        yield
    seconds[stage] = round(time.perf_counter() - began, 1)
