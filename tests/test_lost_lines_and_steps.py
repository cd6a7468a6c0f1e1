"""Lines of metrics without a check, and checkpoints that a run tells of and does not have."""

from __future__ import annotations

import json
import shutil

import pytest
import small

from paella_jax.runs.checked_lines import metrics_line, scan_metrics
from paella_jax.runs.digests import write_noted
from paella_jax.runs.folder import prepare_workdir
from paella_jax.runs.verify import MISSING, verify_run

ROWS = [{"step": step, "loss": 1.0 / step} for step in range(1, 8)]
EVERY = {"checkpoint__every": 2, "log__every": 1}


@pytest.fixture
def run(tmp_path):
    """A folder of a training that was killed behind the save of step 6."""
    folder = prepare_workdir(tmp_path / "run", small.small_paella(**EVERY))
    for step in (2, 4, 6):
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(map(metrics_line, ROWS)))
    return folder


def lost(folder):
    return [found.what for found in verify_run(folder) if found[:2] == (MISSING, "checkpoints")]


def test_a_line_without_its_check_is_damaged_where_digests_are(run):
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    lines[1] = json.dumps({"step": 2, "loss": 0.001}) + "\n"
    file.write_text("".join(lines))
    rows, damaged = scan_metrics(file)
    assert damaged == [2] and [row["step"] for row in rows] == [1, 3, 4, 5, 6, 7]
    assert ("damaged", "metrics.jsonl", "line 2") in verify_run(run)


def test_the_lines_of_older_folders_are_kept_and_get_checks(run):
    file = run / "metrics.jsonl"
    torn = b'{"step": 8, "lo\xff'
    old = "".join(json.dumps(row) + "\n" for row in ROWS)
    (run / "digests.json").unlink()
    file.write_bytes(old.encode() + torn)
    assert scan_metrics(file) == (ROWS, [8])
    prepare_workdir(run, small.small_paella(**EVERY))  # as the next training call does
    assert (run / "digests.json").is_file() and scan_metrics(file) == (ROWS, [8])
    assert file.read_bytes() == "".join(map(metrics_line, ROWS)).encode() + torn


def test_metrics_tell_of_checkpoints_that_are_gone(run):
    assert lost(run) == []
    shutil.rmtree(run / "checkpoints" / "6")
    assert lost(run) == []  # it may not have been finished
    shutil.rmtree(run / "checkpoints" / "4")
    told = ["the newest is of step 2, metrics.jsonl tells that 4 was saved"]
    assert lost(run) == told
    shutil.rmtree(run / "checkpoints")
    assert lost(run) == [told[0].replace("step 2", "step 0")]


def test_timing_tells_of_the_last_checkpoint(run):
    write_noted(run, "timing.json", json.dumps([{"steps": 4}, {"steps": 6}]))
    assert lost(run) == []
    shutil.rmtree(run / "checkpoints" / "6")
    assert lost(run) == ["the newest is of step 4, timing.json tells that 6 was saved"]
