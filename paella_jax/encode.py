"""Run frozen networks once for all epochs: `python -m paella_jax.encode --config C --out DIR`.

Takes the config that one would train with and stores, in shards, what its frozen networks make of
the images and texts; `paella_jax.train` then reads them with `--config.data.encoded=DIR`. A killed
call is started again; several processes share the work (docs/encode.md).
"""

from __future__ import annotations

import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from paella_jax.cli import TERMINATED, Parser, path, run, setup_jax
from paella_jax.outside import say
from paella_jax.training.cluster import FLAGS, Cluster, find_cluster

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from paella_jax.training.encoding_plan import EncodeOptions


def main() -> int:
    """Parses the command line and encodes; `--config.a.b=value` overrides a field."""
    parser = Parser(description=__doc__, overrides=True)
    parser.add_argument("--config", required=True, help="configs/NAME.py:preset, as for train")
    parser.add_argument(
        "--out", type=path, required=True, help="folder; what is there already is kept"
    )
    parser.add_argument("--variants", type=int, default=1, help="passes with other crops and flips")
    parser.add_argument("--batch_size", type=int, default=64, help="samples at once per process")
    parser.add_argument("--shard_size", type=int, default=4096, help="samples per file")
    parser.add_argument("--validation", type=int, default=256, help="most validation samples")
    parser.add_argument(
        "--text_dtype", default="", help="of frozen text states: float32, float16 or bfloat16; "
        "default what the encoder gives",
    )  # fmt: skip
    by_hand = parser.add_argument_group("several processes, where no scheduler tells of them")
    for name, meaning in FLAGS.items():
        by_hand.add_argument(f"--{name}", help=meaning)
    arguments, overrides = parser.parse_known_args()

    from paella_jax.config import load_config
    from paella_jax.families.start import settle_config
    from paella_jax.training.encoding_plan import EncodeOptions

    given = {name: getattr(arguments, name) for name in EncodeOptions.__dataclass_fields__}
    options = EncodeOptions(**given)
    options.check()
    cluster = find_cluster(vars(arguments))
    config = settle_config(load_config(arguments.config, overrides), None)
    setup_jax()

    from paella_jax.training.distributed import joined

    with joined(cluster):
        if cluster.num_processes != 1:  # JAX keeps the signal for those that save before they end
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
        encode_together(cluster, config, Path(arguments.out).absolute(), options)
    return 0


def encode_together(
    cluster: Cluster, config: ConfigDict, out: Path, options: EncodeOptions
) -> None:
    """Encodes in one process or, where JAX has joined them, in all of a cluster."""
    import jax

    from paella_jax.files.lock import WRITER, Lock
    from paella_jax.registry import method_alone
    from paella_jax.runs.folder import prepare_workdir, taken_back_if_refused
    from paella_jax.training.distributed import (
        barrier,
        check_same_config,
        check_shared,
        first_alone,
    )
    from paella_jax.training.encoding_plan import check_folder, plan_data

    check_same_config(config)
    first_alone("checks", lambda: check_folder(config, out, options))
    lock = Lock(out / WRITER, "an encoding")
    first_alone("lock", lock.acquire)
    try:
        # Shards that are there stay whatever comes: only what is refused before them is taken back.
        with taken_back_if_refused(out) if jax.process_index() == 0 else nullcontext():
            first_alone("folder", lambda: prepare_workdir(out, config))
            check_shared(out)
            planned = plan_data(config, out, method_alone(config, out), options)
        manifest = planned.write((jax.process_index(), jax.process_count()))
        barrier("shards", 1e6)
    finally:
        lock.release()
    if jax.process_index() == 0:
        say(f"{out}: {manifest.describe()}; train with --config.data.encoded={out}")


if __name__ == "__main__":
    run(main)
