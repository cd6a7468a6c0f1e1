"""Works that are stopped at their files: a seeded sample of the stops of tests/faults.py."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys

import pytest
import small
from faults import FULL, KILL, TERM, End, Events, Fault, difference, place_of, problem_of

from paella_jax.cli import describe_disk, run
from paella_jax.config import StoppedAtOnce, WriteError
from paella_jax.files import atomic
from paella_jax.files.atomic import atomic_path, write_atomically


def stopped(count, seed):
    """The last lines of the command; it must find nothing."""
    command = [sys.executable, "-W", "ignore", "tests/faults.py", str(count), str(seed)]
    environment = os.environ | small.COMPILE_CHEAPLY | {"PYTHONPATH": str(small.ROOT)}
    result = subprocess.run(
        command, cwd=small.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    return result.stdout


@pytest.mark.parametrize("count, seed", [(12, 0), small.slow(60, 1)])
def test_what_is_stopped_anywhere_ends_as_if_it_was_not(count, seed):
    """Trainings, encodings, comparisons, votes; two starters too. More of them by command."""
    told = stopped(count, seed)
    assert f"{count} stops in " in told and "0 finished saves lost, 0 deviations" in told
    kinds = re.search(r"folders: \{(.*)\}", told)[1]
    assert kinds.count(":") >= 5, "it proves little"


def test_places_and_ends_of_stops():
    """What the chain itself makes of events and of exit codes."""
    places = {
        ("open", "/x/checkpoints/2.orbax-checkpoint-tmp/note/metadata"): "first save",
        ("os.rename", "/x/checkpoints/6.orbax-checkpoint-tmp"): "last save",
        ("os.remove", "/x/checkpoints/2/state/d/abc"): "delete",
        ("open", "/x/writer.lock.0a.part"): "lock",
        ("open", "/x/metrics.jsonl"): "metrics",
        ("os.rename", "/x/cells/a.json.host.1.part"): "record",
    }
    assert {event: place_of(*event) for event in places} == places
    fault = lambda kind: Fault(kind, "save", 1)
    assert problem_of(fault(KILL), End(-signal.SIGKILL, "", [])) == ""
    assert problem_of(fault(KILL), End(1, "", [])) == "exit code 1"
    assert problem_of(fault(TERM), End(143, "", [])) == ""
    assert problem_of(fault(FULL), End(1, "error: cannot write\n", [])) == ""
    assert problem_of(fault(FULL), End(1, "", [])) == "0 lines of error"
    assert problem_of(fault(FULL), End(1, "error: x\nTraceback (most", [])) == "a traceback"
    assert difference({"a": {"b": 1}}, {"a": {"b": 2}}) == "/a/b is 1, uninterrupted 2"


def test_events_are_counted_and_refused(tmp_path):
    reading, writing = os.pipe()
    events = Events(tmp_path, Fault("EROFS", "metrics", 2), writing)
    for event, path in (("open", "/elsewhere/metrics.jsonl"), ("open", f"{tmp_path}/metrics.jsonl"),
                        ("os.rename", f"{tmp_path}/a")):  # fmt: skip
        events.happens(event, path)
    for path in ("metrics.jsonl", "a", "b"):  # from the second on
        with pytest.raises(OSError, match="Read-only"):
            events.happens("open", f"{tmp_path}/{path}")
    os.close(writing)
    with os.fdopen(reading) as stream:
        assert stream.read().split() == ["metrics", "other", "metrics"]


def test_a_disk_that_takes_no_more_is_told_in_a_line(tmp_path, monkeypatch, capsys):
    def refuse(opened):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    file = tmp_path / "note.json"
    file.write_text("before")
    with pytest.raises(SystemExit) as ended:
        run(lambda: write_atomically(file, "after"))
    assert ended.value.code == 1 and file.read_text() == "before" == _only(tmp_path).read_text()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: cannot write {file}: No space left on device; " + (
        "make room on its disk, then run the same command again: it goes on from what is stored"
    )
    assert describe_disk(WriteError("told already")) == "told already"
    assert describe_disk(OSError(errno.ECONNREFUSED, "no disk")) == describe_disk(KeyError()) == ""


def test_a_folder_needs_no_sync_where_there_is_none(tmp_path, monkeypatch):
    """As of some network file systems; of files it is asked."""

    def refuse(opened):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    atomic.sync(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Invalid"):
        atomic.sync(tmp_path / "file")


def test_what_appears_whole_waits_for_the_disk(tmp_path, monkeypatch):
    """The content before the name, the name before anything else; images that are drawn do not."""
    seen = []
    look = lambda opened: seen.append(os.readlink(f"/proc/self/fd/{opened}").rpartition("/")[2])
    monkeypatch.setattr(os, "fsync", look)
    write_atomically(tmp_path / "a.json", "{}")
    assert [name.split(".")[0] for name in seen] == ["a", tmp_path.name] and ".part" in seen[0]
    seen.clear()
    with atomic_path(tmp_path / "folder") as part:
        part.mkdir()
        (part / "inside").touch()
    assert seen[0] == "inside" and seen[-1] == tmp_path.name and len(seen) == 3
    seen.clear()
    with atomic_path(tmp_path / "a.png", durable=False) as part:
        part.touch()
    assert seen == [] and (tmp_path / "a.png").is_file()


def test_what_killed_processes_left_is_removed(tmp_path):
    """By the next one that writes there; of living ones and of other hosts nothing is touched."""
    host, gone = os.uname().nodename, subprocess.Popen(["true"])
    gone.wait()
    left = [f"a.json.{host}.{gone.pid}.part", f"b.{host}.{gone.pid}.part"]
    kept = [f"a.json.{host}.1.part", f"a.json.elsewhere.{gone.pid}.part", "my.part"]
    for name in (*left[:1], *kept):
        (tmp_path / name).touch()
    (tmp_path / left[1]).mkdir()
    (tmp_path / left[1] / "inside").touch()
    old = tmp_path / f"c.elsewhere.{gone.pid}.part"
    old.touch()
    os.utime(old, (0, 0))
    atomic._looked_through.discard(tmp_path)
    write_atomically(tmp_path / "a.json", "{}")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*kept, "a.json"])


def test_a_second_interrupt_waits_for_no_thread(monkeypatch, capsys):
    def stop():
        raise StoppedAtOnce

    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with pytest.raises(UnboundLocalError):  # os._exit returns here alone
        run(stop)
        raise UnboundLocalError
    assert codes == [130] and "stopped at once" in capsys.readouterr().err


def _only(folder):
    (file,) = folder.iterdir()
    return file
