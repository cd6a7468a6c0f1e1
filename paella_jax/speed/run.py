"""Measuring one setting after the other: lines as they come, a table and a file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.files.atomic import write_atomically
from paella_jax.files.kept import read_kept
from paella_jax.speed.case import NO_ROOM, Case, filled, lack_of_memory, measure
from paella_jax.speed.ceilings import matmul_ceiling, memory_ceiling
from paella_jax.speed.forward import forward_case
from paella_jax.speed.peers import Peer, call_of
from paella_jax.speed.plan import Setting
from paella_jax.speed.prior import prior_sampling_case
from paella_jax.speed.sampling import decoder_case, stage_sampling_cases, token_sampling_cases
from paella_jax.speed.table import KEY, as_table
from paella_jax.speed.tokenizer import tokenizer_cases
from paella_jax.speed.trace import profiled
from paella_jax.speed.training import encoding_case, train_case
from paella_jax.training.sharding import make_mesh

NO_MEMORY = ("out of memory", "can't allocate memory")  # torch's words on a GPU and on a CPU


class Group(NamedTuple):
    """Programs that are made together.

    Attributes:
      work: the word that asked for them.
      images: of a call.
      mesh: that they run on; None is the first device.
      make: gives them.
    """

    work: str
    images: int
    mesh: Mesh | None
    make: Callable[[], list[Case]]


class How(NamedTuple):
    """How everything is measured.

    Attributes:
      seconds: of each timing.
      out: JSON file, written anew after every row; rows that it has are not measured again.
      trace: folder for profiles of one call of each program; empty: none.
      peers: the same work by others.
    """

    seconds: float
    out: str = ""
    trace: str = ""
    peers: Sequence[Peer] = ()


def measure_all(settings: Sequence[Setting], how: How) -> None:
    """Measures every setting and prints a table, also of what there is where it breaks off.

    Raises:
      CheckpointError, ConfigError: the file to go on with is of something else.
    """
    report = _begun(how.out)
    rows: list[dict[str, Any]] = []
    try:
        _measure_into(rows, report, settings, how)
    finally:
        print(f"\n{json.dumps({k: v for k, v in report.items() if k != 'rows'})}\n")
        print(as_table(rows), flush=True)


def _measure_into(
    rows: list[dict[str, Any]], report: dict[str, Any], settings: Sequence[Setting], how: How
) -> None:
    done = {tuple(row[name] for name in KEY): row for row in report["rows"]}
    for setting in settings:
        ceilings = _ceilings(report, setting.config.precision)
        for group in _groups(setting):
            for name, images, measured in _of_group(group, setting, how, ceilings):
                key = (setting.preset, " ".join(setting.swept), name, images)
                if key not in done:
                    report["rows"].append(dict(zip(KEY, key, strict=True)) | measured())
                    done[key] = report["rows"][-1]
                    print(json.dumps(done[key]), flush=True)
                    if how.out:
                        write_atomically(Path(how.out), json.dumps(report, indent=2))
                rows.append(done[key])


def _of_group(
    group: Group, setting: Setting, how: How, ceilings: dict[str, float]
) -> list[tuple[str, int, Callable[[], dict[str, Any]]]]:
    """Name, images and measurement of programs; of what cannot be made, its word and why."""
    on_mesh = nullcontext if group.mesh is None else partial(jax.set_mesh, group.mesh)
    devices = 1 if group.mesh is None else group.mesh.size

    def measured(case: Case) -> dict[str, Any]:
        with on_mesh():
            return _row(setting, case, how, ceilings, devices)

    try:
        with on_mesh():
            cases = group.make()
    except NO_ROOM as error:
        told = {"error": lack_of_memory(error)}
        return [(group.work, group.images, lambda: told)]
    return [(case.name, case.images, partial(measured, case)) for case in cases]


def _begun(out: str) -> dict[str, Any]:
    """A report without rows, or the one that a stopped call on the same device left.

    Raises:
      CheckpointError, ConfigError: the file holds something else, which would be overwritten.
    """
    report: dict[str, Any] = {"device": _device(), "jax": jax.__version__}
    if out and Path(out).is_file() and Path(out).stat().st_size:
        before = read_kept(Path(out), *report, "memory_gigabytes_per_second", "rows")
        if {name: before[name] for name in report} == report:
            return before
        raise ConfigError(
            f"--out {out} is of {before['device']} and jax {before['jax']}, this is "
            f"{report['device']} and jax {report['jax']}: give another file"
        )
    return report | {"memory_gigabytes_per_second": round(memory_ceiling() / 1e9, 1), "rows": []}


def _ceilings(report: dict[str, Any], dtype: str) -> dict[str, float]:
    name = f"{dtype}_teraflops_per_second"
    if name not in report:
        report[name] = round(matmul_ceiling(dtype) / 1e12, 3)
    return {"products": report[name], "memory": report["memory_gigabytes_per_second"]}


def _row(
    setting: Setting, case: Case, how: How, ceilings: dict[str, float], devices: int
) -> dict[str, Any]:
    """What is measured of a case; its arithmetic is that of all devices, a ceiling that of one."""
    calls, failed = _peers_calls(setting, case, how)
    row = measure(case, how.seconds, calls) | ({"peer_errors": failed} if failed else {})
    if "teraflops_per_second" in row:
        gigabytes = row["moved_mib"] * 2**20 / 1e9 / (row["milliseconds"] / 1e3)
        teraflops = row["teraflops_per_second"] / devices
        row["share_of_products"] = round(teraflops / ceilings["products"], 3)
        row["share_of_memory"] = round(gigabytes / ceilings["memory"], 3)
        if how.trace:
            row |= _profiled(setting, case, how.trace)
    return row


def _profiled(setting: Setting, case: Case, folder: str) -> dict[str, Any]:
    """A profile in a folder of this preset, its swept fields, the work and its images."""
    parts = (setting.preset, *setting.swept, f"{case.name} of {case.images}")
    own = Path(folder, *(re.sub(r"[^\w.,=()-]+", "_", part) for part in parts))
    try:
        return {"longest": _profile(case, own)}
    except NO_ROOM as error:
        return {"trace_error": lack_of_memory(error)}


def _peers_calls(
    setting: Setting, case: Case, how: How
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Of the peers that do a case's work, each called once; and whose memory did not suffice."""
    calls: dict[str, Callable[[], Any]] = {}
    failed: dict[str, str] = {}
    for peer in how.peers:
        try:
            if call := call_of(peer, setting.config, case.name, case.images):
                call()
                calls[peer.name] = call
        except (MemoryError, RuntimeError) as error:  # torch's are RuntimeErrors
            told = str(error).lower()
            if isinstance(error, RuntimeError) and not any(x in told for x in NO_MEMORY):
                raise
            failed[peer.name] = "out of memory"
    return calls, failed


