"""Compare token predictors: `python -m paella_jax.compare --out DIR [--config FILE:preset]`.

Trains every network with every corruption at an equal budget, samples each with both samplers at
several step counts, each cell (corruption, network and sampler) with its own best guidance, and
writes comparison.html (one page with its images), .md, .json and PNGs to --out. The same command
goes on where it was stopped; finished trainings and measured cells are kept. A later call may add
seeds, budgets and variants.
With `--workers 2` two processes divide the work, each on its share of the processors: such small
networks keep one core busy. The same command may also be started on several machines that share the
folder.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from paella_jax.cli import ENDED_BY, TERMINATED, Parser, helped_by, path, run, setup_jax, workers
from paella_jax.outside import escaped_lines, say


def main() -> int:
    """Parses the command line and compares; `--config.a.b=value` overrides a field."""
    parser = Parser(description=__doc__, overrides=True)
    parser.add_argument("--config", default="compare:shapes")
    parser.add_argument("--out", type=path, required=True, help="folder of runs and results")
    parser.add_argument("--workers", type=workers, default=1, help="processes that share the work")
    arguments, overrides = parser.parse_known_args()

    from paella_jax.config import load_config

    config = load_config(arguments.config, overrides)
    setup_jax()

    from paella_jax.comparison.run import compare
    from paella_jax.training.finish import Stopped

    # Outside of training, which saves first: claims are given back and the other workers end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    out = Path(arguments.out).absolute()
    command = [sys.executable, "-m", "paella_jax.compare", "--config", arguments.config]
    command += ["--out", str(out), *overrides]
    try:
        with helped_by(command, arguments.workers - 1):
            report = compare(config, out)
    except Stopped as stop:
        say(stop)
        return ENDED_BY[stop.by]
    print(escaped_lines("\n".join(report["verdict"])))
    say(f"wrote {out / 'comparison.html'}")
    return 0


if __name__ == "__main__":
    run(main)
