"""Device mesh and sharding rules; what is placed by them is in placing.py."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from paella_jax.config import UserError
from paella_jax.runs.lora import BASE
from paella_jax.typing import Tree

AXES = ("data", "fsdp", "tensor")
MIN_SHARD_SIZE = 2**14  # smaller arrays stay whole on every device
MAX_REPLICATED_FRACTION = 0.02

# (path pattern, axes of the last dimensions); first match wins, a dimension that does not divide
# stays whole. Wide projections split their outputs over "tensor", the way back their inputs
# (Shoeybi et al. 2019, "Megatron-LM"); the classifier splits its classes. What a network has once
# (embeddings, the context's and the output's projection) is sharded over "fsdp" alone.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(expand|wi_0|wi_1|mlp_in|query|key|value|kv_mapper|modulation)/kernel$", ("fsdp", "tensor")),
    (r"(contract|wo|mlp_out|attention(_\d)?/out)/kernel$", ("tensor", "fsdp")),
    (r"in_kernel$|(^|/)classifier$", ("fsdp", "tensor")),
)


class MeshError(UserError, ValueError):
    """The mesh does not fit the devices or the batch."""


def make_mesh(mesh: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
    """The ("data", "fsdp", "tensor") mesh; one axis may be -1 for all the remaining devices.

    Raises:
      MeshError: naming the sizes, the device count and the fix.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [mesh.data, mesh.fsdp, mesh.tensor]
    shown = ", ".join(f"{a}={s}" for a, s in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
        raise MeshError(f"mesh ({shown}) may have one axis -1; the others must be positive")
    known = math.prod(s for s in sizes if s != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise MeshError(
            f"mesh ({shown}) does not fit {len(devices)} devices: the sizes must multiply to "
            f"{len(devices)}; set --config.mesh.data=-1 to take all the rest"
        )
    return Mesh(_laid_out(tuple(sizes), devices), AXES, axis_types=(AxisType.Auto,) * 3)


def _laid_out(sizes: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """The devices as an array of these sizes, neighbours of the last axes near each other.

    An axis of the mesh may take a part of an axis of the machine's torus: an 8x8 slice has meshes
    of 4 x 16, too.

    Raises:
      MeshError: with sizes that the machine allows.
    """
    try:
        return _device_mesh(sizes, devices)
    except (NotImplementedError, ValueError, AssertionError) as error:
        works = lambda shape: _works(partial(_device_mesh, shape, devices))
        possible = [shape for shape in _factored(len(devices)) if works(shape)]
        far = lambda shape: np.abs(np.log(np.divide(shape, sizes))).sum()
        near = [dict(zip(AXES, shape, strict=True)) for shape in sorted(possible, key=far)[:4]]
        shown = "; ".join(" ".join(f"{axis}={n}" for axis, n in mesh.items()) for mesh in near)
        raise MeshError(
            f"these {len(devices)} devices ({devices[0].device_kind}) cannot be laid out as "
            f"{sizes}: {error}. Meshes that can: {shown}"
        ) from error


def _device_mesh(sizes: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """Slices (of TPUs; of GPUs, nodes) are joined along "data", then "fsdp": the network between
    them is slow."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    over_data = math.gcd(sizes[0], slices)
    between = (over_data, slices // over_data, 1)
    if sizes[1] % between[1]:
        raise ValueError(f"data and fsdp do not divide by the {slices} slices together")
    within = tuple(size // n for size, n in zip(sizes, between, strict=True))
    return mesh_utils.create_hybrid_device_mesh(
        within, between, devices, allow_split_physical_axes=True
    )


def _factored(count: int) -> list[tuple[int, int, int]]:
    """All the ways to write a number as a product of three."""
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    return [(a, b, count // a // b) for a in divisors for b in divisors if count // a % b == 0]


def _works(build: Callable[[], Any]) -> bool:
    try:
        build()
    except (NotImplementedError, ValueError, AssertionError):
        return False
    return True


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Raises MeshError where a micro-batch cannot be spread evenly over the devices."""
    for name, value in (("batch_size", batch_size), ("optim.accumulation", accumulation)):
        if value < 1:
            raise MeshError(f"{name} must be at least 1, got {value}")
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (shards * accumulation):
        raise MeshError(
            f"batch_size {batch_size} must be divisible by {shards} batch shards "
            f"(data x fsdp) times {accumulation} micro-batches = {shards * accumulation}"
        )


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def spec_for(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The rule for one array; the fallback shards its largest divisible dimension over fsdp."""
    if math.prod(shape) < MIN_SHARD_SIZE:
        return P()
    fits = lambda size, axis: axis is not None and size % mesh.shape[axis] == 0
    for pattern, axes in RULES:
        if re.search(pattern, name) and len(axes) <= len(shape):
            padded = (None,) * (len(shape) - len(axes)) + axes
            return P(*(a if fits(s, a) else None for s, a in zip(shape, padded, strict=True)))
    for i in sorted(range(len(shape)), key=lambda i: -shape[i]):
        if fits(shape[i], "fsdp"):
            return P(*("fsdp" if j == i else None for j in range(len(shape))))
    return P()


def state_shardings(abstract: Tree, mesh: Mesh) -> Tree:
    """A NamedSharding per leaf. Optimiser state and averages follow by the end of their paths.

    Raises:
      MeshError: more than 2 % of the bytes would stay whole on every device of an fsdp mesh.
    """
    shard = lambda path, leaf: NamedSharding(mesh, spec_for(_name(path), leaf.shape, mesh))
    shardings = jax.tree_util.tree_map_with_path(shard, abstract)
    if mesh.shape["fsdp"] > 1:
        _check_replicated(abstract, shardings)
    return shardings


def _check_replicated(abstract: Tree, shardings: Tree) -> None:
    sizes = jax.tree.map(lambda x: math.prod(x.shape), abstract)
    whole = jax.tree.map(
        lambda n, s: n if n >= MIN_SHARD_SIZE and s.is_fully_replicated else 0, sizes, shardings
    )
    total, replicated = sum(jax.tree.leaves(sizes)), sum(jax.tree.leaves(whole))
    if replicated > MAX_REPLICATED_FRACTION * max(total, 1):
        raise MeshError(
            f"{replicated / total:.1%} of the state would be copied to every device: no dimension "
            "of the large arrays divides by the fsdp size; choose another mesh.fsdp"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, P())


# Frozen networks above this size are sharded over "fsdp": gathering them costs less than holding
# them whole (ByT5-XL alone is 4.6 GiB).
LARGE_BYTES = 256 * 2**20


def frozen_shardings(frozen: Mapping[str, Tree], mesh: Mesh) -> dict[str, Tree]:
    """A LoRA base and large frozen networks sharded as if they were trained, small ones whole.

    Raises:
      MeshError: one does not divide (`state_shardings`).
    """
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    sharded = lambda name, tree: name == BASE or size(tree) > LARGE_BYTES
    whole = replicated(mesh)
    return {n: state_shardings(t, mesh) if sharded(n, t) else whole for n, t in frozen.items()}