def _profile(case: Case, folder: Path) -> list[Any]:
    """Profiles one call of a case; prints and returns what took longest."""
    given = [filled(x, i) for i, x in enumerate(case.arguments)]
    call: Callable[[], Any] = lambda: case.function(*given)
    if not case.carries:  # a train state is given away with the call
        jax.block_until_ready(call())
    shares = profiled(call, folder)
    for share in shares:
        print(f"  {share.share:6.1%} {share.milliseconds:10.3f} ms {share.calls:6d} x {share.name}")
    return [list(share) for share in shares]


def _groups(setting: Setting) -> Iterator[Group]:
    """What is measured of a setting, each work's smallest batches first."""
    config, mesh = setting.config, make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}))
    drawn = {
        "forward": lambda images: [forward_case(config, images)],
        "sample": lambda images: sampling_cases(config, images),
        "tokenizer": lambda images: tokenizer_cases(config, images),
    }
    for word, make in drawn.items():
        if word in setting.work:
            yield from (Group(word, n, None, partial(make, n)) for n in setting.batches)
    count = config.batch_size
    if "encode" in setting.work:
        yield Group("encode", count, None, lambda: [encoding_case(config)])
    for word in ("encoded", "train"):
        if word in setting.work:
            yield Group(word, count, mesh, partial(_train_cases, config, mesh, word))


def _train_cases(config: ConfigDict, mesh: Mesh, word: str) -> list[Case]:
    return [train_case(config, mesh, word == "encoded")]


def sampling_cases(config: ConfigDict, images: int) -> list[Case]:
    """All programs behind a call of a preset's pipeline."""
    if config.method == "clip_prior":
        return [prior_sampling_case(config, images)]
    if config.method == "tokens":
        return token_sampling_cases(config, images)
    cases = stage_sampling_cases(config, images)
    return [*cases, decoder_case(config, images)] if config.method == "stage_b" else cases


def _device() -> str:
    device = jax.devices()[0]
    return f"{jax.device_count()} x {device.device_kind} ({device.platform})"
