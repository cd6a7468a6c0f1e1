"""Where a run's seconds go: spans of a call, calls that were killed, what the report says."""

from __future__ import annotations

import json
import time

import jax
import numpy as np
import pytest
from fault_works import training, use_mean_method

from paella_jax.config import load_config
from paella_jax.registry import FAMILIES, build_method
from paella_jax.runs.checked_lines import metrics_line
from paella_jax.runs.digests import write_noted
from paella_jax.runs.folder import METRICS_FILE, prepare_workdir, read_metrics
from paella_jax.training.loop import _Run, train
from paella_jax.training.timing import (
    FILE,
    Clock,
    account,
    describe_account,
    goodput,
    read_calls,
    record_killed,
    record_seconds,
)


def test_a_clock_says_what_seconds_go_into(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    clock = Clock([{"seconds": 10.0, "update_seconds": 4.0, "lost_seconds": 1.0}])
    passes(5.0)
    clock.started(compile_seconds=3.0)
    passes(2.0)
    for name, seconds in (("save", 1.0), ("preview", 0.5), ("save", 0.5)):
        with clock.spending(name):
            passes(seconds)
    passes(1.0)
    assert clock.entry() == {
        "seconds": 10.0, "startup_seconds": 2.0, "compile_seconds": 3.0, "save_seconds": 1.5,
        "preview_seconds": 0.5, "data_seconds": 0.0, "update_seconds": 3.0,
    }  # fmt: skip
    assert clock.told() == {"seconds": 10.0, "goodput": (4.0 - 1.0 + 3.0) / 20.0}


class Running:
    """An update that is done after some seconds."""

    def __init__(self, seconds):
        self.seconds = seconds

    def block_until_ready(self):
        time.sleep(self.seconds)
        return self


@pytest.mark.parametrize(
    "update, loader, waited", [(0.0, 0.6, 0.6), (0.5, 0.7, 0.2), (0.9, 0.3, 0.0)]
)
def test_waiting_for_data_counts_from_the_end_of_the_update(update, loader, waited):
    def rows():
        time.sleep(loader)
        yield {"image": 1}

    clock = Clock()
    run = _Run(*[None] * 4, data=rows(), writer=None, progress=None, clock=clock, watchdog=None)
    assert run._next_batch({"loss": Running(update)} if update else None) == {"image": 1}
    assert clock.spent["data"] == pytest.approx(waited, abs=0.19)


def test_older_entries_and_none():
    assert goodput([]) == 0.0
    assert goodput([{"steps": 4, "seconds": 8.0, "compile_seconds": 2.0}]) == 0.75


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "mean", None)
    name = use_mean_method(tmp_path)
    run = tmp_path / "run"
    training(name).begin(run)
    return run, load_config(name)


def trained(folder, **fields):
    run, config = folder
    config = config.copy_and_resolve_references()
    config.update(fields)
    prepare_workdir(run, config)
    result = train(config, run, build_method(config, run))
    return result, record_seconds(run, result)


def test_a_call_that_was_killed_is_made_up_for(folder):
    """It got to step 5 in 8 s, of which 6 were updates; the newest save is of step 2."""
    run, _ = folder
    _, first = trained(folder, num_steps=2)
    assert first["steps"] == 2 and first["startup_seconds"] + first["compile_seconds"] > 0
    write_noted(run, FILE, json.dumps([first | {"seconds": 10.0, "update_seconds": 4.0}]))
    rows = read_metrics(run / METRICS_FILE)
    rows += [{"step": step, "loss": 1.0, "seconds": 8.0, "goodput": 10.0 / 18.0} for step in (3, 5)]
    (run / METRICS_FILE).write_text("".join(map(metrics_line, rows)))
    result, last = trained(folder, num_steps=6)
    calls = read_calls(run)
    assert [call["steps"] for call in calls] == [2, 2, 6] and result.spent["update_seconds"] > 0
    assert calls[1] == {
        "steps": 2, "seconds": 8.0, "update_seconds": 6.0, "lost_updates": 3, "lost_seconds": 6.0,
        "killed": True,
    }  # fmt: skip
    told = account(run)
    assert told["calls"] == 3 and told["lost_updates"] == 3 and told["lost_seconds"] == 6.0
    assert told["goodput"] == pytest.approx(
        (4.0 + last["update_seconds"]) / (18.0 + last["seconds"]), abs=1e-3
    )
    assert "3 calls" in describe_account(told) and "3 updates done again" in describe_account(told)
    newest = read_metrics(run / METRICS_FILE)[-2]  # the last is the preview's
    assert newest["step"] == 6 and 0.0 < newest["goodput"] < 1.0 and newest["seconds"] > 0.0
    record_killed(run, read_metrics(run / METRICS_FILE), 6)
    assert len(read_calls(run)) == 3, "nobody was killed since"


def test_a_part_of_the_lost_updates(tmp_path):
    """Of 8 updates in 4 s two are done again; older lines of metrics say nothing."""
    record_killed(tmp_path, [{"step": 8, "loss": 1.0}], 6)
    assert read_calls(tmp_path) == []
    record_killed(tmp_path, [{"step": 8, "seconds": 5.0, "goodput": 0.8}], 6)
    (call,) = read_calls(tmp_path)
    assert call["update_seconds"] == 4.0 and call["lost_seconds"] == 1.0
    assert account(tmp_path)["goodput"] == 0.6 and account(tmp_path / "absent") == {}


def test_the_mean_of_the_faults_is_learned(folder):
    """What tests/faults.py trains is a training: its loss falls, and it draws."""
    run, _ = folder
    result, _ = trained(folder)
    losses = [row["loss"] for row in read_metrics(run / METRICS_FILE) if "loss" in row]
    assert losses[-1] < losses[0] and len(losses) == 6
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result.state.params))
    assert (run / "samples" / "step_0000006.png").is_file()
