"""launch/slurm.sbatch under a real SLURM of two nodes, where one is installed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import small
from fake_commands import Fakes
from one_machine_slurm import missing, one_machine_slurm

from paella_jax.runs.folder import prepare_workdir, read_metrics

LACKING = missing()
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,  # tests/test_launch.py plays SLURM in the suite
    pytest.mark.skipif(bool(LACKING), reason=f"no SLURM to start: {', '.join(LACKING)} missing"),
]
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
TRAINING = small.TINY_TRANSFORMER | {
    "num_steps": 150,
    "batch_size": 4,
    "checkpoint__every": 10_000,
    "log__every": 1,
    "log__preview_images": 0,
    "text__num_layers": 1,
    "model__codebook_size": 32,
    "model__token_width": 16,
}
# Waits for a signal, or ends where `$FAKE/go` is.
WAITS = """#!/usr/bin/env bash
echo "rank $SLURM_PROCID of $SLURM_NTASKS, $SLURM_CPUS_PER_TASK cpus: $*"
trap 'echo saved; exit 143' TERM
touch "$FAKE/ready-$SLURM_PROCID"
while [ ! -f "$FAKE/go" ]; do sleep 0.05; done
"""
# One rank dies at once and the others would go on for ever.
DIES = """#!/usr/bin/env bash
[ "$SLURM_PROCID" = 0 ] || kill -9 $$
sleep 1000
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with one_machine_slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def submit(slurm, folder: Path, python: object, *arguments: str, **environment: str) -> str:
    """launch/slurm.sbatch with one task on each of the two nodes; the job's number."""
    options = ["--parsable", "--gpus-per-node=0", f"--chdir={small.ROOT}",
               f"--output={folder}/job.log"]  # fmt: skip
    places = {"PYTHON": str(python), "LOGS": str(folder / "logs"), "PAELLA_ROOT": str(small.ROOT)}
    script = str(small.ROOT / "launch" / "slurm.sbatch")
    return slurm.run("sbatch", *options, script, *arguments, **places | environment).strip()


def until(true: Callable[[], object], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what} does not happen"
        time.sleep(0.05)


def hurry(slurm, job: str) -> None:
    """Starts a requeued job when its nodes are clean: SLURM holds it back for two minutes.

    Not within the second in which the nodes were told to end it: they would refuse this start too.
    """
    slurm.wait(job, "PENDING")
    until(slurm.idle, "the end of the last start")
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now+3")


@pytest.fixture
def fakes(tmp_path):
    return Fakes(tmp_path / "fakes", waits=WAITS, dies=DIES)


def started(fakes) -> bool:
    return all((fakes.folder / f"ready-{rank}").exists() for rank in (0, 1))


def start_waiting(slurm, fakes, folder: Path) -> str:
    job = submit(slurm, folder, fakes.bin / "waits", "--config=x", FAKE=str(fakes.folder))
    until(lambda: started(fakes), "the start of both ranks")
    return job


def test_a_stopped_job_comes_back_and_ends(slurm, fakes, tmp_path):
    job = start_waiting(slurm, fakes, tmp_path)
    slurm.run("scancel", "--signal=TERM", job)  # as `--signal` does before the time is over
    until(lambda: slurm.job(job)["Restarts"] == "1", "the requeue")
    (fakes.folder / "go").touch()
    hurry(slurm, job)
    ended = slurm.wait(job, *ENDED)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0")
    for rank in (0, 1):
        log = (tmp_path / "logs" / f"rank-{rank}.log").read_text()
        first = f"rank {rank} of 2, {os.cpu_count()} cpus: -m paella_jax.train --config=x"
        assert log.count("saved") == 1 and log.count(first) == 2, log
    assert (tmp_path / "job.log").read_text().count("stopped and saved: back into the queue") == 1


def test_a_cancelled_job_saves_and_stays_away(slurm, fakes, tmp_path):
    job = start_waiting(slurm, fakes, tmp_path)
    slurm.run("scancel", job)
    slurm.wait(job, "CANCELLED")
    until(lambda: "not started again" in (tmp_path / "job.log").read_text(), "the end")
    assert slurm.job(job)["Restarts"] == "0"
    assert "saved" in (tmp_path / "logs" / "rank-1.log").read_text()


def test_a_job_without_requeue_stays_away(slurm, fakes, tmp_path):
    job = start_waiting(slurm, fakes, tmp_path)
    slurm.run("scontrol", "update", f"JobId={job}", "Requeue=0")
    slurm.run("scancel", "--signal=TERM", job)
    ended = slurm.wait(job, *ENDED)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "143:0", "0")


def test_the_death_of_one_rank_ends_the_others_and_starts_them_again(slurm, fakes, tmp_path):
    job = submit(slurm, tmp_path, fakes.bin / "dies", CRASHES="1")
    until(lambda: slurm.job(job)["Restarts"] == "1", "the requeue")
    hurry(slurm, job)
    ended = slurm.wait(job, *ENDED)
    assert ended["JobState"] == "FAILED" and ended["Restarts"] == "1"
    log = (tmp_path / "job.log").read_text()
    assert "crash 1, exit code 137: back into the queue" in log
    assert "crash 2, exit code 137" in log and "not started again" in log


def test_a_training_goes_on_where_it_was_stopped(slurm, tmp_path):
    """Two nodes train one run; TERM, the queue, and on to the last step."""
    run = prepare_workdir(tmp_path / "run", small.config_of("paella:tiny", **TRAINING))
    small.carry_random_tokenizer(run)
    flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in TRAINING.items()]
    arguments = ["--config=paella:tiny", f"--workdir={run}", *flags]
    environment = {"PYTHONPATH": str(small.ROOT), "JAX_PLATFORMS": "cpu"}
    job = submit(slurm, tmp_path, sys.executable, *arguments, **environment)

    def reaches(true: Callable[[], object]) -> bool:
        state = slurm.job(job)["JobState"]
        logs = [file.read_text()[-3000:] for file in sorted((tmp_path / "logs").glob("rank-*"))]
        assert state not in ENDED, "\n".join([state, *logs])
        return bool(true())

    def steps() -> list[float]:
        file = run / "metrics.jsonl"
        rows = read_metrics(file) if file.is_file() else []
        return [row["step"] for row in rows if "loss" in row]

    until(lambda: reaches(lambda: len(steps()) >= 3), "the third step")
    slurm.run("scancel", "--signal=TERM", job)
    until(lambda: reaches(lambda: slurm.job(job)["Restarts"] == "1"), "the requeue")
    (stopped,) = [int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
    assert 3 <= stopped < TRAINING["num_steps"]
    hurry(slurm, job)
    ended = slurm.wait(job, *ENDED)
    log = (tmp_path / "logs" / "rank-0.log").read_text()
    assert ended["JobState"] == "COMPLETED", log[-3000:]
    assert log.count("2 processes (SLURM)") == 2
    assert steps() == list(range(1, TRAINING["num_steps"] + 1))
