"""`benchmark` without room in memory, with a program from the cache, and where profiles go."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from test_speed import config_of

from paella_jax import benchmark
from paella_jax.config import CheckpointError
from paella_jax.speed import run
from paella_jax.speed.case import Case, measure
from paella_jax.speed.peers import Peer
from paella_jax.speed.plan import Setting
from paella_jax.speed.table import as_table, of_files

GIVEN = (jax.ShapeDtypeStruct((64, 64), np.float32),)
PRODUCT = Case("a product", jax.jit(lambda a: a @ a), GIVEN, 4)
SETTING = Setting("paella:tiny", ("seed=1", "data.folder=/a b"), config_of(), ("sample",), (4,))


@pytest.fixture(autouse=True)
def known_ceilings(monkeypatch):
    monkeypatch.setattr(run, "matmul_ceiling", lambda dtype: 1e12)
    monkeypatch.setattr(run, "memory_ceiling", lambda: 1e10)


def no_room(*_):
    raise MemoryError("Unable to allocate 391. GiB for an array\nand so on")


def rows_of(settings, how):
    report = {"rows": [], "memory_gigabytes_per_second": 10.0}
    run._measure_into([], report, settings, how)
    return report["rows"]


def test_the_host_s_memory_may_not_suffice(monkeypatch):
    """In arrays that are made up, in making a program, and in a peer: the next one is measured."""
    too_large = replace(PRODUCT, name="too large", function=SimpleNamespace(lower=no_room))
    monkeypatch.setattr(run, "sampling_cases", lambda *_: [too_large, PRODUCT])
    monkeypatch.setattr(run, "forward_case", no_room)

    def unlucky(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    peers = [Peer("torch", unlucky), Peer("other", no_room)]
    setting = SETTING._replace(work=("forward", "sample"))
    unmade, bad, good = rows_of([setting], run.How(0.0, peers=peers))
    told = "out of the host's memory: Unable to allocate 391. GiB for an array"
    assert (unmade["work"], unmade["images"], unmade["error"]) == ("forward", 4, told)
    assert (bad["work"], bad["error"]) == ("too large", told)
    assert good["calls"] >= 3 and set(good["peer_errors"]) == {"torch", "other"}


def test_a_profile_that_has_no_room_leaves_the_row(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "sampling_cases", lambda *_: [PRODUCT])
    monkeypatch.setattr(run, "_profile", no_room)
    (row,) = rows_of([SETTING], run.How(0.0, trace=str(tmp_path)))
    assert row["calls"] >= 3 and row["trace_error"].startswith("out of the host's memory")


def test_every_program_has_a_profile_of_its_own(monkeypatch, tmp_path):
    """Also where the same work is done on other batches or with swept fields."""
    cases = lambda config, images: [replace(PRODUCT, images=images)]
    monkeypatch.setattr(run, "sampling_cases", cases)
    folders = []
    monkeypatch.setattr(run, "_profile", lambda case, folder: folders.append(folder) or [])
    first, second = SETTING._replace(batches=(1, 4)), SETTING._replace(swept=("seed=2",))
    rows_of([first, second], run.How(0.0, trace=str(tmp_path / "a: b")))
    inside = [str(folder.relative_to(tmp_path / "a: b")) for folder in folders]
    assert inside == [
        "paella_tiny/seed=1/data.folder=_a_b/a_product_of_1",
        "paella_tiny/seed=1/data.folder=_a_b/a_product_of_4",
        "paella_tiny/seed=2/a_product_of_4",
    ]


def test_a_program_that_was_compiled_before_is_told(tmp_path):
    """Its seconds are of reading it: they say nothing about compiling."""
    from jax._src import compilation_cache

    settings = {"jax_compilation_cache_dir": str(tmp_path), "jax_enable_compilation_cache": True,
                "jax_persistent_cache_min_compile_time_secs": 0.0,
                "jax_persistent_cache_min_entry_size_bytes": 0}  # fmt: skip
    before = {name: getattr(jax.config, name) for name in settings}
    made = lambda: measure(replace(PRODUCT, function=jax.jit(lambda a: a @ a - 3)), 0.0)
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        first = made()
        jax.clear_caches()
        second = made()
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
    assert "from_cache" not in first and second["from_cache"]
    about = {"preset": "a", "swept": ""}
    shown = as_table([about | first, about | second]).splitlines()
    assert "from the cache" not in shown[2] and "from the cache" in shown[3]


def test_files_are_shown_again(tmp_path, capsys, monkeypatch):
    row = {"preset": "p", "swept": "", "work": "forward", "images": 2, "milliseconds": 1.5}
    report = {"device": "1 x cpu", "jax": "1", "rows": [row]}
    (tmp_path / "small.json").write_text(json.dumps(report))
    monkeypatch.setattr("sys.argv", ["benchmark", "--table", str(tmp_path / "small.json")])
    assert benchmark.main() == 0
    shown = capsys.readouterr().out
    assert shown.startswith("## small") and '"device": "1 x cpu"' in shown and "| 1.5 |" in shown
    (tmp_path / "small.json").write_text("{}")
    with pytest.raises(CheckpointError, match="it lacks device"):
        of_files([tmp_path / "small.json"])
