"""Measuring one setting after the other: lines as they come, a table and a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from paella_jax.files.atomic import write_atomically
from paella_jax.speed.case import Case, measure
from paella_jax.speed.ceilings import matmul_ceiling, memory_ceiling
from paella_jax.speed.plan import Setting
from paella_jax.speed.sampling import decoder_case, stage_sampling_cases, token_sampling_cases
from paella_jax.speed.training import train_case
from paella_jax.training.sharding import make_mesh

COLUMNS = {
    "preset": "preset",
    "swept": "with",
    "work": "work",
    "images": "images",
    "milliseconds": "ms",
    "images_per_second": "images/s",
    "teraflops": "TFLOP",
    "share_of_ceiling": "of the ceiling",
    "arguments_mib": "MiB in",
    "temporaries_mib": "MiB beside",
    "compile_seconds": "compiled, s",
}


def measure_all(settings: Sequence[Setting], seconds: float, out: str | Path | None) -> None:
    """Measures every setting and prints a table.

    Args:
      settings: of `check_asked`.
      seconds: of each timing.
      out: JSON file, written anew after every row.
    """
    report: dict[str, Any] = {"device": _device(), "jax": jax.__version__}
    report |= {"memory_gigabytes_per_second": round(memory_ceiling() / 1e9, 1), "rows": []}
    ceilings: dict[str, float] = {}
    for setting in settings:
        dtype = setting.config.precision
        if dtype not in ceilings:
            ceilings[dtype] = matmul_ceiling(dtype)
            report[f"{dtype}_teraflops_per_second"] = round(ceilings[dtype] / 1e12, 3)
        for row in _rows(setting, seconds):
            if "teraflops_per_second" in row:
                share = row["teraflops_per_second"] * 1e12 / ceilings[dtype]
                row["share_of_ceiling"] = round(share, 3)
            head = {"preset": setting.preset, "swept": " ".join(setting.swept)}
            report["rows"].append(head | row)
            print(json.dumps(report["rows"][-1]), flush=True)
            if out:
                write_atomically(Path(out), json.dumps(report, indent=2))
    print(f"\n{json.dumps({k: v for k, v in report.items() if k != 'rows'})}\n")
    print(as_table(report["rows"]))


def _rows(setting: Setting, seconds: float) -> Iterator[dict[str, Any]]:
    mesh = make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}))
    for word in ("train", "encoded"):
        if word in setting.work:
            with jax.set_mesh(mesh):
                yield measure(train_case(setting.config, mesh, word == "encoded"), seconds)
    if "sample" in setting.work:
        for batch in setting.batches:
            for case in sampling_cases(setting.config, batch):
                yield measure(case, seconds)


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
    names = [name for name in COLUMNS if name != "swept" or any(row["swept"] for row in rows)]
    lines = [
        "| " + " | ".join(COLUMNS[name] for name in names) + " |",
        "|" + "---|" * len(names),
    ]
    for row in rows:
        shown = {"milliseconds": row.get("error", "")} | row
        lines.append("| " + " | ".join(str(shown.get(name, "")) for name in names) + " |")
    return "\n".join(lines)
