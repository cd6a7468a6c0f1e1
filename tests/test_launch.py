"""The scripts of launch/: what shellcheck says, and what they do with a cluster that is played."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import small
from fake_commands import ARGUMENTS, Fakes, small_checkout

LAUNCH = small.ROOT / "launch"
SOURCED = {"setup.sh", "stages.sh"}  # they set what others read
SCRIPTS = sorted({*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), small.ROOT / ".ci" / "run"})
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.skipif(not SHELLCHECK, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script):
    options = ["--exclude=SC2034,SC2154"] if script.name in SOURCED else []
    command = [SHELLCHECK, "-x", "--source-path=SCRIPTDIR:launch", *options, script]
    done = subprocess.run(command, cwd=small.ROOT, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("name", ["local.sh", "slurm.sbatch", "tpu_vm.sh"])
def test_the_scripts_tell_how_they_are_used(name):
    done = subprocess.run([LAUNCH / name, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert f"launch/{name}" in done.stdout and "set -" not in done.stdout


def test_xla_knows_the_flags_for_gpus():
    text = "from jaxlib import xla_client; xla_client.make_cpu_client()"
    own = "XLA_FLAGS=--xla_dump_max_hlo_modules=3"
    script = f'{own}; source env_gpu.sh; {sys.executable} -c "{text}"; echo $XLA_FLAGS'
    done = subprocess.run(["bash", "-ec", script], cwd=LAUNCH, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # XLA takes the last of several: the user's own comes behind.
    assert done.stdout.split()[-1] == "--xla_dump_max_hlo_modules=3"
    assert len(done.stdout.split()) > 1


# SLURM

SRUN = """#!/usr/bin/env bash
echo "$*" >>"$FAKE/srun"
while [[ "$1" == --* ]]; do shift; done
largest=0
for ((SLURM_PROCID = 0; SLURM_PROCID < SLURM_NTASKS; SLURM_PROCID++)); do
  export SLURM_PROCID
  "$@" || { code=$?; [ "$code" -le "$largest" ] || largest="$code"; }
