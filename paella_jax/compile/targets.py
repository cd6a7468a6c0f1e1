"""Machines that programs are compiled for, and what one device of each can do at most."""

from __future__ import annotations

import importlib.util
import math
import os
from dataclasses import dataclass
from typing import Any

from paella_jax.config import UserError

GIB = 2**30


class TargetError(UserError, ValueError):
    """There is no such machine, or what compiles for it is not installed."""


@dataclass(frozen=True)
class Chip:
    """One device as JAX counts them; public numbers of its maker.

    Attributes:
      memory: bytes that a program may fill. Of a TPU what its compiler allows; of a GPU 90 %, what
        is left for XLA under XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 (the default is 0.75).
      flops: dense bfloat16 products, FLOP/s.
      bandwidth: of its memory, bytes/s.
      link: bytes/s that it sends to its neighbours (NVLink, inter-chip links), one direction.
      network: the same beyond its node; 0 where all links are alike.
      node: devices of one node.
      source: where the numbers stand.
    """

    memory: float
    flops: float
    bandwidth: float
    link: float
    network: float = 0.0
    node: int = 0
    source: str = ""


CLOUD = "cloud.google.com/tpu/docs"
NVIDIA = "NVIDIA's data sheet, SXM; network"
CHIPS: dict[str, Chip] = {
    "tpu:v4": Chip(30.75 * GIB, 275e12, 1.228e12, 150e9, source=f"{CLOUD}/v4"),
    "tpu:v5e": Chip(15.75 * GIB, 197e12, 0.819e12, 100e9, source=f"{CLOUD}/v5e"),
    "tpu:v5p": Chip(95.74 * GIB, 459e12, 2.765e12, 300e9, source=f"{CLOUD}/v5p"),
    "tpu:v6e": Chip(31.25 * GIB, 918e12, 1.638e12, 224e9, source=f"{CLOUD}/v6e"),
    "gpu:a100": Chip(0.9 * 79.15 * GIB, 312e12, 2.039e12, 300e9, 25e9, 8, f"{NVIDIA} 8 x 200 Gb/s"),
    "gpu:h100": Chip(0.9 * 79.1 * GIB, 989e12, 3.352e12, 450e9, 50e9, 8, f"{NVIDIA} 8 x 400 Gb/s"),
}
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # v5e, v6e
EXAMPLES = (
    "tpu:v5e:4x4, tpu:v6e:8x8 ("
    + ", ".join(FLAT)
    + "), tpu:v4:4x4x4, tpu:v5p:4x4x8 (sides of 1, 2 "
    "or multiples of 4), gpu:h100:8, gpu:a100:64 (80 GB; up to 8, or whole nodes of 8), cpu:8"
)
# What XLA must know of a GPU that is not there: multiprocessors, shared memory of one and of a
# block, L2 cache, clock in GHz, compute capability.
GPUS: dict[str, tuple[int, int, int, int, float, str, str]] = {
    "gpu:a100": (108, 167936, 166912, 41943040, 1.41, "8", "NVIDIA A100-SXM4-80GB"),
    "gpu:h100": (132, 233472, 232448, 52428800, 1.98, "9", "NVIDIA H100 80GB HBM3"),
}
SIMULATED = "--xla_force_host_platform_device_count="
PLAN_MODULES = {"tpu": "libtpu", "gpu": "jax_plugins.xla_cuda13"}


@dataclass(frozen=True)
class Target:
    """A machine: `text` as it was asked for, its platform, chip, and how many devices it has."""

    text: str
    platform: str  # tpu, gpu or cpu
    chip: Chip | None  # None for a CPU, of which nothing is promised
    layout: str  # of a TPU slice, such as 4x4
    count: int

    def describe(self) -> str:
        """A name for people."""
        return f"{self.text} ({self.count} device{'s' if self.count > 1 else ''})"


