"""`benchmark`: what can be asked for, what a row tells, and what a GPU's sampler repeats."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from paella_jax.compile.programs import token_sampling, train_program
from paella_jax.compile.targets import PLAN_MODULES
from paella_jax.config import CheckpointError, ConfigError
from paella_jax.evaluation.flops import count_flops
from paella_jax.speed import run, sampling
from paella_jax.speed.arrays import filled
from paella_jax.speed.case import Case, measure
from paella_jax.speed.peers import Peer, call_of, load_peer
from paella_jax.speed.plan import Setting, check_asked
from paella_jax.speed.trace import longest, profiled
from paella_jax.speed.training import of_dropped_conditions
from paella_jax.training.sharding import make_mesh

NARROW = {"model__widths": "(16,16)", "model__depths": "(1,1)", "model__num_heads": "(0,2)",
          "model__patterns": "('CT','CTA')", "model__cond_width": 16, "model__token_width": 8,
          "text__width": 16, "text__num_layers": 1, "text__hidden_dim": 16, "text__num_heads": 2,
          "sampler__num_steps": 3, "batch_size": 2}  # fmt: skip


def config_of(**fields):
    return small.config_of("paella:tiny", **NARROW | fields)


def test_what_is_asked_for_is_every_combination():
    configs = {"paella:tiny": config_of(), "vqgan:tiny": small.config_of("vqgan:tiny")}
    asked = check_asked(configs, "train,sample", "1,4", ["seed=1,2", "config.batch_size=2,4"])
    assert len(asked) == 8 and asked[0].batches == (1, 4)
    assert [s.work for s in asked[::4]] == [("train", "sample"), ("train",)]
    assert asked[1].swept == ("seed=1", "batch_size=4") and asked[1].config.batch_size == 4
    (told,) = check_asked({"a": config_of()}, "sample", "1", [], ["--config.seed=3"])
    assert told.swept == ("seed=3",)  # so that a file's rows tell what they are of
    deep = check_asked({"paella:tiny": config_of()}, "sample", "1", ["model.depths=(1,1);(1,2)"])
    assert [setting.config.model.depths for setting in deep] == [(1, 1), (1, 2)]


@pytest.mark.parametrize(
    ("work", "batch", "sweep", "word"),
    [("walk", "1", [], "must be of forward, sample"), ("", "1", [], "must be of forward"),
     ("sample", "0", [], "whole numbers from 1"), ("sample", "1,x", [], "whole numbers from 1"),
     ("sample", "1", ["seed"], "must be FIELD=A,B"), ("sample", "1", ["sead=1"], "sead"),
     ("sample", "1", ["batch_size=many"], "batch_size"),
     ("sample", "1", ["model.attention=xla,flash"], "'flash' needs a TPU")],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_at_once(work, batch, sweep, word):
    with pytest.raises(ConfigError, match=word):
        check_asked({"paella:tiny": config_of()}, work, batch, sweep)


def test_nothing_to_measure_is_an_error():
    with pytest.raises(ConfigError, match="none of the presets has that"):
        check_asked({"vqgan:tiny": small.config_of("vqgan:tiny")}, "sample", "1", [])


def test_arrays_of_all_kinds():
    shapes = {
        "weights": jax.ShapeDtypeStruct((40, 50), jnp.bfloat16),
        "bytes": jax.ShapeDtypeStruct((3, 300), np.uint8),
        "ids": jax.ShapeDtypeStruct((7,), np.int32),
        "mask": jax.ShapeDtypeStruct((2, 5), bool),
        "keys": jax.ShapeDtypeStruct((2,), jax.random.key(0).dtype),
        "given": np.float32(3.0),
    }
    made = filled(shapes, 1)
    assert {n: x.dtype for n, x in made.items()} == {n: x.dtype for n, x in shapes.items()}
    assert 0.018 < float(made["weights"].astype(jnp.float32).std()) < 0.022
    assert float(made["given"]) == 3.0 and not made["ids"].any() and made["mask"].all()
    assert len(np.unique(made["bytes"])) == 256


def test_rows_are_written_as_they_are_measured(tmp_path, monkeypatch, capsys):
    """A program that needs too much memory is a row of its own, and the next one is measured."""
    product = jax.jit(lambda a: a @ a)
    given = (jax.ShapeDtypeStruct((64, 64), np.float32),)

    def refuse(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room for 1 GiB\nand so on")

    cases = [
        Case("too large", SimpleNamespace(lower=refuse), given, 4),
        Case("a product", product, given, 4),
    ]
    monkeypatch.setattr(run, "sampling_cases", lambda config, batch: cases)
    monkeypatch.setattr(run, "matmul_ceiling", lambda dtype: 1e12)
    monkeypatch.setattr(run, "memory_ceiling", lambda: 1e10)
    setting = Setting("paella:tiny", ("seed=1",), config_of(), ("sample",), (4,))

    def too_large():
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    peers = [Peer("torch", lambda *_: too_large), Peer("other", lambda *_: lambda: None)]
    how = run.How(0.0, str(tmp_path / "speed.json"), peers=peers)
    run.measure_all([setting], how)
    report = json.loads((tmp_path / "speed.json").read_text())
    bad, good = report["rows"]
    assert bad["error"] == "out of memory: RESOURCE_EXHAUSTED: no room for 1 GiB"
    assert good["teraflops"] == round(2 * 64**3 / 1e12, 4) and good["calls"] >= 3
    assert good["swept"] == "seed=1" and 0 <= good["share_of_products"] < 1
    assert good["peer_errors"] == {"torch": "out of memory"}
    assert list(good["peer_times_as_long"]) == ["other"]
    shown = capsys.readouterr().out
    assert "torch out of memory |" in shown
    assert "| preset | with | work |" in shown and "out of memory" in shown
    # A call that was stopped goes on: what is there is shown, not measured again.
    cases.append(Case("another", product, given, 2))
    run.measure_all([setting], how)
    again = json.loads((tmp_path / "speed.json").read_text())
    assert again["rows"][:2] == report["rows"] and len(again["rows"]) == 3

    def break_down(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    cases.append(Case("broken", SimpleNamespace(lower=break_down), given, 1))
    capsys.readouterr()
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        run.measure_all([setting], how)
    assert "| another |" in capsys.readouterr().out  # what was measured before is told
    # With other fields they are other rows; of another machine, or no report, the file stays.
    cases.pop()
    other = setting._replace(swept=("seed=1", "precision=bfloat16"))
    run.measure_all([other], how)
    kept = (tmp_path / "speed.json").read_text()
    assert len(json.loads(kept)["rows"]) == 6
    monkeypatch.setattr(run, "_device", lambda: "a faster one")
    with pytest.raises(ConfigError, match=r"is of .* x cpu .*, this is a faster one"):
        run.measure_all([setting], how)
    assert (tmp_path / "speed.json").read_text() == kept
    (tmp_path / "speed.json").write_text("# notes")
    with pytest.raises(CheckpointError, match="is damaged"):
        run.measure_all([setting], how)


@pytest.mark.devices(4)
def test_a_share_is_that_of_every_device(monkeypatch):
    """A train step's arithmetic is that of a mesh, the ceiling that of one device."""
    case = Case("train step", None, (), 4)
    told = {"teraflops_per_second": 2.0, "moved_mib": 0, "milliseconds": 1.0}
    monkeypatch.setattr(run, "measure", lambda *_: dict(told))
    monkeypatch.setattr(run, "_ceilings", lambda *_: {"products": 1.0, "memory": 1.0})
    monkeypatch.setattr(run, "train_case", lambda *_: case)
    monkeypatch.setattr(run, "sampling_cases", lambda *_: [replace(case, name="sample")])
    setting = Setting("paella:tiny", (), config_of(), ("sample", "train"), (4,))
    rows = []
    run._measure_into(rows, {"rows": []}, [setting], run.How(0.0))
    assert [row["share_of_products"] for row in rows] == [2.0, 0.5]


