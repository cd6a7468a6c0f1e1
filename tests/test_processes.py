"""Several processes train one run: real ones on this machine, joined by gloo.

The first loss of every run is ln(codes), whatever the weights and the batch. What is compared is
the third step's gradient, leaf by leaf, the parameters behind it, and every step's loss: bitwise.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import process_of_a_run
import pytest
import small
from PIL import Image
from process_of_a_run import FIELDS, trained

from paella_jax.registry import build_method
from paella_jax.runs.folder import prepare_workdir, read_metrics
from paella_jax.runs.whole_steps import complete_steps
from paella_jax.training import lifeline, sharding
from paella_jax.training.cluster import Cluster, ClusterError, LateError
from paella_jax.training.lifeline import Lifeline
from paella_jax.training.loop import train

# Meshes over (data, fsdp, tensor), by the number of processes and of each one's devices.
RUNS = {(2, 1): [(2, 1, 1), (1, 2, 1)], (2, 2): [(1, 2, 2)], (4, 1): [(1, 2, 2)]}
CASES = [((2, 1), (2, 1, 1)), ((2, 1), (1, 2, 1)), ((2, 2), (1, 2, 2)),
         small.slow((4, 1), (1, 2, 2))]  # fmt: skip
PREVIEWED = (1, 2, 1)
PORTS = iter(range(20000 + os.getpid() % 200 * 60, 32000))  # below those of outgoing connections


def start(folder, processes, devices, *command):
    """The processes of one run, their output in FOLDER/log.RANK."""
    port, made = next(PORTS), []
    for number in range(processes):
        environment = os.environ | {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(number),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "XLA_FLAGS": f"{small.CHEAP_FLAGS} --xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": f"{small.ROOT}:{small.ROOT / 'tests'}",
            "PAELLA_JAX_START_SECONDS": "100",
        }
        log = (folder / f"log.{number}").open("w")
        made.append(
            subprocess.Popen([sys.executable, *command], env=environment, stdout=log, stderr=log)
        )
    return made


def start_function(folder, processes, devices, name, *arguments):
    command = (process_of_a_run.__file__, name, *map(str, arguments))
    return start(folder, processes, devices, *command)


def ended(processes, seconds=150):
    """The exit codes."""
    try:
        return [process.wait(seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


def wait_until(condition, seconds=150):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def logs(folder, processes=2):
    return [(folder / f"log.{number}").read_text() for number in range(processes)]


def losses(folder):
    return {row["step"]: row["loss"] for row in read_metrics(folder / "metrics.jsonl")
            if "loss" in row}  # fmt: skip


def name_of(mesh):
    return "x".join(map(str, mesh))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a run of several processes with its cases, trained when first asked for."""
    folders = {}

    def of(run):
        if run not in folders:
            folder = folders[run] = tmp_path_factory.mktemp("run")
            cases = {name_of(m): {"mesh": m, "preview": m == PREVIEWED} for m in RUNS[run]}
            if run == (2, 1):
                cases["elastic"] = {"mesh": (2, 1, 1), "steps": 2}
            begun = start_function(folder, *run, "train_cases", folder, json.dumps(cases))
            assert ended(begun) == [0] * run[0], logs(folder)[0][-3000:]
        return folders[run]

    return of


@pytest.fixture(autouse=True)
def rules_as_they_were(monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARD_SIZE", sharding.MIN_SHARD_SIZE)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Folder and last state of a mesh in one process."""
    known = {}

    def of(mesh):
        if mesh not in known:
            folder = tmp_path_factory.mktemp("alone")
            with small.devices_shown(math.prod(mesh)):
                known[mesh] = folder, trained(folder, mesh)
        return known[mesh]

    return of


@pytest.mark.parametrize("run, mesh", CASES, ids=str)
def test_several_processes_are_one(runs, alone, run, mesh):
    folder, expected = alone(mesh)
    found = np.load(runs(run) / f"{name_of(mesh)}.npz")
    assert found.keys() == expected.keys()
    assert (expected["cut"] > 0) == (mesh[1] * mesh[2] > 1), "the mesh is to cut matrices"
    gradients = [value for name, value in expected.items() if "gradient" in name]
    assert len(gradients) > 20 and all(np.abs(value).max() > 0 for value in gradients)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    together = losses(runs(run) / name_of(mesh))
    assert together == losses(folder) and len(set(together.values())) == 3


def test_the_first_process_alone_writes_and_all_draw(runs, tmp_path):
    folder = runs((2, 1)) / name_of(PREVIEWED)
    (grid,) = (folder / "samples").iterdir()
    assert np.ptp(np.asarray(Image.open(grid))) > 0
    rows = read_metrics(folder / "metrics.jsonl")
    assert sum("preview_exact" in row for row in rows) == 1
    (held,) = [row["validation_loss"] for row in rows if "validation_loss" in row]
    with small.devices_shown(2):
        trained(tmp_path / "alone", PREVIEWED, preview=True)
    expected = read_metrics(tmp_path / "alone" / "metrics.jsonl")[-1]["validation_loss"]
    assert held == expected
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]


