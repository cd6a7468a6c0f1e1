"""Compare token predictors: `python -m paella_jax.compare --out DIR [--config FILE:preset]`.

Trains every cell (corruption x network) at an equal budget, samples each with both samplers at
several step counts with its own best guidance, and writes comparison.md, .json and .png to --out.
The same command goes on where it was stopped; finished trainings and measured cells are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from paella_jax.launch import run, setup_jax
from paella_jax.train import TERMINATED


def main() -> int:
    """Parses the command line and compares; `--config.a.b=value` overrides a field."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", default="configs/compare.py:shapes")
    parser.add_argument("--out", required=True, help="folder of runs and results")
    arguments, overrides = parser.parse_known_args()

    from paella_jax.config import load_config

    config = load_config(arguments.config, overrides)
    setup_jax()

    from paella_jax.comparison.run import compare
    from paella_jax.comparison.train_cells import Stopped

    out = Path(arguments.out).absolute()
    try:
        report = compare(config, out)
    except Stopped as stop:
        print(stop)
        return TERMINATED
    print("\n".join(report["verdict"]))
    print(f"wrote {out / 'comparison.md'}")
    return 0


if __name__ == "__main__":
    run(main)
