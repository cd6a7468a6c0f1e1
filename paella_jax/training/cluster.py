"""Which processes train together: found in the environment, before JAX is touched.

In this order: flags, the variables `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`,
`JAX_PROCESS_ID`, TPU hosts, SLURM, Open MPI, a Kubernetes indexed job. docs/pods.md shows each.
"""

from __future__ import annotations

import importlib.util
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from paella_jax.config import UserError

FLAGS = {
    "coordinator_address": "HOST:PORT of process 0",
    "num_processes": "how many there are",
    "process_id": "which one this is, from 0",
    "local_device_ids": "this process's devices, as 0,1",
}
ALONE = "to run it as one process set JAX_NUM_PROCESSES=1"
PORTS = range(2**16 - 2**12, 2**16)  # one of them, by the job's number


class ClusterError(UserError, RuntimeError):
    """The processes of a job cannot work together; the message says what is missing."""


class LateError(ClusterError):
    """A process did not come in time: no mistake of the command, another try may work."""


@dataclass(frozen=True)
class Cluster:
    """The processes of one run, and which of them this is.

    Attributes:
      found: what told.
      num_processes: how many; 0 where jax asks the TPU's hosts.
      process_id: this one's number.
      coordinator_address: HOST:PORT of process 0.
      local_device_ids: the GPUs that are this process's own; None for all it sees.
    """

    found: str
    num_processes: int
    process_id: int = 0
    coordinator_address: str = ""
    local_device_ids: tuple[int, ...] | None = None


def find_cluster(flags: Mapping[str, str | None], env: Mapping[str, str] = os.environ) -> Cluster:
    """The cluster that flags or environment describe; one process where none does.

    Args:
      flags: what was given of `FLAGS`.
      env: environment variables.

    Raises:
      ClusterError: parts are missing or cannot be, or several tasks would each start a run.
    """
    given = {n: flags.get(n) or env.get(f"JAX_{n.upper()}", "") for n in FLAGS}
    if given["num_processes"] == "1":
        return Cluster("one process, as told", 1, local_device_ids=_device_ids(given))
    if given["num_processes"] or any(flags.get(name) for name in FLAGS):
        return _by_hand(given, env)
    for find in (_tpu, _slurm, _open_mpi, _kubernetes):
        cluster = find(env, given["coordinator_address"])
        if cluster is not None:
            return cluster
    if given["coordinator_address"] or given["process_id"]:
        return _by_hand(given, env)
    return Cluster("one process", 1)


def _by_hand(given: Mapping[str, str], env: Mapping[str, str]) -> Cluster:
    given = dict(given)
    given["process_id"] = given["process_id"] or env.get("JOB_COMPLETION_INDEX", "")
    missing = [n for n in FLAGS if not given[n] and n != "local_device_ids"]
    if missing:
        wanted = ", ".join(f"--{n} or JAX_{n.upper()}" for n in missing)
        raise ClusterError(f"several processes need {wanted} too")
    count, index = (_whole(given[name], name) for name in ("num_processes", "process_id"))
    if not 0 <= index < count:
        raise ClusterError(f"process_id {index} must be from 0 to num_processes - 1 = {count - 1}")
    if not re.fullmatch(r"(\[.+\]|[^:]+):\d+", given["coordinator_address"]):
        raise ClusterError(
            f"coordinator_address {given['coordinator_address']!r} must be HOST:PORT of process 0"
        )
    return Cluster(
        "addresses given", count, index, given["coordinator_address"], _device_ids(given)
    )


