"""`compile --target`: machines that are not there, and what is read from a compiled program."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter

import pytest
import small

from paella_jax.compile import targets
from paella_jax.compile.account import estimate, too_large, verdict
from paella_jax.compile.hlo import (
    bytes_moved,
    collectives_of,
    group_size,
    group_span,
    largest_arrays,
    read_program,
    size_of,
)
from paella_jax.compile.preset import compile_preset, possible_meshes
from paella_jax.compile.targets import TargetError, check_installed, parse_target
from paella_jax.training.sharding import MeshError

MIB, GIB = 2**20, 2**30


@pytest.mark.parametrize(
    ("text", "count"),
    [("tpu:v5e:4x4", 16), ("tpu:v6e:1x1", 1), ("tpu:v4:4x4x4", 64), ("tpu:v5p:2x2x1", 4),
     ("gpu:h100:8", 8), ("gpu:a100:64", 64), ("gpu:h100:3", 3), ("cpu:8", 8)],
)  # fmt: skip
def test_targets(text, count):
    target = parse_target(text)
    assert (target.count, target.platform) == (count, text[:3])
    assert (target.chip is None) == (text == "cpu:8")


@pytest.mark.parametrize(
    "text",
    ["tpu:v5e:3x3", "tpu:v5e:4x4x4", "tpu:v4:4x4", "tpu:v4:3x4x4", "tpu:v9:4x4", "gpu:h100:12",
     "gpu:h100:0", "gpu:h100", "cpu:0", "cpu:-1", "cpu", "", "h100:8", "tpu:v5e:4×4"],
)  # fmt: skip
def test_other_targets_are_refused_with_those_that_exist(text):
    with pytest.raises(TargetError, match=r"no target .*tpu:v5e:4x4.*gpu:h100:8.*cpu:8"):
        parse_target(text)


def test_a_missing_compiler_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(targets.PLAN_MODULES, "tpu", "no_such_module")
    with pytest.raises(TargetError, match=r"needs no_such_module.*paella_jax\[plan\]"):
        check_installed(parse_target("tpu:v5e:2x4"))
    check_installed(parse_target("cpu:8"))


@pytest.mark.devices(8)
def test_a_mesh_that_cannot_be_is_refused_with_those_that_can():
    assert possible_meshes(8, 8)[:3] == [(1, 8, 1), (1, 4, 2), (1, 2, 4)]
    assert all(d * f * t == 16 and 24 % (d * f) == 0 for d, f, t in possible_meshes(16, 24))
    assert possible_meshes(8, 3) == [(1, 1, 8)]
    with pytest.raises(MeshError, match=r"does not fit 8 .*possible .*: \(1,8,1\), \(1,4,2\)"):
        compile_preset(small.small_paella(mesh__data=3), parse_target("cpu:8"))


def test_verdict():
    assert verdict(8 * 1024, 16 * 1024) == "fits: 50% of the memory, 8.0 GiB left"
    assert verdict(20 * 1024, 16 * 1024).startswith("does not fit: 4.0 GiB too much (125%")


def test_a_tpu_compiler_s_refusal_is_read():
    message = """RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. \
Used 18.50G of 15.75G hbm.
  1. Size: 2.00G
     Operator: op_name="jit(train_step)/dot_general" source_file="a.py"
"""
    told = too_large(message)
    assert (told["peak_mib"], told["capacity_mib"]) == (round(18.5 * 1024), round(15.75 * 1024))
    assert told["largest_arrays"] == ["2.00G jit(train_step)/dot_general"]
    assert too_large("INTERNAL: something else") is None


# As compilers for TPUs, GPUs and CPUs write: an all-gather that goes on in several fusions, the two
# halves of asynchronous ones, a reduce-scatter inside a fusion, loops with and without their count.
PROGRAM = """HloModule jit_step, entry_computation_layout={()->f32[]}

%fused_gather.1 (param_0.1: bf16[4,8]) -> (bf16[4,8], bf16[32,8]) {
  %param_0.1 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[32,8]{1,0} all-gather(%param_0.1), channel_id=7, replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, dimensions={0}, frontend_attributes={chain_id="2"}
}

