"""Lines of metrics that are gone, or another run's, where each line by itself is sound."""

from __future__ import annotations

import json

import pytest
import small
from test_digests import faults, state_of

from paella_jax.runs.checked_lines import metrics_line
from paella_jax.runs.checkpoint import Checkpointer
from paella_jax.runs.digests import note_files
from paella_jax.runs.folder import prepare_workdir
from paella_jax.runs.step_digests import write_step_digests
from paella_jax.training.metrics import MetricWriter

CONFIG = small.small_paella(log__every=2)
FILE = "metrics.jsonl"


def go_on(folder, start, end, rate=1.0):
    """Lines of metrics up to a step that is saved then."""
    with MetricWriter(folder, CONFIG, start) as writer:
        for step in range(start + 2, end + 1, 2):
            writer.write(step, {"loss": rate / step})
    checkpointer = Checkpointer(folder, None)
    checkpointer.save(end, state_of(end))
    checkpointer.close()
    note_files(folder)


def new_run(folder, rate=1.0):
    go_on(prepare_workdir(folder, CONFIG), 0, 8, rate)
    return folder


@pytest.fixture
def run(tmp_path):
    return new_run(tmp_path / "run")


@pytest.fixture
def older(run):
    """As a version left it whose checkpoints say nothing of metrics."""
    step = run / "checkpoints" / "8"
    note = json.loads((step / "note" / "metadata").read_text())
    del note["metrics"]
    (step / "note" / "metadata").write_text(json.dumps(note))
    write_step_digests(step, 8)
    return run


def keep(run, *numbers):
    """Leaves some of the lines, counted from 0."""
    lines = (run / FILE).read_text().splitlines(keepends=True)
    (run / FILE).write_text("".join(lines[number] for number in numbers))


def told(run):
    return [(found.kind, found.what) for found in faults(run) if found.name == FILE]


CHANGED = [("damaged", "lines are not those that were there when checkpoint 8 was saved")]


@pytest.mark.parametrize("kept", [(2, 3), (0, 3), (0, 1), ()])
def test_lines_that_were_there_at_the_newest_save_are_missed(run, kept):
    assert told(run) == []
    keep(run, *kept)
    assert told(run) == CHANGED


def test_another_runs_metrics_are_told(run, tmp_path):
    other = new_run(tmp_path / "other", rate=2.0)
    longer = metrics_line({"step": 10, "loss": 0.1})  # by its size it could be the run's own
    (run / FILE).write_text((other / FILE).read_text() + longer)
    assert told(run) == CHANGED


def test_lines_behind_the_save_are_free(run):
    """Of updates since then, and of the last preview."""
    with (run / FILE).open("a") as stream:
        stream.write(metrics_line({"step": 8, "accuracy": 0.5}))
        stream.write(metrics_line({"step": 10, "loss": 0.1}))
    assert told(run) == []


def test_a_run_that_went_on_without_lost_lines_is_sound_again(run):
    """It was told as it went on; the next save says what is there."""
    keep(run, 2, 3)
    go_on(run, 8, 12)
    assert told(run) == []
    keep(run, 0, 1, 2)
    assert told(run) == [(CHANGED[0][0], CHANGED[0][1].replace("8", "12"))]


@pytest.mark.parametrize("kept, what", [
    ((2, 3), "has no line of step 2, 4"),
    ((0, 3), "has no line of step 4, 6"),
    ((0, 1), "ends at step 4, the newest checkpoint is of step 8"),
])  # fmt: skip
def test_older_runs_must_have_a_line_of_each_multiple(older, kept, what):
    assert told(older) == []
    keep(older, *kept)
    assert told(older) == [("missing", what)]


def test_torn_lines_are_told_once(older):
    lines = (older / FILE).read_text().splitlines(keepends=True)
    (older / FILE).write_text("".join([lines[0], "{torn\n", lines[2], lines[3]]))
    assert told(older) == [("damaged", "line 2")]


def test_other_distances_of_older_runs_are_minded(older):
    """Where `log.every` was changed, multiples of both must be there."""
    row = {"step": 4, "changes": ["log.every: 4 -> 2"]}
    (older / "history.jsonl").write_text(metrics_line(row))
    keep(older, 1, 2, 3)
    assert told(older) == []
    keep(older, 1, 2)
    assert told(older) == [("missing", "has no line of step 4")]
