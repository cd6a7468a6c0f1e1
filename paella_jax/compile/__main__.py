"""Compile any preset's train step or sampler, for machines that are not there, of no file:

    python -m paella_jax.compile --config configs/paella.py:1b --target tpu:v5e:4x4
    python -m paella_jax.compile --config configs/paella.py:1b --target gpu:h100:8
    python -m paella_jax.compile --config configs/paella.py:1b --devices 8

says what each device holds and whether it fits, which collectives there are, and about how long a
call takes. JSON goes to stdout; with --json FILE it goes there, and a page of text to stdout. TPUs
and GPUs need `pip install 'paella_jax[plan]'`, no device. `--devices N` is `--target cpu:N`,
simulated on this CPU; without either the machine's own devices are used. Memory is XLA's account
for the platform it compiles for: a CPU's arguments are those of any platform, its temporaries are
not (it computes bfloat16 in float32 and saves no memory in its order of operations).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from paella_jax.cli import Parser, path, run
from paella_jax.compile.targets import (
    EXAMPLES,
    Target,
    check_installed,
    parse_target,
    set_environment,
)
from paella_jax.files.kept import read_kept


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Reads the command line; ends with one line where flags do not go together."""
    parser = Parser("python -m paella_jax.compile", description=__doc__, overrides=True)
    file = lambda text: Path(path(text))
    parser.add_argument("--config", help="configs/NAME.py:preset")
    parser.add_argument(
        "--table", type=file, nargs="+", metavar="FILE", help="prints a table of JSON files instead"
    )
    parser.add_argument("--target", help=f"machine to compile for: {EXAMPLES}")
    parser.add_argument("--devices", type=int, help="the same as --target cpu:DEVICES")
    parser.add_argument(
        "--program", default="train", choices=("train", "encoded", "sample"),
        help="the train step, the same from encoded data, or the preset's sampler as one program",
    )  # fmt: skip
    parser.add_argument("--images", type=int, help="drawn by --program sample; 8 per device")
    parser.add_argument("--json", type=file, help="file for the JSON; text goes to stdout then")
    arguments, overrides = parser.parse_known_args()
    if arguments.config is None and not arguments.table:
        parser.error("the following arguments are required: --config")
    if arguments.devices is not None and arguments.target:
        parser.error("give either --target or --devices")
    if arguments.devices is not None and arguments.devices < 1:
        parser.error(f"--devices must be at least 1, got {arguments.devices}")
    if arguments.images is not None and arguments.images < 1:
        parser.error(f"--images must be at least 1, got {arguments.images}")
    return arguments, overrides


def main() -> int:
    """Parses the command line and compiles."""
    arguments, overrides = parse()
    if arguments.table:
        from paella_jax.compile.show import as_table

        print(as_table([read_kept(file) for file in arguments.table]))
        return 0
    asked = arguments.target or (arguments.devices and f"cpu:{arguments.devices}")
    target: Target | None = None
    if asked:
        target = parse_target(asked)
        check_installed(target)
        set_environment(target)  # must come before jax looks for devices

    from paella_jax.compile.preset import compile_preset
    from paella_jax.compile.show import as_text
    from paella_jax.config import load_config
    from paella_jax.files.atomic import check_writable

    if arguments.json is not None:
        check_writable(arguments.json, folder=False, flag="--json")
    config = load_config(arguments.config, overrides)
    report = {"config": arguments.config, "overrides": overrides}
    report |= compile_preset(config, target, arguments.program, arguments.images)
    text = json.dumps(report, indent=2)
    if arguments.json is None:
        print(text)
    else:
        arguments.json.write_text(text + "\n")
        print(as_text(report))
    return 0


if __name__ == "__main__":
    run(main)
