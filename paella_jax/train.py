"""Train one method: `python -m paella_jax.train --config configs/NAME.py:preset --workdir DIR`."""

from __future__ import annotations

import argparse
import json

from paella_jax.cli import TERMINATED, run, setup_jax


def main() -> int:
    """Parses the command line and trains; `--config.a.b=value` overrides a field."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="configs/NAME.py:preset")
    parser.add_argument("--workdir", required=True, help="run folder; an existing run resumes")
    arguments, overrides = parser.parse_known_args()

    from paella_jax.config import load_config
    from paella_jax.families.start import settle_config
    from paella_jax.runs.folder import prepare_workdir

    config = settle_config(load_config(arguments.config, overrides), arguments.workdir)
    workdir = prepare_workdir(arguments.workdir, config)
    setup_jax()

    from paella_jax.registry import build_method
    from paella_jax.training.loop import train
    from paella_jax.training.timing import record_seconds

    result = train(config, workdir, build_method(config, workdir))
    note = record_seconds(workdir, result)
    print(f"{workdir}: {json.dumps(note)}" + (" (stopped by SIGTERM)" if result.stopped else ""))
    return TERMINATED if result.stopped else 0


if __name__ == "__main__":
    run(main)
