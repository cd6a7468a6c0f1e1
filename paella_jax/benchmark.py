r"""Measure speed on this machine, with random weights:

    python -m paella_jax.benchmark --config paella:1b --work sample,encoded --batch 1,4,16
    python -m paella_jax.benchmark --config stage_c:v2 --config stage_b:v2 --work sample \
        --config.data.image_size=1024
    python -m paella_jax.benchmark --config paella:shapes --sweep model.remat=True,False

A row per program, each measured for itself. For `--batch` images: what a pipeline runs (`sample`:
text encoders, steps, decoder; of a CLIP prior its steps), one prediction of the trained network
(`forward`: no dropout; the encoders' outputs are given, not made) and the tokenizer there and back
(`tokenizer`; of Stage B its Stage A). For the config's batch size: what `encode` computes
(`encode`), and the train step (`train`; `encoded`: from encoded data). Work that a preset does not
have is left out. Every program is compiled ("from the cache": an earlier call did that, and
compile_seconds is the time to read it), called once, then timed for `--seconds`.
Beside the medians stand its products in TFLOP (without those recomputed to save memory) as a share
of the largest matrix product's on this device, the bytes that it moves at most as a share of a
large copy's, and its memory. `--sweep FIELD=A,B` repeats everything with other settings, every
combination of them; what runs out of memory, the device's or the host's, is told, and the next
goes on. With `--out FILE` a stopped call goes on where it was, and `--table FILE...` prints what
such files hold. `--trace FOLDER` leaves a profile of each program in a folder of its own, for
TensorBoard, XProf or Perfetto, and prints what took longest.

`--peer FILE` (several times) times others in the same rounds: a Python file with
make(config, work, images) -> a function that does one call of a row's work, or None
(launch/peer_paella_torch.py, launch/peer_vqgan_torch.py, launch/peer_diffusers.py). Its weights are
random as ours are, not ours converted: how long a dense network takes depends on the shapes and
types of its weights, not on their values. `--data` measures how fast the config's images are read
instead (`--photos 512x384`: made-up JPEGs of that size).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from paella_jax.cli import Parser, path, run, setup_jax

WORK = "sample,encode,encoded,train"  # the other words repeat parts of these


def reading_report(config: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """How fast the config's images are read, or photos of a size that are made up here."""
    from paella_jax.config import IMPLIED, ConfigError, with_overrides
    from paella_jax.reports.reading_speed import reading_cost, write_photos

    if not arguments.photos:
        return reading_cost(config, arguments.seconds)
    sides = arguments.photos.split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise ConfigError(f"--photos must be WIDTHxHEIGHT, got {arguments.photos!r}")
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), *map(int, sides))
        others = [f"{field}=" for field in IMPLIED]
        given = [f"data.folder={folder}", "data.source=folder"]
        photos = with_overrides(config, [*others, *given])
        return {"photos": arguments.photos} | reading_cost(photos, arguments.seconds)


def main() -> int:
    """Runs the benchmark and prints (and writes) its numbers."""
    parser = Parser(description=__doc__, overrides=True)
    parser.add_argument("--config", action="append", help="default paella:shapes; several times")
    parser.add_argument("--work", default=WORK, help=f"of forward,tokenizer,{WORK}")
    parser.add_argument("--batch", default="1,4,16", help="images that are drawn at once")
    parser.add_argument(
        "--sweep", action="append", default=[], help="FIELD=A,B (or A;B) of the config"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each timing")
    parser.add_argument("--trace", type=path, default="", help="folder for profiles")
    parser.add_argument("--peer", type=path, action="append", default=[], help="Python file")
    parser.add_argument("--data", action="store_true", help="read the config's images")
    parser.add_argument("--photos", default="", help="with --data: WIDTHxHEIGHT of made-up JPEGs")
    parser.add_argument("--out", type=path, help="JSON file; a row is in it once it is measured")
    parser.add_argument(
        "--table", type=path, nargs="+", metavar="FILE", help="print files of --out instead"
    )
    arguments, overrides = parser.parse_known_args()
    if arguments.table:
        from paella_jax.speed.table import of_files

        print(of_files([Path(file) for file in arguments.table]))
        return 0

    from paella_jax.config import load_config
    from paella_jax.files.atomic import check_writable

    if not 0.0 <= arguments.seconds < float("inf"):
        parser.error(f"--seconds {arguments.seconds} must be a number from 0 on")
    names = arguments.config or ["paella:shapes"]
    configs = {name: load_config(name, overrides) for name in names}
    if arguments.out:
        check_writable(Path(arguments.out), folder=False)
    if arguments.trace:
        check_writable(Path(arguments.trace), folder=True, flag="--trace")
    if arguments.data or arguments.photos:
        (name, config), *_ = configs.items()
        report = {"config": name} | reading_report(config, arguments)
        print(json.dumps(report, indent=2))
        if arguments.out:
            Path(arguments.out).write_text(json.dumps(report, indent=2))
        return 0
    from paella_jax.speed.peers import load_peer
    from paella_jax.speed.plan import check_asked
    from paella_jax.speed.run import How, measure_all

    asked = check_asked(configs, arguments.work, arguments.batch, arguments.sweep, overrides)
    setup_jax()
    peers = [load_peer(file) for file in arguments.peer]
    measure_all(asked, How(arguments.seconds, arguments.out or "", arguments.trace, peers))
    return 0


if __name__ == "__main__":
    run(main)
