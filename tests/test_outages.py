"""Disks and networks that fail for a while: nothing is called damaged for it."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from test_folder import fill

from paella_jax.config import CheckpointError, ConfigError
from paella_jax.data import array_records, open_readers, webdataset
from paella_jax.data.array_records import ArrayRecords, write_array_record
from paella_jax.data.captioned import MANY, BrokenDataError
from paella_jax.data.folder import FolderSource
from paella_jax.data.loader import image_transform, make_iterator
from paella_jax.data.open_readers import OpenReaders
from paella_jax.data.records import Record
from paella_jax.files import disk
from paella_jax.files.disk import as_outage, describe_disk, is_outage, patiently
from paella_jax.images.decode import Encoded
from paella_jax.runs import checkpoint
from paella_jax.runs.durable import check_renames
from paella_jax.training.cluster import ClusterError, LateError
from paella_jax.training.distributed import CRASHED, INTERRUPTED, MISTAKE, exit_code


def failing(number, name="a file"):
    return OSError(number, os.strerror(number), name)


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error, code",
    [
        (ConfigError("wrong"), MISTAKE),
        (ClusterError("another config"), MISTAKE),
        (LateError("not there"), CRASHED),
        (ValueError("anything"), CRASHED),
        (failing(errno.ESTALE), CRASHED),
        (caused(CheckpointError("cannot be read"), failing(errno.ESTALE)), CRASHED),
        (caused(CheckpointError("cannot be read"), failing(errno.ENOENT)), MISTAKE),
        (caused(ConfigError("cannot be read"), ValueError("damaged")), MISTAKE),
        (SystemExit(143), 143),
        (KeyboardInterrupt(), INTERRUPTED),
    ],
    ids=repr,
)
def test_what_is_no_mistake_is_tried_again(error, code):
    assert exit_code(error) == code


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE])
def test_outages_are_told_in_a_line(number):
    assert is_outage(failing(number))
    assert describe_disk(failing(number)).startswith(("cannot use a file", "cannot open a file"))


@pytest.fixture
def patience(monkeypatch):
    monkeypatch.setattr(disk, "PATIENCE", (0.0, 0.0, 0.0))


def test_reading_is_tried_again(patience):
    tries = []

    def read(until, number):
        tries.append(number)
        if len(tries) < until:
            raise failing(number)
        return "read"

    assert patiently(lambda: read(4, errno.EIO)) == "read" and len(tries) == 4
    tries.clear()
    with pytest.raises(OSError, match="Stale"):
        patiently(lambda: read(9, errno.ESTALE))
    assert len(tries) == 4
    tries.clear()
    with pytest.raises(FileNotFoundError):
        patiently(lambda: read(9, errno.ENOENT))
    assert len(tries) == 1, "what is not there will not be"


def test_a_moment_s_failure_changes_no_sample(tmp_path, patience, monkeypatch, capfd):
    fill(tmp_path, 20)
    source, calm = (FolderSource(str(tmp_path), 16) for _ in range(2))
    read, failures = source.records.read, iter([errno.ESTALE, errno.EIO])

    def sometimes(position):
        if number := next(failures, 0):
            raise failing(number)
        return read(position)

    monkeypatch.setattr(source.records, "read", sometimes)
    assert source[3]["caption"] == calm[3]["caption"] == "caption 3"
    assert not source.broken and "broken" not in capfd.readouterr().err


def test_one_unreadable_file_is_a_broken_sample(tmp_path, patience, monkeypatch):
    """A disk's error on one file alone, for ever."""
    fill(tmp_path, 60)
    source = FolderSource(str(tmp_path), 16)
    read = source.records.read

    def bad_sector(position):
        if position == 4:
            raise failing(errno.EIO)
        return read(position)

    monkeypatch.setattr(source.records, "read", bad_sector)
    assert source[3]["caption"] == "caption 3"
    assert source[4]["caption"] == "caption 5" and source.broken == {4}


def test_data_that_is_gone_is_no_broken_data(tmp_path, patience, capfd):
    folder = tmp_path / "images"
    folder.mkdir()
    fill(folder, 400)
    source = FolderSource(str(folder), 16)
    assert source[3]["caption"] == "caption 3"
    shutil.move(folder, tmp_path / "away")
    with pytest.raises(OSError, match="cannot be read any more") as caught:
        source[7]
    assert not isinstance(caught.value, BrokenDataError) and is_outage(caught.value)
    assert describe_disk(caught.value).startswith(f"cannot use data.folder {folder}")
    assert len(source.broken) == MANY - 1
    assert capfd.readouterr().err.count("skipping") <= MANY