done
exit "$largest"
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = requeue ]; then echo "$2" >>"$FAKE/requeued"; else echo "JobId=7 $JOB"; fi
"""
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "2",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_CPUS_ON_NODE": "64",
    "PYTHON": "python",
    "JOB": "JobState=RUNNING Requeue=1",
}


@pytest.fixture
def slurm(tmp_path):
    return Fakes(tmp_path / "fakes", srun=SRUN, scontrol=SCONTROL)


def run_slurm(fakes: Fakes, *arguments: str, codes: str = "", **environment: str):
    (fakes.folder / "codes").write_text(codes)
    submitted = {"SLURM_SUBMIT_DIR": str(small.ROOT), "LOGS": str(fakes.folder / "logs")}
    script = LAUNCH / "slurm.sbatch"
    return fakes.run("bash", script, *arguments, **SLURM | submitted | environment)


def test_slurm_starts_one_step_with_the_arguments(slurm):
    done = run_slurm(slurm, *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    assert slurm.trained_with() == ARGUMENTS
    (step,) = slurm.note("srun")
    assert "--kill-on-bad-exit=1" in step and f"--output={slurm.folder}/logs/rank-%t.log" in step
    environment = slurm.note("environment")
    assert "SRUN_CPUS_PER_TASK=64" in environment
    assert any(re.match(r"XLA_FLAGS=.*xla_gpu", line) for line in environment)
    assert not slurm.note("requeued")


@pytest.mark.parametrize(
    "codes, job, code, back",
    [
        ("143 143", "JobState=RUNNING Requeue=1", 143, True),
        ("143 143", "JobState=CANCELLED Requeue=1", 143, False),  # scancel
        ("143 143", "JobState=RUNNING Requeue=0", 143, False),
        ("1 1", "JobState=RUNNING Requeue=1", 1, True),
        ("134 0", "JobState=RUNNING Requeue=1", 134, True),
        ("2 2", "JobState=RUNNING Requeue=1", 2, False),
        # SLURM ended the others.
        ("143 2", "JobState=RUNNING Requeue=1", 2, False),
        ("137 143", "JobState=RUNNING Requeue=1", 137, True),
    ],
)
def test_slurm_requeues_what_another_start_can_finish(slurm, codes, job, code, back):
    done = run_slurm(slurm, codes=codes.replace(" ", "\n") + "\n", JOB=job)
    assert done.returncode == code
    assert slurm.note("requeued") == (["7"] if back else [])
    assert ("crash" in done.stderr) == (code not in (2, 143))


def test_slurm_gives_up_after_some_crashes(slurm):
    for _ in range(3):
        run_slurm(slurm, codes="137\n143\n", CRASHES="2")
    assert slurm.note("requeued") == ["7", "7"]


def test_slurm_counts_crashes_between_checkpoints(slurm, tmp_path):
    run = tmp_path / "run"
    for step in ("100", "1000.orbax-tmp", "90", "900", "900", "900"):
        (run / "checkpoints" / step).mkdir(parents=True, exist_ok=True)
        arguments = ["--config", "paella:tiny", "--workdir", str(run)]
        run_slurm(slurm, *arguments, codes="137\n143\n", CRASHES="2")
    # 100 twice and once more in vain, as 90 is older; 900 twice, then no more.
    assert slurm.note("requeued") == ["7"] * 4
    assert (slurm.folder / "logs" / "crashes").read_text() == "3 900\n"


def test_slurm_copies_the_data_to_the_nodes(slurm, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.txt").write_text("a red circle")
    (tmp_path / "on node").mkdir()
    (tmp_path / "on node" / "other").write_text("somebody's")
    places = {"DATA": str(tmp_path / "images"), "PAELLA_SCRATCH": str(tmp_path / "on node")}
    start = lambda codes: run_slurm(slurm, "--config", "paella:tiny", codes=codes, **places)
    copy = tmp_path / "on node" / "paella-7"
    copy.mkdir()
    (copy / "a.txt").write_text("a r")  # of a start that was cut off, later than the source
    assert start("143\n143\n").returncode == 143
    assert (copy / "a.txt").read_text() == "a red circle"
    assert "--ntasks=2 --ntasks-per-node=1" in slurm.note("srun")[0]
    assert slurm.trained_with()[-1] == f"--config.data.folder={copy}"
    (tmp_path / "images" / "a.txt").write_text("changed")
    assert start("143\n143\n").returncode == 143
    assert (copy / "a.txt").read_text() == "a red circle", "a whole copy stays"
    done = start("")
    assert done.returncode == 0, done.stderr
    assert [file.name for file in (tmp_path / "on node").iterdir()] == ["other"]


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"SLURM_JOB_ID": ""}, "sbatch launch/slurm.sbatch"),
        ({"SLURM_SUBMIT_DIR": "/"}, "/ is no checkout of paella_jax"),
        ({"PYTHON": "no_python"}, "no no_python: run ./launch/setup.sh first"),
    ],
)
def test_slurm_refuses_a_place_where_it_cannot_work(slurm, environment, message):
    done = run_slurm(slurm, **environment)
    assert done.returncode == 2 and message in done.stderr
    assert not slurm.note("srun")


# Cloud TPU

# Plays one slice of one worker: its state is in a file, and its home is a folder.
GCLOUD = """#!/usr/bin/env bash
verb="$3 $4"
echo "$verb" >>"$FAKE/gcloud"
for word in "$@"; do [[ "$word" != --command=* ]] || command="${word#--command=}"; done
case "$verb" in
  *describe) cat "$FAKE/state" ;;
  *create) echo READY >"$FAKE/state"; rm -rf "$FAKE/home"; mkdir "$FAKE/home" ;;
  *delete) rm "$FAKE/state" ;;
  *scp) cp "$5" "$FAKE/home/${6#*:}" ;;
  *ssh) cd "$FAKE/home" && exec bash -c "$command" ;;
