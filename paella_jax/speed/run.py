"""Measuring one setting after the other: lines as they come, a table and a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.files.atomic import write_atomically
from paella_jax.files.kept import read_kept
from paella_jax.speed.case import Case, filled, measure
from paella_jax.speed.ceilings import matmul_ceiling, memory_ceiling
from paella_jax.speed.peers import Peer, call_of
from paella_jax.speed.plan import Setting
from paella_jax.speed.sampling import decoder_case, stage_sampling_cases, token_sampling_cases
from paella_jax.speed.trace import profiled
from paella_jax.speed.training import encoding_case, train_case
from paella_jax.training.sharding import make_mesh

KEY = ("preset", "swept", "work", "images")  # of a row
COLUMNS = {
    "preset": "preset",
    "swept": "with",
    "work": "work",
    "images": "images",
    "milliseconds": "ms",
    "images_per_second": "images/s",
    "teraflops": "TFLOP",
    "share_of_products": "of the products' ceiling",
    "share_of_memory": "of the memory's",
    "peak_mib": "MiB",
    "compile_seconds": "compiled, s",
    "peer_times_as_long": "peers take",
}


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
        for mesh, case in _cases(setting):
            key = (setting.preset, " ".join(setting.swept), case.name, case.images)
            if key not in done:
                with nullcontext() if mesh is None else jax.set_mesh(mesh):
                    row = _row(setting, case, how, ceilings, 1 if mesh is None else mesh.size)
                report["rows"].append(dict(zip(KEY, key, strict=True)) | row)
                done[key] = report["rows"][-1]
                print(json.dumps(done[key]), flush=True)
                if how.out:
                    write_atomically(Path(how.out), json.dumps(report, indent=2))
            rows.append(done[key])


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
            row["longest"] = _profile(case, f"{how.trace}/{setting.preset}/{case.name}")
    return row


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
        except RuntimeError as error:  # torch's too
            if "out of memory" not in str(error).lower():
                raise
            failed[peer.name] = "out of memory"
    return calls, failed


def _profile(case: Case, folder: str) -> list[Any]:
    """Profiles one call of a case; prints and returns what took longest."""
    given = [filled(x, i) for i, x in enumerate(case.arguments)]
    call: Callable[[], Any] = lambda: case.function(*given)
    if not case.carries:  # a train state is given away with the call
        jax.block_until_ready(call())
    shares = profiled(call, folder.replace(" ", "_").replace(":", "_"))
    for share in shares:
        print(f"  {share.share:6.1%} {share.milliseconds:10.3f} ms {share.calls:6d} x {share.name}")
    return [list(share) for share in shares]


def _cases(setting: Setting) -> Iterator[tuple[Mesh | None, Case]]:
    """Programs with the mesh that they are run on, smallest batches first."""
    config, mesh = setting.config, make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}))
    if "sample" in setting.work:
        for batch in setting.batches:
            yield from ((None, case) for case in sampling_cases(config, batch))
    if "encode" in setting.work:
        yield None, encoding_case(config)
    for word in ("encoded", "train"):
        if word in setting.work:
            with jax.set_mesh(mesh):
                case = train_case(config, mesh, word == "encoded")
            yield mesh, case


def sampling_cases(config: ConfigDict, images: int) -> list[Case]:
    """All programs behind a call of a preset's pipeline."""
    if config.method == "tokens":
        return token_sampling_cases(config, images)
    cases = stage_sampling_cases(config, images)
    return [*cases, decoder_case(config, images)] if config.method == "stage_b" else cases


def _device() -> str:
    device = jax.devices()[0]
    return f"{jax.device_count()} x {device.device_kind} ({device.platform})"


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows in Markdown; an error stands in place of the numbers."""
    shown = [{"milliseconds": row.get("error", "")} | row | _of_peers(row) for row in rows]
    names = [name for name in COLUMNS if name in KEY[2:] or any(row.get(name) for row in shown)]
    lines = [
        "| " + " | ".join(COLUMNS[name] for name in names) + " |",
        "|" + "---|" * len(names),
    ]
    for row in shown:
        lines.append("| " + " | ".join(str(row.get(name, "")) for name in names) + " |")
    return "\n".join(lines)


def _of_peers(row: dict[str, Any]) -> dict[str, str]:
    ratios = {name: f"{x}x" for name, x in row.get("peer_times_as_long", {}).items()}
    told = ratios | row.get("peer_errors", {})
    return {"peer_times_as_long": ", ".join(f"{name} {words}" for name, words in told.items())}
