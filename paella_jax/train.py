"""Train one method: `python -m paella_jax.train --config configs/NAME.py:preset --workdir DIR`.

Started on every host of a cluster, the processes find each other (docs/pods.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from paella_jax.cli import ENDED_BY, Parser, path, run, setup_jax
from paella_jax.outside import say
from paella_jax.training.cluster import FLAGS, Cluster, find_cluster

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def main() -> int:
    """Parses the command line and trains; `--config.a.b=value` overrides a field."""
    parser = Parser(description=__doc__, overrides=True)
    parser.add_argument("--config", required=True, help="configs/NAME.py:preset")
    parser.add_argument(
        "--workdir", type=path, required=True, help="run folder; an existing run resumes"
    )
    by_hand = parser.add_argument_group("several processes, where no scheduler tells of them")
    for name, meaning in FLAGS.items():
        by_hand.add_argument(f"--{name}", help=meaning)
    arguments, overrides = parser.parse_known_args()
    return _train(arguments.config, arguments.workdir, overrides, vars(arguments))


def train_here(config: str, workdir: str | Path, *overrides: str) -> Path:
    """Trains in the running process, as a notebook needs it; a run that exists goes on.

        train_here("paella:tiny", "runs/paella", "tokenizer=runs/vqgan")

    Args:
      config: NAME:preset or a file, as of the command.
      workdir: run folder.
      *overrides: "section.field=value".

    Returns:
      The run folder.

    Raises:
      UserError: what the command would refuse.
      KeyboardInterrupt: the notebook's stop button; all is saved and the same call goes on.
    """
    if _train(config, workdir, overrides, {}):
        raise KeyboardInterrupt(f"{workdir} is saved; the same call goes on")
    return Path(workdir).expanduser()


def _train(
    name: str, workdir: str | Path, overrides: Sequence[str], flags: Mapping[str, str | None]
) -> int:
    from paella_jax.config import load_config, name_of
    from paella_jax.data.encoded import describe_data
    from paella_jax.families.start import settle_config
    from paella_jax.training.metrics import check_packages

    cluster, workdir = find_cluster(flags), Path(workdir).expanduser().absolute()
    loaded = load_config(name, overrides)
    check_packages(loaded)
    config = settle_config(loaded, str(workdir))
    config = describe_data(config)
    setup_jax()

    from paella_jax.training.distributed import joined

    with joined(cluster):
        given = [name_of(override) for override in overrides]
        return train_together(cluster, config, workdir, given)


def train_together(
    cluster: Cluster, config: ConfigDict, workdir: Path, given: Sequence[str] = ()
) -> int:
    """Trains in one process or, where JAX has joined them, in all of a cluster; the exit code.

    Process 0 holds the run folder's lock, prepares it, and alone writes to it but for checkpoints.
    `given` names the fields that were set in this call.
    """
    import jax

    from paella_jax.files.lock import WRITER, Lock
    from paella_jax.registry import build_method
    from paella_jax.runs.folder import prepare_workdir, taken_back_if_refused
    from paella_jax.training.distributed import (
        check_same_config,
        check_shared,
        describe_processes,
        first_alone,
    )
    from paella_jax.training.loop import train
    from paella_jax.training.sharding import make_mesh
    from paella_jax.training.timing import record_seconds

    say(describe_processes(cluster, make_mesh(config.mesh)))
    check_same_config(config)
    lock = Lock(workdir / WRITER, "a training")
    first_alone("lock", lock.acquire)
    try:
        with taken_back_if_refused(workdir) if jax.process_index() == 0 else nullcontext():
            first_alone("run folder", lambda: prepare_workdir(workdir, config, given))
            check_shared(workdir)
            result = train(config, workdir, build_method(config, workdir))
        if jax.process_index() == 0:
            note, by = json.dumps(record_seconds(workdir, result)), result.stopped
            say(f"{workdir}: {note}" + (f" (stopped by {by})" if by else ""))
    finally:
        lock.release()
    return ENDED_BY[result.stopped] if result.stopped else 0


if __name__ == "__main__":
    run(main)
