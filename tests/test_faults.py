"""Works that are stopped at their files: a seeded sample of the stops of tests/faults.py."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
import small
from fault_events import FULL, KILL, TERM, End, Events, Fault, place_of
from faults import difference, problem_of

from paella_jax.cli import run
from paella_jax.comparison.claims import Task, do_together
from paella_jax.config import StoppedAtOnce, WriteError
from paella_jax.files import atomic
from paella_jax.files import lock as locks
from paella_jax.files.atomic import atomic_path, write_atomically
from paella_jax.files.disk import describe_disk
from paella_jax.files.library_noise import LATE, silence_late_answers
from paella_jax.files.lock import TAKING, WRITER, Lock, clear_left
from paella_jax.runs.checked_lines import metrics_line
from paella_jax.runs.checkpoint import Checkpointer
from paella_jax.runs.digests import noting
from paella_jax.runs.folder import prepare_workdir
from paella_jax.runs.verify import NOTE, verify_run
from paella_jax.runs.whole_steps import complete_steps, set_aside_incomplete
from paella_jax.training.finish import TRAINED, settle


def stopped(*words):
    """The last lines of the command; it must find nothing."""
    command = [sys.executable, "-W", "ignore", "tests/faults.py", *map(str, words)]
    environment = os.environ | small.COMPILE_CHEAPLY | {"PYTHONPATH": str(small.ROOT)}
    result = subprocess.run(
        command, cwd=small.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    return result.stdout


@pytest.mark.parametrize("count, seed", [(12, 0), small.slow(40, 1)])
def test_what_is_stopped_anywhere_ends_as_if_it_was_not(count, seed):
    """Trainings, encodings, comparisons, votes; two starters too. More of them by command."""
    told = stopped(count, seed)
    assert f"{count} stops in " in told and "0 finished saves lost, 0 deviations" in told
    kinds = re.search(r"folders: \{(.*)\}", told)[1]
    assert kinds.count(":") >= 4, "it proves little"


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


def test_a_line_is_in_the_log_when_it_is_written(monkeypatch):
    """Not once the process ends, which a killed one never does properly."""
    log, seen = io.BytesIO(), []
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(log, line_buffering=False))

    def work():
        print("a line")
        seen.append(log.getvalue())
        return 0

    with pytest.raises(SystemExit):
        run(work)
    assert seen == [b"a line\n"]


def test_answers_that_come_too_late_are_left_out(monkeypatch):
    """And nothing else that goes wrong where nobody can be told."""
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: told.append(str(found.exc_value)))
    silence_late_answers()
    hook = sys.unraisablehook
    silence_late_answers()
    assert sys.unraisablehook is hook
    for error in (RuntimeError(LATE), RuntimeError("another"), ValueError(LATE), None):
        hook(types.SimpleNamespace(exc_value=error))
    assert told == ["another", LATE, "None"]


def test_a_second_interrupt_waits_for_no_thread(monkeypatch, capsys):
    def stop():
        raise StoppedAtOnce

    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    run(stop)
    assert codes == [130] and "stopped at once" in capsys.readouterr().err


# --- what a run folder makes of it


def step_of(number):
    return {"step": np.int32(number), "params": {"kernel": np.full((40, 30), number, np.float32)}}


@pytest.fixture
def saved(tmp_path):
    """A run folder with two checkpoints, of which it keeps as many."""
    folder = prepare_workdir(tmp_path / "run", small.small_paella(checkpoint__keep=2))
    checkpointer = Checkpointer(folder, 2)
    for number in (4, 6):
        checkpointer.save(number, step_of(number))
    checkpointer.close()
    (folder / "metrics.jsonl").write_text(
        "".join(metrics_line({"step": step, "loss": 1.0}) for step in range(1, 9))
    )
    return folder


def test_a_removal_that_was_stopped_is_ended(saved):
    """What is left of an outdated checkpoint is no damage; of one that is kept it is."""
    old = saved / "checkpoints" / "2"
    (old / "state").mkdir(parents=True)
    (old / "state" / "manifest.ocdbt").touch()
    assert [(f.kind, f.name) for f in verify_run(saved)] == [(NOTE, "checkpoints/2")]
    assert set_aside_incomplete(saved, keep=3) == ("checkpoint 2 lacks files: moved to incomplete/")
    (saved / "incomplete" / "2").rename(old)
    assert set_aside_incomplete(saved, keep=2) == "" and not old.exists()
    assert complete_steps(saved) == [4, 6]
    checkpointer = Checkpointer(saved, 1)
    checkpointer.restore(
        jax.eval_shape(lambda: step_of(6))
    )  # a whole one goes once a newer one was read
    assert complete_steps(saved) == [6], "a whole one goes once a newer one was read"
    checkpointer.save(8, step_of(8))
    checkpointer.close()
    assert complete_steps(saved) == [8]


def test_a_save_that_fails_is_told_at_the_next_one_and_costs_nothing_else(saved, monkeypatch):
    """In the background, or at once; the older ones stay."""
    checkpointer = Checkpointer(saved, 2)

    def refuse(folder, step):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("paella_jax.runs.checkpoint.write_step_digests", refuse)
        checkpointer.save(8, step_of(8))
        with pytest.raises(WriteError, match=r"checkpoints/8 cannot be written: OSError: .*No space"
                           r".*; see to its disk.* goes on from step 6$"):  # fmt: skip
            checkpointer.save(10, step_of(10))
    assert complete_steps(saved) == [4, 6]
    with monkeypatch.context() as patch:
        patch.setattr(checkpointer.manager, "save", lambda *_, **__: refuse(None, 0))
        with pytest.raises(WriteError, match="checkpoints/10 cannot be written"):
            checkpointer.save(10, step_of(10))
    checkpointer.close()
    again = Checkpointer(saved, 2)
    again.save(8, step_of(8))
    again.close()
    assert complete_steps(saved) == [6, 8] and verify_run(saved) == []


def test_a_checkpoint_is_on_the_disk_before_an_older_one_goes(tmp_path, monkeypatch):
    """Its files before it has its name; the folder that has the name before the removal."""
    seen = []
    checkpointer = Checkpointer(tmp_path, 1)
    checkpointer.save(2, step_of(2))
    checkpointer.wait()
    delete = checkpointer.manager._checkpoint_deleter.delete_steps

    def note(opened):
        seen.append(os.readlink(f"/proc/self/fd/{opened}").removeprefix(f"{tmp_path}/checkpoints"))

    def remove(steps):
        seen.append(f"removes {steps}")
        delete(steps)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(checkpointer.manager._checkpoint_deleter, "delete_steps", remove)
    checkpointer.save(4, step_of(4))
    checkpointer.close()
    assert seen[-1] == "removes [2]" and seen[-2] == "", "the folder of all of them"
    unnamed = [name for name in seen if name.startswith("/4.")]
    for file in ("digests.json", "state/_METADATA", "state/manifest.ocdbt", "note/metadata"):
        assert any(name.endswith(f"/{file}") for name in unnamed), file
    assert {"/4/_CHECKPOINT_METADATA", "/4/commit_success.txt", "/4"} <= set(seen)


def test_parts_of_other_hosts_go_with_the_next_call(saved):
    """The lock's holder writes alone; what is not named like ours stays."""
    ours = ["config.json.there.7.part", "samples/step_0000004.png.there.7.part",
            "frozen/vqgan.safetensors.there.7.part", "digests.json.there.7.part"]  # fmt: skip
    other = saved / "film.mkv.there.7.part"
    for file in (*(saved / name for name in ours), other):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    (saved / "frozen.there.7.part").mkdir()
    prepare_workdir(saved, small.small_paella(checkpoint__keep=2))
    assert list(saved.rglob("*.part")) == [other]
    lock = Lock(saved / WRITER, "a training")
    (saved / f"{WRITER}.0a1b.part").touch()
    (saved / f"{WRITER}{TAKING}").write_text(dead_holder())
    assert lock.try_acquire()
    lock.release()
    assert not list(saved.glob(f"{WRITER}*"))