%fused_gather.2 (param_0.2: bf16[4,8]) -> bf16[32,8] {
  %param_0.2 = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[32,8]{1,0} all-gather(%param_0.2), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}, frontend_attributes={chain_id="2"}
}

%all-reduce-scatter.3 (param_0.3: f32[32,8]) -> f32[4,8] {
  %param_0.3 = f32[32,8]{1,0} parameter(0)
  %all-reduce.3 = f32[32,8]{1,0} all-reduce(%param_0.3), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %slice.3 = f32[4,8]{1,0} dynamic-slice(%all-reduce.3), dynamic_slice_sizes={4,8}
}

%all-reduce-scatter.4 (param_0.5: f32[32,8]) -> f32[4,8] {
  %param_0.5 = f32[32,8]{1,0} parameter(0)
  %all-reduce.4 = f32[32,8]{1,0} all-reduce(%param_0.5), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %slice.4 = f32[4,8]{1,0} dynamic-slice(%all-reduce.4), dynamic_slice_sizes={4,8}
}

%cut (param_0.4: f32[64,8], param_1.4: s32[]) -> f32[1,8] {
  %param_0.4 = f32[64,8]{1,0} parameter(0)
  %param_1.4 = s32[] parameter(1)
  ROOT %piece = f32[1,8]{1,0} dynamic-slice(%param_0.4, %param_1.4, %param_1.4), dynamic_slice_sizes={1,8}
}

%put (param_0.6: f32[64,8], param_1.6: f32[1,8], param_2.6: s32[]) -> f32[64,8] {
  %param_0.6 = f32[64,8]{1,0} parameter(0)
  %param_1.6 = f32[1,8]{1,0} parameter(1)
  %param_2.6 = s32[] parameter(2)
  ROOT %changed = f32[64,8]{1,0} dynamic-update-slice(%param_0.6, %param_1.6, %param_2.6, %param_2.6)
}

