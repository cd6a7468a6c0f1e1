"""One writer per folder: who has the lock, and when one that was left behind is taken over."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import small

from paella_jax import average, train
from paella_jax.config import ConfigError
from paella_jax.convert import __main__ as convert
from paella_jax.files import lock as locks
from paella_jax.files.lock import WRITER, Lock, LockedError, beside, holder, locked, read_lock
from paella_jax.runs.folder import prepare_workdir
from paella_jax.training.finish import finish


@pytest.fixture
def file(tmp_path):
    return tmp_path / "run" / WRITER


def change(file, **told):
    """Makes a lock that of another process."""
    content = json.loads(file.read_text()) | {"token": "another"} | told
    file.write_text(json.dumps(content))


def leave(file, **told):
    """A lock as a process that is gone leaves it, or another one has it."""
    one = Lock(file, "a training")
    assert one.try_acquire()
    one._ended.set()  # nobody touches it
    if told:
        change(file, **told)


def aged(file, seconds):
    then = time.time() - seconds
    os.utime(file, (then, then))


@pytest.fixture
def left(file):
    """A lock of another host, that was just touched."""
    leave(file, host="elsewhere", boot="another")
    return file


def test_one_has_it_and_the_other_is_told_who(file):
    with locked(file, "a training"):
        with pytest.raises(LockedError, match=rf"run is written by a training \(process "
                           rf"{os.getpid()} on .*, since 20\d\d-"):  # fmt: skip
            Lock(file, "a training").acquire()
        assert read_lock(file)["pid"] == os.getpid()
    assert not file.parent.exists(), "it was made for the lock"
    with pytest.raises(RuntimeError), locked(file, "a training"):
        raise RuntimeError("the work failed")
    assert not file.exists()


def test_of_many_starters_one_gets_it(file):
    """Also where a lock that was left behind lies there."""
    for is_left in (False, True, True):
        if is_left:
            leave(file, boot="another")
            aged(file, 10 * locks.STALE)
        start, won = threading.Barrier(8), []

        def try_it(start=start, won=won):
            one = Lock(file, "a training")
            start.wait()
            if one.try_acquire():
                won.append(one)

        threads = [threading.Thread(target=try_it) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        won[0].release()
        assert not list(file.parent.glob("*"))


def test_without_hard_links(file, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    with locked(file, "a training"):
        assert not Lock(file, "a training").try_acquire()
    file.parent.mkdir()
    file.write_text("")  # made, but not written yet
    assert not Lock(file, "a training").try_acquire()
    aged(file, 10 * locks.STALE)
    with locked(file, "a training"):
        pass


def test_a_lost_answer_of_a_network_file_system(file, monkeypatch):
    link = os.link

    def link_and_fail(source, target):
        link(source, target)
        raise FileExistsError(target)

    monkeypatch.setattr(os, "link", link_and_fail)
    with locked(file, "a training"):
        assert read_lock(file)["pid"] == os.getpid()
    assert not file.exists()


def test_the_lock_of_a_dead_process_is_taken_at_once(file):
    code = ("import sys, os; from pathlib import Path; from paella_jax.files.lock import Lock\n"
            "assert Lock(Path(sys.argv[1]), 'a training').try_acquire(); os._exit(9)")  # fmt: skip
    command = [sys.executable, "-c", code, str(file)]
    other = subprocess.run(command, cwd=small.ROOT, check=False)
    assert other.returncode == 9 and file.is_file() and read_lock(file) is None
    with locked(file, "a training"):
        assert read_lock(file)["pid"] == os.getpid()


def test_a_number_that_another_process_has_now_is_no_holder(file):
    leave(file, started="1")  # before this process
    with locked(file, "a training"):
        pass
    leave(file, pid=1, started=locks._started(1))  # one that runs
    with pytest.raises(LockedError, match="process 1 on"):
        Lock(file, "a training").acquire()


def test_a_silent_one_of_another_host_is_taken_over(left, monkeypatch):
    monkeypatch.setattr(locks, "STALE", 0.3)
    monkeypatch.setattr(locks, "BEAT", 0.2)
    one = Lock(left, "a training")
    assert not one.try_acquire()
    one.acquire()  # waits until it counts as left behind
    assert read_lock(left)["token"] == one._token
    one.release()


def test_one_of_another_host_that_is_touched_is_not(left, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.2)
    touch = threading.Timer(0.3, lambda: aged(left, -5))
    touch.start()
    with pytest.raises(LockedError, match="on elsewhere"):
        Lock(left, "a training").acquire()
    touch.join()


def test_one_of_another_host_is_read_where_nothing_can_be_written(left, monkeypatch):
    """As who looks at another's run: by our own clock."""
    is_open = Path.open

    def refuse(path, mode="r", *given, **more):
        if set(mode) & set("wxa"):
            raise OSError(errno.EROFS, "read-only file system", str(path))
        return is_open(path, mode, *given, **more)

    monkeypatch.setattr(Path, "open", refuse)
    assert read_lock(left)["host"] == "elsewhere"
    aged(left, 10 * locks.STALE)
    assert read_lock(left) is None


def test_the_holder_touches_it_and_makes_it_anew(file, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.02)
    with locked(file, "a training"):
        aged(file, 1000)
        _until(lambda: time.time() - file.stat().st_mtime < 500)
        file.unlink()
        _until(file.is_file)
        assert read_lock(file)["pid"] == os.getpid()


def test_a_holder_that_lost_it_ends(file, monkeypatch):
    ended, codes = threading.Event(), []

    def end(code):
        codes.append(code)
        ended.set()

    monkeypatch.setattr(locks, "BEAT", 0.02)
    monkeypatch.setattr(os, "_exit", end)
    one = Lock(file, "a training")
    one.acquire()
    change(file, host="elsewhere")
    assert ended.wait(20) and set(codes) == {locks.LOST}
    one.release()
    assert file.is_file()  # it is the other's


def _until(happens):
    deadline = time.monotonic() + 20
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_commands_ask_for_it_before_any_work(tmp_path, monkeypatch):
    """A training in a run's folder, what makes a new one beside it."""
    run, out = tmp_path / "run", tmp_path / "out"
    prepare_workdir(run, small.small_paella())
    refused = lambda what: pytest.raises(LockedError, match=f"{what} is written by")
    with locked(run / WRITER, "a training"), refused("run"):
        finish(small.small_paella(), run, lambda *_: pytest.fail("it was built"))
    monkeypatch.setattr(train, "setup_jax", lambda: None)
    with locked(tmp_path / "new" / WRITER, "a training"), refused("new"):
        train.train_here("paella:tiny", tmp_path / "new")
    assert not (tmp_path / "new").exists(), "nothing was written"
    with locked(beside(out), "an average"):
        with refused("out"):
            average.write_average(str(tmp_path / "absent"), str(out))
        monkeypatch.setattr("sys.argv", ["convert", "--merge", "absent", "--out", str(out)])
        with refused("out"):
            convert.main()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["run"]
    with pytest.raises(ConfigError, match="cannot write to"):
        Lock(run / "config.json" / WRITER, "a training").acquire()


def test_a_holder_in_words():
    assert holder({}) == "unknown (process unknown on unknown, since an unknown time)"
