"""Several processes train one run: real ones, on this machine, joined by gloo.

The first loss of every run is ln(codes), whatever the weights and the batch: what is compared is
the third step's gradient, leaf by leaf, the parameters behind it, and every step's loss.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import process_of_a_run
import pytest
import small
from process_of_a_run import trained

from paella_jax.runs.folder import read_metrics
from paella_jax.training import sharding

CHEAP = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
# Meshes over (data, fsdp, tensor) by the processes and the devices of each.
RUNS = {
    (2, 1): [(2, 1, 1), (1, 2, 1), (1, 1, 2)],
    (2, 2): [(2, 1, 2)],
    (4, 1): [(1, 2, 2)],
}
CASES = [(run, mesh) for run, meshes in RUNS.items() for mesh in meshes]
PREVIEWED = (1, 2, 1)


def start(folder, processes, devices, *command, **variables):
    """The processes of one run, their output in FOLDER/log.RANK."""
    port = str(20000 + os.getpid() % 20000 + next(PORTS))
    made = []
    for number in range(processes):
        environment = os.environ | {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(number),
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_NUMPY_RANK_PROMOTION": "raise",
            "XLA_FLAGS": f"{CHEAP} --xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": f"{small.ROOT}:{small.ROOT / 'tests'}",
            "PAELLA_JAX_START_SECONDS": "60",
        }
        with (folder / f"log.{number}").open("w") as log:
            made.append(
                subprocess.Popen(
                    [sys.executable, *command], env=environment | variables, stdout=log, stderr=log
                )
            )
    return made


PORTS = iter(range(0, 1000))


def ended(processes, seconds=120):
    """The exit codes."""
    try:
        return [process.wait(seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


def name_of(mesh):
    return "x".join(map(str, mesh))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What each run of several processes ended with."""
    folders = {}
    for (processes, devices), meshes in RUNS.items():
        folder = tmp_path_factory.mktemp("processes")
        cases = {name_of(m): {"mesh": m, "preview": m == PREVIEWED} for m in meshes}
        command = (process_of_a_run.__file__, str(folder), json.dumps(cases))
        codes = ended(start(folder, processes, devices, *command))
        assert codes == [0] * processes, (folder / "log.0").read_text()[-3000:]
        folders[processes, devices] = folder
    return folders


@pytest.fixture(autouse=True)
def small_matrices_are_cut(monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARD_SIZE", sharding.MIN_SHARD_SIZE)
    process_of_a_run.cut_small_matrices()


@pytest.mark.parametrize("run, mesh", CASES, ids=str)
def test_several_processes_are_one(runs, tmp_path, run, mesh):
    with small.devices_shown(run[0] * run[1]):
        alone = trained(tmp_path, mesh)
    folder = runs[run]
    together = np.load(folder / f"{name_of(mesh)}.npz")
    assert together.keys() == alone.keys() and together["cut"] == alone["cut"]
    assert (alone["cut"] > 0) == (mesh[1] * mesh[2] > 1)
    for name, value in alone.items():
        print(name, np.abs(together[name]-value).max())
    losses = [read_metrics(f / "metrics.jsonl") for f in (tmp_path, folder / name_of(mesh))]
    print(losses)
