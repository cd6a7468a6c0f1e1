"""launch/local.sh: ranks, environment, logs, signals, exit codes; by commands of a few lines."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import small

LOCAL = small.ROOT / "launch" / "local.sh"
# What a rank does that saves when it is told to stop, and tells that it got so far.
WAITS = "touch ready-$JAX_PROCESS_ID; while :; do sleep 0.05; done"
SAVES = f"trap 'echo saved; exit 143' TERM INT; {WAITS}"
DEAF = f"trap '' TERM; {WAITS}"


@pytest.fixture(autouse=True)
def interruptible():
    """A shell in the background ignores SIGINT, and so does what it starts: then no trap is set."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start(folder: Path, count: object, *command: str, **environment: str) -> subprocess.Popen:
    """local.sh in `folder`, its logs below it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    return subprocess.Popen(
        [LOCAL, str(count), *command],
        cwd=folder,
        env=kept | {"LOGS": str(folder / "logs"), "PATIENCE": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def log(folder: Path, rank: int) -> str:
    return (folder / "logs" / f"rank-{rank}.log").read_text()


def await_ready(folder: Path, *ranks: int) -> None:
    end = time.monotonic() + 60
    while not all((folder / f"ready-{rank}").exists() for rank in ranks):
        assert time.monotonic() < end, "the ranks do not start"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs: one that ended may wait for its parent to notice."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_every_rank_knows_itself_and_the_others(tmp_path):
    script = "echo $JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS"
    code, out, err = finish(start(tmp_path, 3, "sh", "-c", script))
    assert code == 0
    address = out.split()[-1]
    assert address.startswith("127.0.0.1:") and int(address.split(":")[1]) > 1024
    assert [log(tmp_path, r) for r in range(3)] == [f"{r} of 3 at {address}\n" for r in range(3)]
    assert out == log(tmp_path, 0)  # the terminal shows rank 0 and no other
    assert str(tmp_path / "logs") in err


def test_devices_are_simulated_or_shared(tmp_path):
    script = "echo $JAX_PLATFORMS $XLA_FLAGS ids=$JAX_LOCAL_DEVICE_IDS"
    _, out, _ = finish(start(tmp_path, 1, "sh", "-c", script, DEVICES_PER_PROCESS="4",
                             XLA_FLAGS="--before=1"))  # fmt: skip
    assert out.split() == ["cpu", "--before=1", "--xla_force_host_platform_device_count=4", "ids="]
    finish(start(tmp_path, 2, "sh", "-c", script, GPUS_PER_PROCESS="2"))
    assert [log(tmp_path, rank) for rank in (0, 1)] == ["ids=0,1\n", "ids=2,3\n"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_rank(tmp_path, number):
    process = start(tmp_path, 2, "sh", "-c", SAVES)
    await_ready(tmp_path, 0, 1)
    process.send_signal(number)
    code, out, _ = finish(process)
    assert code == 143
    assert "saved" in out and "saved" in log(tmp_path, 1)


def test_a_second_signal_does_not_wait(tmp_path):
    process = start(tmp_path, 2, "sh", "-c", DEAF)
    await_ready(tmp_path, 0, 1)
    process.terminate()
    time.sleep(0.2)  # two signals at once may be seen as one
    process.terminate()
    assert finish(process)[0] == 128 + signal.SIGKILL


def test_the_death_of_one_ends_the_others(tmp_path):
    script = f"if [ $JAX_PROCESS_ID = 1 ]; then exit 7; fi; {SAVES}"
    code, _, err = finish(start(tmp_path, 3, "sh", "-c", script))
    assert code == 7  # not the 143 of those that it took with it
    assert "rank 1 ended with exit code 7" in err
    assert "SIGKILL" not in err


def test_the_others_may_tell_why_they_end(tmp_path):
    """They notice the loss themselves, and their message and exit code say more than a signal's."""
    script = (
        "if [ $JAX_PROCESS_ID = 1 ]; then exit 7; fi; sleep 0.2; echo process 1 is lost; exit 1"
    )
    code, out, err = finish(start(tmp_path, 2, "sh", "-c", script, PATIENCE="60"))
    assert code == 7 and out == "process 1 is lost\n"
    assert "rank 0 ended with exit code 1" in err


def test_the_deaf_are_killed(tmp_path):
    script = f"if [ $JAX_PROCESS_ID = 0 ]; then exit 3; fi; {DEAF}"
    code, _, err = finish(start(tmp_path, 2, "sh", "-c", script, GRACE="1"))
    assert code == 3
    assert err.count("did not end within 1 seconds: SIGKILL") == 1


def test_a_killed_rank_is_told_by_its_signal(tmp_path):
    code, _, err = finish(start(tmp_path, 1, "sh", "-c", "kill -9 $$"))
    assert code == 128 + signal.SIGKILL and "rank 0 ended with exit code 137" in err


def test_nothing_is_left_behind(tmp_path):
    code, out, _ = finish(start(tmp_path, 2, "sh", "-c", "sleep 600 & echo $!"))
    pids = [int(out), int(log(tmp_path, 1))]
    end = time.monotonic() + 60
    while any(map(alive, pids)):
        assert time.monotonic() < end, f"{pids} still run"
        time.sleep(0.02)
    assert code == 0


@pytest.mark.parametrize(
    "count, command, environment, message",
    [
        ("two", ["true"], {}, "N is a number of processes, not 'two'"),
        ("0", ["true"], {}, "not '0'"),
        ("2", [], {}, "no command"),
        ("2", ["no_such_command"], {}, "no command 'no_such_command'"),
        ("2", ["true"], {"GRACE": "soon"}, "GRACE must be a number of at least 1, not 'soon'"),
        ("2", ["true"], {"DEVICES_PER_PROCESS": "2", "GPUS_PER_PROCESS": "1"}, "set one of them"),
    ],
)
def test_bad_input_is_refused_at_once(tmp_path, count, command, environment, message):
    code, out, err = finish(start(tmp_path, count, *command, **environment))
    assert code == 2 and out == ""
    assert len(err.splitlines()) == 1 and message in err
    assert not (tmp_path / "logs").exists()
