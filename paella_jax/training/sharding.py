"""Device mesh and sharding rules; the batch's own axes are in ops/batch_axis.py."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from paella_jax.config import UserError
from paella_jax.ops.batch_axis import BATCH
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


def make_mesh(mesh: ConfigDict, devices: list[Any] | None = None) -> Mesh:
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
    arranged = mesh_utils.create_device_mesh(tuple(sizes), devices, allow_split_physical_axes=True)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * 3)


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Raises MeshError where a micro-batch cannot be spread evenly over the devices."""
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


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The batch axis over ("fsdp", "data")."""
    return NamedSharding(mesh, BATCH)


def shard_batch(local: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's samples -> global arrays sharded over the mesh."""
    sharding = batch_sharding(mesh)
    put = lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x))
    return jax.tree.map(put, local)


def abstract_batch(local: dict[str, np.ndarray], mesh: Mesh, processes: int) -> Tree:
    """Shapes and shardings of the global batch, for compiling before the first batch."""
    describe = lambda x: jax.ShapeDtypeStruct(
        (x.shape[0] * processes, *x.shape[1:]),
        jax.dtypes.canonicalize_dtype(x.dtype),
        sharding=batch_sharding(mesh),
    )
    return jax.tree.map(describe, local)


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
