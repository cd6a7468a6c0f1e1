"""Score a run: `python -m paella_jax.evaluate --checkpoint RUN [--out DIR]`.

Writes report.json, samples.png (prompts with a tick or cross) and training.png; with --sweep also
sweep.json and sweep.png: scores against steps, guidance, temperature and the choice of what is
renoised. With --tasks it writes an example of every image task to `tasks/`.
With --direct RUN (configs/direct_decoder.py) it decodes a Würstchen's latents by Stage B and
directly: stages.json, stages.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from paella_jax.cli import Parser, path, run, setup_jax


def check_method(arguments: argparse.Namespace) -> None:
    """Raises ValueError where a flag does not belong to this kind of run, before any work."""
    from paella_jax.runs.folder import read_config

    method = read_config(arguments.checkpoint).method
    for flag, needed in (("sweep", "tokens"), ("tasks", "tokens"), ("direct", "stage_c")):
        if getattr(arguments, flag) and method != needed:
            raise ValueError(f"--{flag} is for runs of method {needed!r}, this is a {method!r}")


def main() -> int:
    """Parses the command line and evaluates a run."""
    parser = Parser(description=__doc__)
    parser.add_argument("--checkpoint", type=path, required=True, help="run folder")
    parser.add_argument("--out", type=path, help="folder for the report (default: the run folder)")
    parser.add_argument("--num_images", type=int, help="per split (default: the config's)")
    parser.add_argument("--steps", default="4,8,12,16,24", help="step counts to compare")
    parser.add_argument("--sweep", action="store_true", help="compare sampling settings (minutes)")
    parser.add_argument("--sweep_images", type=int, default=64, help="captions per split")
    parser.add_argument(
        "--direct", type=path, help="direct decoder run: score a Würstchen's stages apart"
    )
    parser.add_argument(
        "--super_resolution", type=path, default="", help="run that enlarges the images"
    )
    parser.add_argument("--tasks", action="store_true", help="draw an example of each image task")
    parser.add_argument(
        "--seconds", default=[], nargs="*", metavar="STAGE=SECONDS", help="copied into the report"
    )
    arguments = parser.parse_args()
    setup_jax()
    check_method(arguments)

    from paella_jax.files.atomic import check_writable

    check_writable(Path(arguments.out or arguments.checkpoint), folder=True)
    from paella_jax.pipelines.load import load
    from paella_jax.reports.report import evaluate_run, show

    checkpoint, out = arguments.checkpoint, Path(arguments.out or arguments.checkpoint)
    stages = {name: float(value) for name, value in (s.split("=") for s in arguments.seconds)}
    report = evaluate_run(
        Path(checkpoint),
        out,
        num_images=arguments.num_images,
        step_counts=[int(s) for s in arguments.steps.split(",") if s],
        stage_seconds=stages,
        super_resolution=arguments.super_resolution,
    )
    print(show(report))
    if arguments.direct:
        from paella_jax.reports.stages import compare_decoders, show_decoders

        count = arguments.num_images or 256
        print(show_decoders(compare_decoders(checkpoint, arguments.direct, out, count)))
    if arguments.tasks:
        from paella_jax.reports.task_examples import draw_task_examples

        files = draw_task_examples(load(checkpoint), out / "tasks")
        print(f"wrote {len(files)} tasks: {out / 'tasks'}")
    if arguments.sweep:
        from paella_jax.reports.sweep import show_sweep, sweep

        print(show_sweep(sweep(load(checkpoint), out, arguments.sweep_images)))
    return 0


if __name__ == "__main__":
    run(main)