def test_a_run_goes_on_with_other_numbers_of_processes_and_ends_together(runs, tmp_path):
    """2 processes -> 1 -> 2, of which one gets SIGTERM."""
    folder, straight = runs((2, 1)) / "elastic", tmp_path / "straight"
    assert complete_steps(folder) == [2]
    trained(folder, (1, 1, 1), steps=4)
    fields = FIELDS | {"num_steps": 100_000, "checkpoint__every": 100_000}
    config = small.small_paella(**fields)
    (tmp_path / "config.py").write_text(
        "from paella_jax.config import from_json\n"
        f"def get_config(preset=''):\n    return from_json({config.to_json()!r})\n"
    )
    command = ("-m", "paella_jax.train", "--config", tmp_path / "config.py", "--workdir", folder)
    processes = start(tmp_path, 2, 1, *command)
    wait_until(lambda: max(losses(folder)) >= 6 or any(p.poll() for p in processes))
    processes[1].send_signal(signal.SIGTERM)
    assert ended(processes) == [143, 143], logs(tmp_path)
    last = complete_steps(folder)[-1]
    assert last >= 6 and f"saved step {last}" in logs(tmp_path)[0]
    trained(straight, (1, 1, 1), steps=6)
    # Steps 5 and 6 were summed over two processes, which rounds otherwise.
    for step, loss in losses(straight).items():
        assert losses(folder)[step] == pytest.approx(loss, rel=1e-5)
    assert len(set(losses(straight).values())) == 6


def test_a_run_goes_on_with_fewer_devices(tmp_path):
    for count, mesh, steps in ((8, (2, 2, 2), 2), (4, (1, 2, 2), 4)):
        with small.devices_shown(count):
            trained(tmp_path / "cut", mesh, steps=steps)
    trained(tmp_path / "whole", (1, 1, 1), steps=4)
    whole, cut = losses(tmp_path / "whole"), losses(tmp_path / "cut")
    assert whole.keys() == cut.keys() and len(whole) == 4
    assert list(cut.values()) == pytest.approx(list(whole.values()), rel=1e-4)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_others_with_a_line(tmp_path, killed):
    processes = start_function(tmp_path, 2, 1, "wait")
    wait_until(lambda: "all are there" in logs(tmp_path)[0])
    processes[killed].kill()
    other = 1 - killed
    assert processes[other].wait(30) == lifeline.CRASHED
    ended(processes)
    assert f"process {other} of 2 stops: process {killed}" in logs(tmp_path)[other]
    assert "is gone" in logs(tmp_path)[other]


def test_starts_that_do_not_fit_are_refused_by_all(tmp_path):
    begun = start_function(tmp_path, 2, 1, "start_with_what_does_not_fit", tmp_path)
    assert ended(begun) == [2, 2]
    told = ("another config: seed: 0 -> 1", "wrong", "training data (samples 38, process 0 61)",
            "does not see the run folder")  # fmt: skip
    for log in logs(tmp_path):
        assert [words for words in told if words not in log] == []


def test_process_0_reads_trained_runs_by_itself(tmp_path):
    """A tokenizer's checkpoint, and the one that adapters are of: orbax must wait for nobody."""
    tokenizer, base = tmp_path / "tokenizer", tmp_path / "base"
    config = small.small_vqgan(num_steps=1)
    prepare_workdir(tokenizer, config)
    train(config, tokenizer, build_method(config, tokenizer))
    trained(base, (1, 1, 1), steps=1)
    assert complete_steps(tokenizer) == complete_steps(base) == [1]
    arguments = ("prepare_from_runs", tmp_path, tokenizer, base)
    assert ended(start_function(tmp_path, 2, 1, *arguments), 100) == [0, 0], logs(tmp_path)
    assert all("prepared" in log for log in logs(tmp_path))
    assert (tmp_path / "adapters" / "frozen" / "base.safetensors").is_file()


