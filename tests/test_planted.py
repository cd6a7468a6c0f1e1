"""Files that somebody put into a run folder: foreign ones, results, pipes, devices, odd names."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import small
from test_digests import faults, original, run

from paella_jax import verify
from paella_jax.config import CheckpointError
from paella_jax.files.regular import read_regular
from paella_jax.runs import step_digests
from paella_jax.runs.checkpoint import restore_variables
from paella_jax.runs.digests import note_files
from paella_jax.runs.folder import has_progress, prepare_workdir
from paella_jax.runs.frozen import load_carried
from paella_jax.runs.step_folders import is_step
from paella_jax.runs.verify import verify_run
from paella_jax.runs.whole_steps import complete_steps

__all__ = ["original", "run"]  # fixtures


@pytest.fixture
def ended():
    """Ends a test that would wait for ever for a pipe's other end."""

    def end(*_):
        raise RuntimeError("it waits")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_results_are_told_as_unchecked_and_others_are_foreign(run, monkeypatch, capsys):
    (run / "tasks").mkdir()
    for name in ("scores.json", "report.json", "mine.png", "tasks/sheet.png", "tasks/evil.sh",
                 "tasks/tasks.json", "evil.py"):  # fmt: skip
        (run / name).write_text("{}")
    assert [found[:2] for found in faults(run)] == [
        ("foreign", "evil.py"), ("foreign", "tasks/evil.sh"),
    ]  # fmt: skip
    (run / "evil.py").unlink()
    (run / "tasks" / "evil.sh").unlink()
    monkeypatch.setattr("sys.argv", ["verify", str(run)])
    assert verify.main() == 0
    out = capsys.readouterr().out
    assert "mine.png, report.json, scores.json and 2 more: results have no digests" in out
    assert "all is what was written" not in out and "nothing wrong was found" in out


@pytest.mark.parametrize("name", ["frozen/clip/config.json", "frozen/zzz.safetensors",
                                  "samples/step_0000002.png", "trained.json"])  # fmt: skip
def test_what_the_list_does_not_have_is_foreign(run, name):
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_bytes((run / "frozen" / "base.safetensors").read_bytes())
    assert [found[:2] for found in faults(run)] == [("foreign", name)]


def test_what_a_stopped_start_carried_is_no_foreign_file(tmp_path):
    folder = prepare_workdir(tmp_path / "run", small.small_paella())
    small.carry_random_tokenizer(folder)
    told = {found.name: found.what for found in verify_run(folder)}
    assert set(told) == {"frozen/vqgan.json", "frozen/vqgan.safetensors"} and not faults(folder)
    note_files(folder)
    assert verify_run(folder) == []


def test_pipes_are_not_read_and_told(run, ended):
    (run / "data.json").unlink()
    for name in ("data.json", "timing.json", "stray", "writer.lock", "checkpoints/4/stray"):
        os.mkfifo(run / name)
    told = [found[:2] for found in faults(run)]
    assert ("missing", "data.json") in told
    for name in ("timing.json", "stray", "writer.lock", "checkpoints/4/stray"):
        assert ("foreign", name) in told, name


@pytest.mark.parametrize("name", ["digests.json", "note/metadata", "state/_METADATA"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda place: place.symlink_to("/dev/zero")])
def test_a_checkpoint_with_a_pipe_or_a_device_is_refused_or_passed_over(run, ended, name, make):
    file = run / "checkpoints" / "4" / name
    file.unlink()
    make(file)
    assert faults(run)
    if name == "digests.json":
        with pytest.raises(CheckpointError, match="it is no regular file"):
            restore_variables(run)
    else:
        assert complete_steps(run) == [2]


def test_an_array_in_a_pipe_is_told_and_not_waited_for(run, monkeypatch):
    """It would be read in threads, which nothing ends."""
    data = list((run / "checkpoints" / "4" / "state").rglob("d/*"))
    for file in data:
        file.unlink()
        os.mkfifo(file)
    read = step_digests.digest_of_parts

    def only_files(folder, parts):
        assert all((folder / name).is_file() for name, _, _ in parts)
        return read(folder, parts)

    monkeypatch.setattr(step_digests, "digest_of_parts", only_files)
    assert len(faults(run)) >= len(data) and complete_steps(run) == [2]


def test_a_frozen_config_in_a_pipe_is_refused(run, ended):
    (run / "frozen" / "vqgan.json").unlink()
    os.mkfifo(run / "frozen" / "vqgan.json")
    with pytest.raises(CheckpointError, match=r"vqgan\.json is missing"):
        load_carried("tokenizer", run)


def test_what_is_read_whole_is_bounded(tmp_path):
    file = tmp_path / "list.json"
    file.write_bytes(b"12345")
    assert read_regular(file, 5) == b"12345"
    with pytest.raises(ValueError, match="it has 5 bytes, and at most 4 are read"):
        read_regular(file, 4)
    with pytest.raises(ValueError, match="no regular file"):
        read_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "absent")
    with pytest.raises(ValueError, match="no regular file"):
        read_regular(Path("/dev/zero"))


@pytest.mark.parametrize("name", ["²", "٣", "09", "6.tmp", "-6"])
def test_names_that_are_no_steps_are_foreign(run, name):
    assert is_step("0") and is_step("10") and not is_step(name)
    (run / "checkpoints" / name).mkdir()
    assert complete_steps(run) == [2, 4] and restore_variables(run)[0] == 4
    assert [found[:2] for found in faults(run)] == [("foreign", f"checkpoints/{name}")]
    assert has_progress(run)