esac
"""
# `pip` and `uv` of the worker: the virtual environment that they make has the fake python.
PYTHON3 = """#!/usr/bin/env bash
[ "$2 $3" != "uv venv" ] || { mkdir -p .venv/bin && cp "$(command -v python)" .venv/bin/python; }
"""
SLICE = {"NAME": "mine", "ZONE": "here", "TYPE": "v5litepod-16", "WAIT": "0"}
ATTEMPT = ["tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]


@pytest.fixture
def cloud(tmp_path):
    fakes = Fakes(tmp_path / "fakes", gcloud=GCLOUD, python3=PYTHON3)
    small_checkout(tmp_path / "checkout")
    return fakes


def run_tpu(fakes: Fakes, *arguments: str, **environment: str):
    script = fakes.folder.parent / "checkout" / "launch" / "tpu_vm.sh"
    return fakes.run("bash", script, *arguments, TMPDIR=str(fakes.folder), **SLICE | environment)


def test_a_tpu_slice_is_made_and_trained_on(cloud):
    done = run_tpu(cloud, "start", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    assert cloud.note("gcloud") == ["tpu-vm describe", "tpu-vm create", *ATTEMPT]
    assert cloud.trained_with() == ARGUMENTS
    assert any(re.match("LIBTPU_INIT_ARGS=--xla_tpu", line) for line in cloud.note("environment"))
    assert f"training, {2 + len(ARGUMENTS)} arguments" in done.stdout


def test_a_tpu_slice_that_is_there_is_taken(cloud):
    (cloud.folder / "state").write_text("READY\n")
    (cloud.folder / "home").mkdir()
    assert run_tpu(cloud, "start", *ARGUMENTS).returncode == 0
    assert cloud.note("gcloud") == ["tpu-vm describe", *ATTEMPT]


def test_a_preempted_tpu_slice_is_made_anew_and_a_crash_tried_again(cloud):
    (cloud.folder / "codes").write_text("143\n134\n0\n")
    (cloud.folder / "preempted").write_text("PREEMPTED\n")
    done = run_tpu(cloud, "start", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    made = ["tpu-vm describe", "tpu-vm create", *ATTEMPT, "tpu-vm describe"]
    again = ["tpu-vm describe", "tpu-vm delete", "tpu-vm create", *ATTEMPT]
    assert cloud.note("gcloud") == [*made, *again, "tpu-vm describe", *ATTEMPT]
    assert "exit code 143" in done.stderr and "exit code 134" in done.stderr


@pytest.mark.parametrize("code", [2, 143])
def test_a_tpu_training_that_someone_must_look_at_is_not_started_again(cloud, code):
    (cloud.folder / "codes").write_text(f"{code}\n")
    assert run_tpu(cloud, "start", *ARGUMENTS).returncode == code
    assert cloud.note("gcloud").count("tpu-vm ssh") == 2


def test_tpu_attempts_have_an_end(cloud):
    (cloud.folder / "codes").write_text("1\n1\n1\n")
    done = run_tpu(cloud, "start", *ARGUMENTS, RETRIES="1")
    assert done.returncode == 1 and "given up after 2 attempts" in done.stderr


def test_the_dry_run_of_a_tpu_slice_prints_every_command(cloud):
    done = run_tpu(cloud, "--dry-run", "start", *ARGUMENTS, QUEUED="1", SPOT="1", PROJECT="ours")
    assert done.returncode == 0 and not cloud.note("gcloud")
    lines = done.stdout.splitlines()
    queued = "queued-resources"
    words = ["tpu-vm describe mine", f"{queued} describe mine", f"{queued} create mine",
             "tar -czf", "tpu-vm scp", "tpu-vm ssh mine", "tpu-vm ssh mine"]  # fmt: skip
    assert [word for word, line in zip(words, lines, strict=True) if word not in line] == []
    for line in lines:
        assert line.startswith("tar") or "--zone=here --project=ours" in line
    for part in ("--node-id=mine", "--accelerator-type=v5litepod-16", "--spot",
                 "--runtime-version=v2-alpha-tpuv5-lite"):  # fmt: skip
        assert part in lines[2]
    assert "--worker=all" in lines[5] and "tpu_worker.sh install" in lines[5]
    assert "--worker=all" in lines[6] and "tpu_worker.sh start --config paella:tiny" in lines[6]


@pytest.mark.parametrize(
    "arguments, environment, message",
    [
        (["begin"], {}, "not 'begin'"),
        (["start"], {}, "start needs the arguments of paella_jax.train"),
        (["stop"], {"NAME": ""}, "set NAME and ZONE"),
        (["start", "--config=x"], {"TYPE": ""}, "set TYPE"),
        (["start", "--config=x"], {"TYPE": "v99-8"}, "set VERSION"),
    ],
)
def test_tpu_refuses_what_it_cannot_start(cloud, arguments, environment, message):
    done = run_tpu(cloud, *arguments, **environment)
    assert done.returncode == 2 and message in done.stderr
    assert not cloud.note("gcloud")


# One process


def test_a_task_leaves_its_exit_code(tmp_path):
    codes = {}
    for name, script in {"own": "exit 7", "killed": "kill -9 $$", "missing": "no_command"}.items():
        done = subprocess.run(
            [LAUNCH / "task.sh", tmp_path / name, "sh", "-c", script], capture_output=True
        )
        codes[name] = (done.returncode, (tmp_path / name).read_text())
    assert codes == {
        "own": (7, "7\n"),
        "killed": (137, "137\n"),
        "missing": (127, "127\n"),
    }


@pytest.mark.parametrize("early", [True, False])
def test_a_task_that_is_told_to_stop_waits_for_what_it_runs(tmp_path, early):
    """The signal reaches the whole group; before the command is there, the script alone."""
    ready, code = tmp_path / "ready", tmp_path / "code"
    saves = f"trap 'sleep 0.2; exit 143' TERM; touch {ready}; while :; do sleep 0.02; done"
    script = LAUNCH / "task.sh"
    if early:  # as if it came right behind the trap
        script = tmp_path / "task.sh"
        text = (LAUNCH / "task.sh").read_text()
        script.write_text(text.replace("file=", "kill -TERM $$\nfile="))
        script.chmod(0o755)
    task = subprocess.Popen([script, code, "sh", "-c", saves], start_new_session=True)
    while not early and not ready.exists():
        assert task.poll() is None
    if not early:
        os.killpg(task.pid, signal.SIGTERM)
    assert task.wait(60) == 143
    assert code.read_text() == "143\n"