def _whole(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ClusterError(f"{name} must be a whole number, got {text!r}") from None


def _device_ids(given: Mapping[str, str]) -> tuple[int, ...] | None:
    texts = [text for text in given["local_device_ids"].split(",") if text]
    return tuple(_whole(text, "local_device_ids") for text in texts) or None


def _tpu(env: Mapping[str, str], address: str) -> Cluster | None:
    """A TPU host: jax asks the metadata server or GKE's variables for the others."""
    devices = (*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*"))
    here = devices and importlib.util.find_spec("libtpu") is not None
    elsewhere = "tpu" not in env.get("JAX_PLATFORMS", "tpu") or "TPU_SKIP_MDS_QUERY" in env
    if "," in env.get("TPU_WORKER_HOSTNAMES", "") or (here and not elsewhere):
        return Cluster("TPU", 0)
    return None


def _slurm(env: Mapping[str, str], address: str) -> Cluster | None:
    if "SLURM_JOB_ID" not in env:
        return None
    if "SLURM_STEP_ID" not in env:  # the batch script itself, or a shell of salloc
        tasks = max(int(env.get(n, "1")) for n in ("SLURM_NTASKS", "SLURM_JOB_NUM_NODES"))
        if tasks > 1:
            raise ClusterError(
                f"SLURM gave this job {tasks} tasks or nodes, but the command was not started by "
                f"srun: start it as `srun COMMAND`; {ALONE}"
            )
        return None
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1")))
    if tasks == 1:
        return None
    first = _first_host(env["SLURM_STEP_NODELIST"])
    port = env.get("SLURM_STEP_RESV_PORTS", "").split("-")[0] or _port(int(env["SLURM_JOB_ID"]))
    nodes = int(env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES", "1")))
    local = _local_tasks(env, tasks, nodes)
    bound = any(n in env for n in ("SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND", "SLURM_TRES_PER_TASK"))
    own = None if bound else _share_of_gpus(env, int(env["SLURM_LOCALID"]), local)
    where = address or f"{first}:{port}"
    return Cluster("SLURM", tasks, int(env["SLURM_PROCID"]), where, own)


def _first_host(nodes: str) -> str:
    """The first of SLURM's list: `gpu[001-004,7],cpu1` -> `gpu001`."""
    matched = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\])?([^,]*)", nodes)
    if matched is None:
        raise ClusterError(f"SLURM_STEP_NODELIST {nodes!r} names no host; {ALONE}")
    return "".join(part or "" for part in matched.groups())


def _local_tasks(env: Mapping[str, str], tasks: int, nodes: int) -> int:
    """Tasks on this node, of SLURM's `4(x2),3`; without it as if all nodes had as many."""
    listed: list[int] = []
    for part in env.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        matched = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if matched:
            listed += [int(matched[1])] * int(matched[2] or 1)
    node = int(env.get("SLURM_NODEID", "0"))
    return listed[node] if node < len(listed) else -(-tasks // nodes)


def _share_of_gpus(env: Mapping[str, str], local: int, tasks: int) -> tuple[int, ...] | None:
    """This task's part of GPUs that all tasks of a node see; None where there is nothing to part.

    jax would take one GPU per task; a task alone on its node has all of them.
    """
    visible = [x for x in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if x]
    count = len(visible) or int(env.get("SLURM_GPUS_ON_NODE", "0"))
    if tasks == 1 or count < tasks:
        return None
    if count % tasks:
        raise ClusterError(
            f"{count} GPUs cannot be shared by the {tasks} tasks of a node alike; start as many "
            "tasks as GPUs, or one"
        )
    each = count // tasks
    return tuple(range(local * each, (local + 1) * each))


def _port(job: int) -> int:
    return PORTS[job % len(PORTS)]


def _open_mpi(env: Mapping[str, str], address: str) -> Cluster | None:
    tasks = int(env.get("OMPI_COMM_WORLD_SIZE", "1"))
    if tasks == 1:
        return None
    local = int(env.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1"))
    uri = env.get("OMPI_MCA_orte_hnp_uri", "")
    host = re.search(r"tcp6?://\[?([^,\];]+?)[,\]:]", uri)
    if not address and local < tasks and host is None:
        raise ClusterError(
            f"Open MPI started {tasks} processes on several hosts but does not say where the first "
            "is: give JAX_COORDINATOR_ADDRESS=HOST:PORT of rank 0 (mpirun -x)"
        )
    job = zlib.crc32(env.get("PMIX_NAMESPACE", uri).encode())
    name = "127.0.0.1" if local == tasks or host is None else host[1]
    own = _share_of_gpus(env, int(env.get("OMPI_COMM_WORLD_LOCAL_RANK", "0")), local)
    where = address or f"{name}:{_port(job)}"
    return Cluster("Open MPI", tasks, int(env["OMPI_COMM_WORLD_RANK"]), where, own)


def _kubernetes(env: Mapping[str, str], address: str) -> Cluster | None:
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        raise ClusterError(
            f"this is pod {env['JOB_COMPLETION_INDEX']} of a Kubernetes indexed job: set "
            "JAX_COORDINATOR_ADDRESS to pod 0's name and a port, and JAX_NUM_PROCESSES to the "
            f"number of pods (launch/jobset.yaml); {ALONE}"
        )
    return None