def test_a_state_goes_on_from_call_to_call():
    """It is given away in each, as a train state is: the next call needs what came out."""
    step = jax.jit(lambda state, x: (state + x, x.sum()), donate_argnums=0)
    given = (jax.ShapeDtypeStruct((8,), np.float32),) * 2
    assert measure(Case("a step", step, given, 1, None, True), 0.0)["calls"] >= 3


def test_peers_are_timed_in_the_same_rounds(tmp_path):
    """And only for the work that they have."""
    file = tmp_path / "slow.py"
    file.write_text(
        "import time\n"
        "def make(config, work, images):\n"
        "    return (lambda: time.sleep(0.01)) if work == 'a product' else None\n"
    )
    peer = load_peer(str(file))
    assert call_of(peer, config_of(), "another", 1) is None
    call = call_of(peer, config_of(), "a product", 1)
    given = (jax.ShapeDtypeStruct((8, 8), np.float32),)
    row = measure(Case("a product", jax.jit(lambda a: a @ a), given, 1), 0.0, {peer.name: call})
    assert row["peer_milliseconds"]["slow"] >= 10 and row["peer_times_as_long"]["slow"] > 1
    for text, word in (("x = 1", "has no make"), ("import no_such_package", "not installed")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=word):
            load_peer(str(file))
    with pytest.raises(ConfigError, match="is not there"):
        load_peer(str(tmp_path / "other.py"))


def test_programs_behind_a_call():
    """Texts, steps and decoder are measured; the steps do the arithmetic of all predictions."""
    cases = sampling.token_sampling_cases(config_of(), 2)
    assert [case.name for case in cases] == ["text encoders", "3 guided steps", "decode tokens"]
    row = measure(cases[1], 0.0)
    one = sampling.token_sampling_cases(config_of(sampler__num_steps=1), 2)[1]
    assert row["images"] == 2 and row["milliseconds"] > 0
    count = lambda case: count_flops(case.counted[0], *case.counted[1])
    assert 2.5 * count(one) < count(cases[1]) < 3 * count(one)  # what is prepared counts once


