"""That nothing grows in long runs: short ones here, 20 000 updates and 1000 calls by command."""

from __future__ import annotations

import pytest
from long_runs import Held, call_long, grown, train_long

from paella_jax.training import pulse


def test_what_counts_as_growing():
    flat = [Held(at, 400.0 + at % 3, 7, 8) for at in range(10)]
    assert grown(flat) == ""
    assert grown([Held(at, 400.0 + 100.0 * (at < 3), 7, 8) for at in range(10)]) == ""
    leak = [one._replace(memory=400.0 + 20 * one.at) for one in flat]
    assert grown(leak) == "memory from 500 to 580 MiB"
    busy = [one._replace(threads=7 + 4 * (one.at % 2), files=8 + one.at % 3) for one in flat]
    assert grown(busy) == "", "saves come and go"
    leak = [one._replace(threads=7 + one.at, files=8 + 2 * one.at) for one in flat]
    assert grown(leak) == "threads from 7 to 12, files from 8 to 18"


@pytest.mark.slow
def test_short_runs_hold_what_they_held(tmp_path, monkeypatch):
    """Programs of 9 sizes and several numbers of images, of which few are kept."""
    monkeypatch.setattr(pulse, "MOST", 4)
    seen = train_long(tmp_path / "updates", 400), call_long(tmp_path / "calls", 40)
    assert all(len(one) == 10 for one in seen)
    assert [grown(one) for one in seen] == ["", ""]