def dead_holder():
    """What a lock says of a process that is gone."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    return json.dumps({**locks._here(), "started": "1", "pid": gone.pid, "token": "another"})


def test_a_claim_of_a_killed_process_whose_task_is_done_goes(tmp_path):
    (tmp_path / "claims").mkdir()
    for name, holder in (("done", dead_holder()), ("busy", json.dumps({"token": "elsewhere"}))):
        (tmp_path / "claims" / name).write_text(holder)
    do_together([Task(name, lambda: True, lambda: None) for name in ("done", "busy")], tmp_path)
    assert [file.name for file in (tmp_path / "claims").iterdir()] == ["busy"]
    clear_left(tmp_path / "claims" / "busy")
    clear_left(tmp_path / "claims" / "absent")
    assert [file.name for file in (tmp_path / "claims").iterdir()] == ["busy"]


def test_what_a_stop_at_the_very_end_left_is_tidied_up(saved):
    """`compare` and `repeat` train no run again that was trained, and so nobody else does it."""
    with pytest.raises(KeyboardInterrupt), noting(saved, TRAINED) as file:
        file.write_text(json.dumps({"images": 4, "seconds": 1.0}))
        raise KeyboardInterrupt
    half = saved / "digests.json.there.7.part"
    half.touch()
    assert [finding.name for finding in verify_run(saved)] == [TRAINED]
    (saved / WRITER).write_text(json.dumps({"token": "elsewhere"}))
    settle(saved)
    assert half.exists() and (saved / WRITER).exists(), "another process is at it"
    (saved / WRITER).write_text(dead_holder())
    settle(saved)
    assert verify_run(saved) == [] and not half.exists() and not (saved / WRITER).exists()


def test_a_lock_of_a_time_to_come_is_watched(tmp_path, monkeypatch):
    """A server's clock that was set back: the holder, of another host, is silent all the same."""
    monkeypatch.setattr(locks, "STALE", 0.2)
    monkeypatch.setattr(locks, "BEAT", 0.1)
    file = tmp_path / WRITER
    file.write_text(json.dumps({"host": "elsewhere", "token": "another"}))
    later = time.time() + 3600
    os.utime(file, (later, later))
    lock = Lock(file, "a training")
    assert not lock.try_acquire()
    lock.acquire()
    assert locks.read_lock(file)["token"] == lock._token
    lock.release()


def _only(folder):
    (file,) = folder.iterdir()
    return file