@pytest.mark.parametrize("preset", ["paella:1b", "muse:amused_256"])
def test_released_presets_ask_their_encoders(preset):
    """CLIP's texts too, whose tokenizer is not there."""
    made = token_sampling(small.config_of(preset), 3)
    (inputs,) = made.request.conditions
    assert inputs.clip_ids.shape == (3, 77) and made.form.grid in ((64, 64), (16, 16))


def test_what_nobody_sees_is_not_counted():
    """Nine of ten go through no tower of ViT-H/14: 0.3 TFLOP an image, 0.05 a text (speed.md 3)."""
    config = small.config_of("paella:1b", batch_size=4)
    towers = 0.3348e12 + 0.0464e12
    assert of_dropped_conditions(config) / 4 == pytest.approx(0.9 * towers, rel=5e-3)
    assert of_dropped_conditions(config_of()) == 0
    assert of_dropped_conditions(small.config_of("stage_b:v2")) == 0


def test_encoded_data_leaves_the_frozen_networks_out():
    with jax.set_mesh(mesh := make_mesh(config_of().mesh)):
        whole, stored = (train_program(config_of(), mesh, encoded) for encoded in (False, True))
    frozen, batch = stored.arguments[1:3]
    assert "vqgan" in whole.arguments[1] and "vqgan" not in frozen
    assert set(batch) == {"tokens", "text_ids", "text_mask"}
    assert batch["tokens"].shape == (2, 8, 8)
    with pytest.raises(ConfigError, match="encoded data is for methods"):
        train_program(small.config_of("vqgan:tiny"), mesh, True)


def test_a_profile_says_what_took_longest(tmp_path):
    function = jax.jit(lambda a: jnp.sin(a @ a) @ a)
    a = jnp.ones((512, 512))
    function(a)
    shares = profiled(lambda: function(a), tmp_path)
    assert shares and 0 < sum(share.share for share in shares) <= 1.001
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
    event = lambda name, ns: SimpleNamespace(name=name, duration_ns=ns)
    line = lambda name, *events: SimpleNamespace(name=name, events=events)
    planes = [
        SimpleNamespace(name="/host:CPU", lines=[line("python", event("wait", 9e9))]),
        SimpleNamespace(
            name="/device:GPU:0",
            lines=[
                line("Steps", event("all", 9e9)),
                line("Stream #1", event("fusion.1", 3e6), event("fusion.2", 1e6)),
                line("Stream #2", event("gemm", 12e6)),
            ],
        ),
    ]  # fmt: skip
    first, second = longest(SimpleNamespace(planes=planes))
    assert first == ("gemm", 12.0, 1, 0.75) and second == ("fusion", 4.0, 2, 0.25)


HLO = """
import sys
from paella_jax.compile import targets
target = targets.parse_target("gpu:h100:1")
targets.set_environment(target)
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from paella_jax.compile.preset import OPTIONS
from paella_jax.config import load_config
from paella_jax.speed.sampling import token_sampling_cases
from paella_jax.training.sharding import make_mesh
mesh = make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}), targets.devices_of(target))
whole = NamedSharding(mesh, PartitionSpec())
case = token_sampling_cases(load_config("paella:tiny", sys.argv[1:]), 2)[1]
given = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=whole), case.arguments
)
print(case.function.lower(*given).compile(OPTIONS["gpu"]).as_text())
"""


def inside_of_steps(text: str) -> list[str]:
    """The lines of everything that the sampler's own loop of a compiled program runs."""
    computations: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            name = head[1]
            computations[name] = []
        elif name:
            computations[name].append(line)
    called = r"(?:body|condition|calls)=%?([\w.\-]+)"
    steps = r'body=%?([\w.\-]+).*op_name="jit\(advance_request\)/while"'
    reached = set(re.findall(steps, text))
    assert len(reached) == 1
    while True:
        more = {n for r in reached for line in computations[r] for n in re.findall(called, line)}
        if more <= reached:
            return [line for r in reached for line in computations[r]]
        reached |= more


def test_a_gpu_s_sampler_repeats_no_product_of_the_text_and_no_rounding_of_weights():
    """Read from the program that is compiled for an H100, which needs the `plan` extra."""
    pytest.importorskip(
        PLAN_MODULES["gpu"].partition(".")[0], reason="pip install paella_jax[plan]"
    )
    pytest.importorskip(PLAN_MODULES["gpu"])
    fields = [f"{n.replace('__', '.')}={v}" for n, v in NARROW.items() if n != "model__depths"]
    command = [sys.executable, "-c", HLO, *fields, "model.depths=(1,3)", "precision=bfloat16"]
    for loop in ("False", "True"):
        text = subprocess.run(
            [*command, f"model.loop={loop}"], capture_output=True, text=True, check=True
        ).stdout
        lines = inside_of_steps(text)
        named = "\n".join(lines)
        assert "kv_mapper" in text and "mlp/expand" in named
        assert "kv_mapper" not in named and "/conditioning/" not in named
        rounded = re.findall(r"bf16\[(\d+,\d+)\]\S* convert\(f32", named)
        assert not set(rounded) & {"16,64", "64,16", "16,48", "16,16", "64,32"}