@pytest.mark.parametrize(
    "function, words",
    [(("fail_while_preparing",), "stale"),
     (("start_from_another_step", "FOLDER"), "sees the checkpoint of step 1 as the newest"),
     small.slow(("fail_in_previews", "FOLDER"), "make room on its disk")],
)  # fmt: skip
def test_an_error_of_one_process_ends_all_alike(tmp_path, function, words):
    """With 1, after which a launcher tries again; and nobody waits for what never comes."""
    words_of = [str(tmp_path) if word == "FOLDER" else word for word in function]
    assert ended(start_function(tmp_path, 2, 1, *words_of), 100) == [1, 1], logs(tmp_path)
    assert all(words in log for log in logs(tmp_path)), logs(tmp_path)
    if function[0] == "fail_in_previews":  # what fails on all alike has not ended the run before
        assert "preview of step 3 failed, training goes on: no picture" in logs(tmp_path)[0]
        rows = read_metrics(tmp_path / "all" / "metrics.jsonl")
        assert sum("validation_loss" in row for row in rows) == 1


def test_an_error_in_one_process_is_a_crash_of_all(tmp_path):
    """With its traceback where it is, and exit code 1, so that a launcher tries again."""
    assert ended(start_function(tmp_path, 2, 1, "fail_in_the_second")) == [1, 1]
    first, second = logs(tmp_path)
    assert "Traceback" in second and "ValueError: a disk that failed" in second
    assert "process 0 of 2 stops: process 1" in first and "a disk that failed" in first


# --- the roll call, of threads


def roll_call(*hellos, seconds=0.5):
    """What each process gets: its connections or its error. (process, of) each."""
    port = next(PORTS)
    clusters = [Cluster("test", of, number, f"127.0.0.1:{port}") for number, of in hellos]

    def call(cluster):
        try:
            return Lifeline(cluster, seconds).peers
        except ClusterError as error:
            return error

    with ThreadPoolExecutor(len(clusters)) as pool:
        return list(pool.map(call, clusters))


def test_the_roll_is_called():
    first, *others = roll_call((0, 3), (1, 3), (2, 3), seconds=20)
    assert len(first) == 2 and all(list(peers) == ["process 0"] for peers in others)
    assert first["process 1 on " + socket.gethostname()].getsockopt(
        socket.SOL_SOCKET, socket.SO_KEEPALIVE
    )
    for connection in (*first.values(), *others[0].values(), *others[1].values()):
        connection.close()


def test_a_line_is_read_alone():
    """What was sent right behind it is the next one's, as a failure behind the start."""
    here, there = socket.socketpair()
    with here, there:
        here.sendall(b'{"go": true}\n{"failed": "x", "code": 1}\n')
        assert lifeline._receive(there) == {"go": True}
        assert lifeline._receive(there) == {"failed": "x", "code": 1}
        here.sendall(b"GET / HTTP/1.1\r\n")
        assert lifeline._receive(there) is None


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(lifeline, "NEWS_SECONDS", 0.5)


def test_who_is_late_is_named_by_all(brief):
    errors = roll_call((0, 4), (2, 4))
    assert all(isinstance(error, LateError) for error in errors[:1])
    assert all("processes 1, 3 did not start" in str(error) for error in errors)


@pytest.mark.parametrize(
    "hellos, words",
    [([(0, 3), (1, 3), (1, 3)], "two processes have the number 1"),
     ([(0, 3), (1, 2)], "was told of 3 processes, process 1 of 2")],
)  # fmt: skip
def test_numbers_that_clash_are_refused(brief, hellos, words):
    errors = roll_call(*hellos, seconds=10)
    assert all(words in str(error) for error in errors)


def test_a_coordinator_that_does_not_answer(brief):
    (error,) = roll_call((1, 2))
    assert isinstance(error, LateError) and "did not answer at 127.0.0.1" in str(error)


def test_a_taken_port(brief):
    with lifeline._listener(Cluster("test", 2, 0, f"127.0.0.1:{next(PORTS)}")) as other:
        taken = partial(Lifeline, Cluster("test", 2, 0, f"127.0.0.1:{other.getsockname()[1]}"))
        with pytest.raises(ClusterError, match="cannot listen on port"):
            taken(0.5)
