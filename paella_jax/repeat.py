"""Repeat a small run with several seeds: `python -m paella_jax.repeat --config X:preset --out DIR`.

Trains what the run stands on (two tokenizers, for Stage C a Stage B on each; --tokenizer and
--stage_b give them instead), the run with every seed, tunes each one's sampler on captions that are
not scored, and writes seeds.md and seeds.json: mean, spread and minimum over the seeds, with the
preset's sampler and with the tuned one; with --tasks its image tasks. The same command goes on
where it was stopped, and with more --seeds or --tasks adds them.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path

from paella_jax.cli import ENDED_BY, TERMINATED, Parser, helped_by, path, run, setup_jax, workers
from paella_jax.outside import escaped_lines, say


def read_arguments() -> tuple[argparse.Namespace, list[str]]:
    """The command line, and the overrides in it."""
    parser = Parser(description=__doc__, overrides=True)
    parser.add_argument(
        "--config", required=True, help="of paella, muse or stage_c, as NAME:preset"
    )
    parser.add_argument("--out", type=path, required=True, help="folder of runs and results")
    parser.add_argument("--seeds", default="0,1,2", help="of the runs, separated by commas")
    given = parser.add_argument_group("trained runs to stand on, seeds take turns; repeatable")
    for name in ("tokenizer", "low_tokenizer", "stage_b"):
        given.add_argument(f"--{name}", type=path, action="append", default=[], metavar="RUN")
    parser.add_argument("--direct", action="store_true", help="with stage_c: direct decoders too")
    parser.add_argument("--num_images", type=int, default=256, help="captions per split")
    parser.add_argument("--tuning_images", type=int, default=96, help="captions to tune on")
    parser.add_argument(
        "--tasks", action="store_true", help="score the image tasks of each seed's run too"
    )
    parser.add_argument("--workers", type=workers, default=1, help="processes that share the work")
    return parser.parse_known_args()


def main() -> int:
    """Parses the command line and repeats; `--config.a.b=value` overrides a field."""
    arguments, overrides = read_arguments()

    from paella_jax.config import load_config
    from paella_jax.seeds.plan import parse_seeds
    from paella_jax.seeds.wish import Wish

    absolute = lambda runs: tuple(str(Path(run).absolute()) for run in runs)
    wish = Wish(
        load_config(arguments.config, overrides),
        parse_seeds(arguments.seeds),
        absolute(arguments.tokenizer),
        absolute(arguments.low_tokenizer),
        absolute(arguments.stage_b),
        arguments.direct,
        arguments.num_images,
        arguments.tuning_images,
        arguments.tasks,
    )
    setup_jax()

    from paella_jax.seeds.run import repeat
    from paella_jax.training.finish import Stopped

    # Outside of training, which saves first: claims are given back and the other workers end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    out, words = Path(arguments.out).absolute(), _alone(sys.argv[1:])
    command = ["python", "-m", "paella_jax.repeat", *words]
    try:
        with helped_by([sys.executable, *command[1:]], arguments.workers - 1):
            repeat(wish, out, shlex.join(command))
    except Stopped as stop:
        say(stop)
        return ENDED_BY[stop.by]
    print(escaped_lines((out / "seeds.md").read_text()))
    say(f"wrote {out / 'seeds.md'} and seeds.json")
    return 0


def _alone(words: list[str]) -> list[str]:
    """The command line without --workers: who divides the work does not change the result."""
    places = [i for i, word in enumerate(words) if word == "--workers"]
    dropped = {*places, *(i + 1 for i in places)}
    left = [word for i, word in enumerate(words) if i not in dropped]
    return [word for word in left if not word.startswith("--workers=")]


if __name__ == "__main__":
    run(main)