%body (state: (s32[], f32[64,8])) -> (s32[], f32[64,8]) {
  %state = (s32[], f32[64,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %all = f32[64,8]{1,0} get-tuple-element(%state), index=1
  %one = f32[1,8]{1,0} fusion(%all, %i), kind=kLoop, calls=%cut
  %kept = f32[64,8]{1,0} fusion(%all, %one, %i), kind=kLoop, calls=%put
  %reduced = f32[1,8]{1,0} all-reduce(%one), channel_id=11, replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %next = (s32[], f32[64,8]{1,0}) tuple(%i, %kept)
}

%condition (state.2: (s32[], f32[64,8])) -> pred[] {
  %state.2 = (s32[], f32[64,8]{1,0}) parameter(0)
  %limit = s32[] constant(64)
  ROOT %less = pred[] compare(%state.2, %limit), direction=LT
}

ENTRY %main (p: bf16[4,8], q: f32[32,8], r: f32[64,8]) -> f32[] {
  %p = bf16[4,8]{1,0} parameter(0)
  %q = f32[32,8]{1,0} parameter(1)
  %r = f32[64,8]{1,0} parameter(2)
  %begun = bf16[32,8]{1,0} fusion(%p), kind=kCustom, calls=%fused_gather.1
  %ended = bf16[32,8]{1,0:S(1)} fusion(%p), kind=kCustom, calls=%fused_gather.2
  %scattered = f32[4,8]{1,0} fusion(%q), kind=kCustom, calls=%all-reduce-scatter.3
  %scattered.2 = f32[4,8]{1,0} fusion(%q), kind=kCustom, calls=%all-reduce-scatter.4
  %start = ((bf16[4,8]{1,0}), (bf16[32,8]{1,0})) all-gather-start(%p), channel_id=12, replica_groups=[1,8]<=[8]
  %done = bf16[32,8]{1,0} all-gather-done(%start)
  %begin = (s32[], f32[64,8]{1,0}) tuple(%zero, %r)
  %loop = (s32[], f32[64,8]{1,0}) while(%begin), condition=%condition, body=%body, metadata={op_name="jit(step)/while"}
  %again = (s32[], f32[64,8]{1,0}) while(%loop), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  ROOT %out = f32[] constant(0)
}
"""  # noqa: E501


def test_asynchronous_collectives_count_once_and_loops_as_often_as_they_run():
    exchanges = collectives_of(read_program(PROGRAM), 8)
    found = Counter((c.kind, c.bytes, c.group, c.runs, c.dtype) for c in exchanges)
    assert found == {
        # One goes on in two fusions, the other begins and ends.
        ("all-gather", 32 * 8 * 2, 8, 1, "bf16"): 2,
        ("reduce-scatter", 32 * 8 * 4, 4, 1, "f32"): 2,  # both of one channel
        ("all-reduce", 8 * 4, 2, 64 + 6, "f32"): 1,
    }
    sent = {c.kind: c.sent for c in exchanges}
    assert sent["all-gather"] == 7 / 8 * 32 * 8 * 2
    assert sent["all-reduce"] == 2 * 1 / 2 * 8 * 4 * 70


def test_bytes_moved_leave_out_views_vector_memory_and_what_is_cut_away():
    program = read_program(PROGRAM)
    gathers = (64 + 512) + (64 + 0) + (64 + 64 + 512)  # the second result is on the chip
    scatter = 2 * (1024 + 128)
    # A row of the 64 and its index in, a row out; the row and its index in, in place; all-reduce.
    each = (32 + 4 + 32) + (32 + 4 + 32) + (32 + 32)
    assert bytes_moved(program) == gathers + scatter + 70 * each
    kind, size, _ = next(largest_arrays(program, 1))
    assert (kind, size) == ("f32[64,8]", 2048)


def test_sizes_and_groups():
    assert size_of("(f32[2,3]{1,0:T(8,128)}, (bf16[4], pred[]), token[])") == 24 + 8 + 1
    assert size_of("(f32[2]{0:S(1)}, s4[6])", on_chip=False) == 3
    assert group_size("replica_groups={{0,2},{1,3}}", 4) == 2
    assert group_size("replica_groups=[2,16]<=[4,8]T(1,0)", 32) == 16
    assert group_size("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", 8) == 8
    assert group_size("to_apply=%add", 8) == 8
    assert group_span("replica_groups={{0,8},{1,9}}", 16) == 9
    assert group_span("replica_groups=[2,8]<=[16]", 16) == 8
    assert group_span("replica_groups=[8,2]<=[2,8]T(1,0)", 16) == 16
    assert group_span("replica_groups=mesh['a'=8,'b'=2,'c'=4] {'b'}", 64) == 8
    assert group_span("replica_groups=mesh['a'=8,'b'=8] {'a'}", 64) == 64


def test_the_estimate_is_the_roofline_and_never_above_what_programs_reach():
    target = parse_target("gpu:h100:64")
    busy = estimate(target, flops=989e12, moved=3.352e12 / 2, exchanges=[], images=640)
    assert busy["seconds_at_peak"] == {"products": 1.0, "memory": 0.5, "links": 0.0}
    assert (busy["bound_by"], busy["seconds_bound"]) == ("products", 1.0)
    assert busy["seconds_estimated"] == 2.5 and busy["images_per_second"] == 256
    (exchange,) = (c for c in collectives_of(read_program(PROGRAM), 64) if c.kind == "all-reduce")
    inside = estimate(target, 0.0, 0.0, [exchange], 64)
    assert inside["seconds_bound"] == pytest.approx(exchange.sent / 450e9, rel=1e-2)


PLANS = [("tpu:v5e:2x4", "libtpu"), ("gpu:h100:8", "jax_plugins.xla_cuda13")]


@pytest.mark.slow
@pytest.mark.parametrize(("text", "module"), PLANS)
def test_a_real_target(text, module, monkeypatch):
    """With `pip install 'paella_jax[plan]'`; half a minute each."""
    if any(importlib.util.find_spec(m) is None for m in (module.partition(".")[0], module)):
        pytest.skip(f"{module} is not installed")
    for name in ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "TPU_ACCELERATOR_TYPE"):
        monkeypatch.setenv(name, os.environ.get(name, "cpu" if name == "JAX_PLATFORMS" else "1"))
    target = parse_target(text)
    targets.set_environment(target)
    config = small.small_paella(mesh__fsdp=8, mesh__data=1, precision="bfloat16")
    report = compile_preset(config, target)
    assert report["verdict"].startswith("fits") and report["estimate"]["seconds_bound"] > 0
    assert 0 < report["arguments_mib"] < report["capacity_mib"] * 0.01
