"""A disk that is full or read-only at each kind of place where works write, one after the other."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import small
from fault_events import READ_ONLY, End
from fault_works import all_files
from faults import failing_disks
from test_faults import stopped


@pytest.mark.parametrize(
    "works, least", [(("encoding", "votes"), 8), small.slow(("training", "comparison"), 24)]
)
def test_a_disk_that_fails_at_any_place_is_told_and_costs_nothing(works, least):
    """Full and read-only, once each at the first event of every place."""
    told = stopped("disks", *works)
    count = int(re.search(r"(\d+) failing disks, 0 deviations", told)[1])
    assert count >= least


def test_what_is_wrong_after_a_failing_disk_is_found(tmp_path, monkeypatch):
    """The check itself: a fault that nobody tells of, a traceback, another result."""
    ends = {"silent": End(0, "", ["vote"]), "told": End(1, "error: no room\n", ["vote"]),
            "traceback": End(1, "error: x\nTraceback", ["vote"])}  # fmt: skip
    work = SimpleNamespace(name="votes", begin=None, run=None, found=None)

    def after(first, found):
        answers = iter([ends[first], End(0, "", [])])
        monkeypatch.setattr("faults.start", lambda *_: next(answers))
        monkeypatch.setattr("faults.asked", lambda question, folder: found)
        return failing_disks(work, tmp_path, ends["told"], "all", [READ_ONLY])

    assert after("told", "all") == (1, [])
    assert "it was not told" in after("silent", "all")[1][0]
    assert "a traceback" in after("traceback", "all")[1][0]
    assert "is 'less', uninterrupted 'all'" in after("told", "less")[1][0]


def test_the_name_that_is_drawn_for_a_run_is_no_difference(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "digests.json").write_text(json.dumps({"run": name, "files": {}}))
    assert all_files(tmp_path / "a") == all_files(tmp_path / "b")
