"""Finding the processes of a run: every kind of cluster by its environment, and refusals."""

from __future__ import annotations

import pytest

from paella_jax.training import cluster
from paella_jax.training.cluster import Cluster, ClusterError, find_cluster

SRUN = {
    "SLURM_JOB_ID": "4100",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"}
BY_HAND = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}


def found(env, **flags):
    cluster = find_cluster(flags, env)
    return cluster.num_processes, cluster.process_id, cluster.coordinator_address


def test_alone():
    assert find_cluster({"config": "a", "num_processes": None}, {}) == Cluster("one process", 1)
    assert find_cluster({}, {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1"}).num_processes == 1
    one = SRUN | {"SLURM_STEP_NUM_TASKS": "1"}  # `srun -n1` inside of a larger job
    assert find_cluster({}, one).num_processes == 1


def test_by_hand():
    assert found(BY_HAND) == (2, 1, "a:1")
    flags = {"coordinator_address": "b:2", "num_processes": "3", "process_id": "0"}
    assert found(BY_HAND | SRUN, **flags) == (3, 0, "b:2"), "flags come first"
    told = find_cluster({"local_device_ids": "2,3"}, BY_HAND)
    assert told.local_device_ids == (2, 3)
    assert find_cluster({}, SRUN | {"JAX_NUM_PROCESSES": "1"}).num_processes == 1


@pytest.mark.parametrize(
    "env, words",
    [
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "--num_processes or JAX_NUM_PROCESSES, --process_id"),
        ({"JAX_NUM_PROCESSES": "2"}, "--coordinator_address"),
        (BY_HAND | {"JAX_PROCESS_ID": "2"}, "process_id 2 must be from 0 to"),
        (BY_HAND | {"JAX_PROCESS_ID": "one"}, "must be a whole number, got 'one'"),
        (BY_HAND | {"JAX_COORDINATOR_ADDRESS": "a"}, "must be HOST:PORT"),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2"}, "not started by srun"),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "2"}, "not started by srun"),
        (POD, "pod 2 of a Kubernetes indexed job"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, "mpirun -x"),
        (SRUN | {"SLURM_GPUS_ON_NODE": "3"}, "3 GPUs cannot be shared by the 2 tasks"),
    ],
)
def test_what_cannot_start_together_is_refused(env, words):
    with pytest.raises(ClusterError, match=words):
        find_cluster({}, env)


def test_slurm():
    count, number, address = found(SRUN)
    assert (count, number) == (4, 3) and address.startswith("gpu007:")
    assert found(SRUN | {"SLURM_STEP_NODELIST": "n1"})[2].startswith("n1:")
    assert found(SRUN | {"SLURM_STEP_NODELIST": "a-1,b[1-2]"})[2].startswith("a-1:")
    assert found(SRUN | {"SLURM_STEP_NODELIST": "r[01,03-9]-ib"})[2].startswith("r01-ib:")
    assert 61440 <= int(address.rpartition(":")[2]) < 65536
    other = found(SRUN | {"SLURM_JOB_ID": "4101"})[2]
    assert other != address, "two jobs on one host have two ports"
    assert found(SRUN | {"JAX_COORDINATOR_ADDRESS": "x:5"}) == (4, 3, "x:5")


def test_gpus_of_a_task():
    """One task per node has them all; tasks that see the same GPUs part them."""
    own = lambda **more: find_cluster({}, SRUN | more).local_device_ids
    assert own() is None
    assert own(SLURM_GPUS_ON_NODE="8") == (4, 5, 6, 7)
    assert own(CUDA_VISIBLE_DEVICES="0,1") == (1,)
    assert own(SLURM_GPUS_ON_NODE="8", SLURM_GPUS_PER_TASK="4") is None
    alone = {"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_LOCALID": "0"}
    assert own(SLURM_GPUS_ON_NODE="8", **alone) is None
    uneven = {"SLURM_STEP_TASKS_PER_NODE": "3,1", "SLURM_LOCALID": "0"}
    assert own(SLURM_GPUS_ON_NODE="8", **uneven) is None


def test_open_mpi():
    env = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}
    here = env | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    assert found(here)[:2] == (2, 1) and found(here)[2].startswith("127.0.0.1:")
    uri = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}
    assert found(env | uri)[2].startswith("10.96.0.1:")
    assert found(env | uri | {"JAX_COORDINATOR_ADDRESS": "h:9"})[2] == "h:9"


def test_kubernetes_and_tpu_hosts(monkeypatch):
    told = {"JAX_COORDINATOR_ADDRESS": "job-0.pods:1234", "JAX_NUM_PROCESSES": "4"}
    assert found(POD | told) == (4, 2, "job-0.pods:1234")
    assert found(POD | {"TPU_WORKER_HOSTNAMES": "a,b"})[0] == 0, "jax asks GKE's variables"
    monkeypatch.setattr(cluster.Path, "glob", lambda self, pattern: iter(["accel0"]))
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: object())
    assert find_cluster({}, {}) == Cluster("TPU", 0)
    assert find_cluster({}, {"JAX_PLATFORMS": "cpu"}).num_processes == 1