def parse_target(text: str) -> Target:
    """`tpu:v5e:4x4`, `gpu:h100:8` or `cpu:8`.

    Raises:
      TargetError: no such machine; the message lists what exists.
    """
    platform, _, rest = text.partition(":")
    name, _, size = rest.partition(":")
    if platform == "cpu" and _is_count(rest):
        return Target(text, "cpu", None, "", int(rest))
    chip = CHIPS.get(f"{platform}:{name}")
    if platform == "tpu" and chip is not None and _is_slice(name, size):
        return Target(text, "tpu", chip, size, math.prod(map(int, size.split("x"))))
    if platform == "gpu" and chip is not None and _are_nodes(size, chip.node):
        return Target(text, "gpu", chip, "", int(size))
    raise TargetError(f"there is no target {text!r}; there are {EXAMPLES}")


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text) <= 65536


def _are_nodes(text: str, node: int) -> bool:
    return _is_count(text) and (int(text) <= node or int(text) % node == 0)


def _is_slice(name: str, size: str) -> bool:
    if name in ("v5e", "v6e"):
        return size in FLAT
    sides = size.split("x")
    fits = lambda side: _is_count(side) and (int(side) in (1, 2) or int(side) % 4 == 0)
    return len(sides) == 3 and all(map(fits, sides)) and size != "1x1x1"


def set_environment(target: Target) -> None:
    """Set before jax looks for devices: it runs on the CPU, whatever it compiles for."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if target.platform == "cpu":
        flag = f"{SIMULATED}{target.count}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    if target.platform == "tpu":  # libtpu would ask the machine what it is, and wait for an answer
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # none of them holds a device


def check_installed(target: Target) -> None:
    """Raises TargetError where the target's compiler is not installed."""
    module = PLAN_MODULES.get(target.platform)
    if module is None:
        return
    parent = module.partition(".")[0]
    if importlib.util.find_spec(parent) is None or importlib.util.find_spec(module) is None:
        raise TargetError(
            f"compiling for {target.text} needs {module}, which is not installed: "
            "pip install 'paella_jax[plan]' (no device and no driver is needed)"
        )


def devices_of(target: Target) -> list[Any]:
    """The target's devices, to compile for. Raises TargetError (`check_installed`)."""
    import jax

    if target.platform == "cpu":
        devices = jax.devices("cpu")
        if len(devices) < target.count:
            raise TargetError(
                f"jax was started with {len(devices)} simulated devices, {target.text} asks for "
                f"{target.count}: set XLA_FLAGS={SIMULATED}{target.count} before it starts"
            )
        return devices[: target.count]
    check_installed(target)
    from jax.experimental import topologies

    chip = target.text.rpartition(":")[0]
    if target.platform == "tpu":
        options: dict[str, Any] = {}
        if chip in ("tpu:v4", "tpu:v5p"):  # both cores of a chip are one device
            options = {"chip_config_name": "megacore"}
        if target.count == 1:
            options["chips_per_host_bounds"] = [1, 1, 1]
        name = target.text.removeprefix("tpu:")
        return list(topologies.get_topology_desc(name, platform="tpu", **options).devices)
    assert target.chip is not None
    inside = min(target.count, target.chip.node)
    topology = topologies.get_topology_desc(
        target.text,
        platform="cuda",
        target_config=_gpu_config(chip),
        topology=f"1x{target.count // inside}x{inside}",
    )
    return list(topology.devices)


def _gpu_config(chip: str) -> str:
    """XLA's description of a GPU, as text; limits that no GPU of today changes are spelled out."""
    cores, shared, optin, cache, clock, capability, name = GPUS[chip]
    known = CHIPS[chip]
    info = {
        "threads_per_block_limit": 1024, "threads_per_warp": 32, "threads_per_core_limit": 2048,
        "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65535, "block_dim_limit_z": 65535,
        "registers_per_core_limit": 65536, "registers_per_block_limit": 65536,
        "shared_memory_per_block": 49152, "shared_memory_per_core": shared,
        "shared_memory_per_block_optin": optin, "core_count": cores,
        "fpus_per_core": 128 if capability == "9" else 64, "l2_cache_size": cache,
        "clock_rate_ghz": clock, "memory_bandwidth": int(known.bandwidth),
        "device_memory_size": int(known.memory / 0.9),
    }  # fmt: skip
    fields = " ".join(f"{key}: {value}" for key, value in info.items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {capability} }} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 7 } '
        f'runtime_version {{ major: 13 }} device_description_str: "{name}"'
    )
