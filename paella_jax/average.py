"""Average a run's checkpoints: `python -m paella_jax.average --checkpoint RUN --out DIR`.

MUSE's way to averaged weights: keep checkpoints while training (--config.checkpoint.keep=None),
average them afterwards, oldest to newest. The new folder samples, evaluates and serves as
`init_from` like any run; it cannot be resumed.
"""

from __future__ import annotations

from pathlib import Path

from paella_jax.cli import Parser, path, run, setup_jax
from paella_jax.outside import say


def _steps(text: str) -> list[int]:
    """Raises ValueError where one is no step."""
    try:
        return [int(step) for step in text.split(",") if step]
    except ValueError as error:
        raise ValueError(f"--steps must look like 100,200, got {text!r}") from error


def write_average(
    checkpoint: str, out: str, decay: float = 0.7, steps: tuple[int, ...] = ()
) -> Path:
    """Writes the average of a run's checkpoints as a folder of its own.

    Raises:
      ConfigError: `out` is not empty, a decay outside [0, 1), too few or unknown checkpoints, or a
        LoRA run.
      LockedError: another process writes it.
      CheckpointError: no run there, or a damaged checkpoint.
    """
    from paella_jax.files.lock import beside, locked
    from paella_jax.runs.average import average_run
    from paella_jax.runs.derive import check_new_folder, write_run

    with locked(beside(out), "an average"):
        check_new_folder(out)
        step, params, model_state = average_run(checkpoint, decay, steps)
        return write_run(checkpoint, out, step, params, model_state)


def main() -> int:
    """Parses the command line and averages."""
    parser = Parser(description=__doc__)
    parser.add_argument("--checkpoint", type=path, required=True, help="run folder")
    parser.add_argument("--out", type=path, required=True, help="new folder")
    parser.add_argument("--decay", type=float, default=0.7, help="0: the newest; default MUSE's .7")
    parser.add_argument("--steps", default="", help="checkpoints to use, as 100,200; default: all")
    arguments = parser.parse_args()
    steps = _steps(arguments.steps)
    setup_jax()
    out = write_average(arguments.checkpoint, arguments.out, arguments.decay, tuple(steps))
    say(f"{out}: averaged checkpoints of {arguments.checkpoint}")
    return 0


if __name__ == "__main__":
    run(main)