def test_small_data_that_is_gone_is_no_broken_data_either(tmp_path):
    """Where a tenth is less than what one asks after."""
    folder = tmp_path / "images"
    folder.mkdir()
    fill(folder, 40)
    source = FolderSource(str(folder), 16)
    shutil.move(folder, tmp_path / "away")
    with pytest.raises(OSError, match="cannot be read any more"):
        source[7]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE])
def test_outages_that_a_library_tells_in_words(number):
    told = RuntimeError(f"open() failed: {os.strerror(number)}; reading a.array_record")
    error = as_outage(told, "a.array_record")
    assert error is not None and error.errno == number and error.filename == "a.array_record"
    assert as_outage(RuntimeError("open() failed: No such file or directory; x"), "x") is None
    assert as_outage(ValueError("Invalid header"), "x") is None


def test_a_shard_that_cannot_be_opened_for_a_moment_is_read(tmp_path, patience, monkeypatch):
    record = Record(Encoded("a", b"png"), ["a caption"])
    write_array_record(tmp_path / "a.array_record", [record])
    records = ArrayRecords("data", [tmp_path / "a.array_record"])
    records._forget()
    opens, words = [], f"open() failed: {os.strerror(errno.EMFILE)}; reading"
    really = array_records._open

    def sometimes(file):
        opens.append(file)
        if len(opens) < 3:
            raise RuntimeError(words)
        return really(file)

    monkeypatch.setattr(array_records, "_open", sometimes)
    assert patiently(lambda: records.read(0)).captions == ["a caption"] and len(opens) == 3


def test_many_broken_neighbours_are_broken(tmp_path):
    """A bad folder among good ones: the sample that was read before is still there."""
    fill(tmp_path, 400, broken=range(100, 120))
    source = FolderSource(str(tmp_path), 16)
    assert source[3]["caption"] == "caption 3"
    place = next(n for n in range(len(source)) if source.files[n].stem == "101")
    assert source[place]["caption"] == "caption 120"
    assert len(source.broken) > MANY


def test_a_checkpoint_on_a_failing_disk_is_not_called_damaged(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints" / "3"
    folder.mkdir(parents=True)
    monkeypatch.setattr(checkpoint, "complete_steps", lambda workdir: [3])

    def read(*_, **__):
        raise failing(errno.ESTALE, str(folder))

    monkeypatch.setattr(checkpoint, "read_arrays", read)
    with pytest.raises(OSError, match="Stale"):
        checkpoint.restore_variables(tmp_path)


def test_processes_index_other_shards_first(monkeypatch):
    assert webdataset._order(5) == [0, 1, 2, 3, 4]
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    orders = []
    for number in range(3):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        orders.append(webdataset._order(5))
    assert orders == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 0], [3, 4, 0, 1, 2]]


def test_a_run_folder_whose_folders_cannot_be_renamed_is_refused(tmp_path, monkeypatch):
    (tmp_path / ".renamed_after" / "inside").mkdir(parents=True)  # left by a kill
    check_renames(tmp_path)
    assert not list(tmp_path.iterdir())

    def rename(self, target):
        raise failing(errno.ENOSYS)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(ConfigError, match=r"cannot rename folders .*hierarchical namespace"):
        check_renames(tmp_path)
    assert not list(tmp_path.iterdir())


def test_as_many_samples_are_read_at_once_as_there_are_threads():
    """More than the batches that are prepared ahead."""
    together = threading.Barrier(12)

    class Slow:
        def __len__(self):
            return 24

        def __getitem__(self, index):
            together.wait(timeout=20)
            return {"image": np.zeros((2, 2, 3), np.uint8)}

    options = {"batch_size": 1, "seed": 0, "threads": 12, "prefetch": 8}
    batch = next(make_iterator(Slow(), image_transform, **options))
    assert batch["image"].shape == (1, 2, 2, 3)


def test_only_so_many_readers_are_open(monkeypatch):
    monkeypatch.setattr(open_readers, "most_open", lambda: 3)
    opened = []
    readers = OpenReaders(lambda number: opened.append(number) or f"reader {number}")
    assert [readers[n] for n in (0, 1, 0, 2)] == ["reader 0", "reader 1", "reader 0", "reader 2"]
    assert opened == [0, 1, 2]
    assert readers[3] == "reader 3" and readers[2] == "reader 2" and readers[0] == "reader 0"
    assert opened == [0, 1, 2, 3, 0], "the oldest one was given up"
