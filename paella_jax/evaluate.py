"""Score images: a run's, or any folder's.

Runs on the embedded data: `python -m paella_jax.evaluate --checkpoint RUN [--out DIR]` writes
report.json, samples.png (prompts with a tick or cross) and training.png; with --sweep also
sweep.json and sweep.png: scores against steps, guidance, temperature and the choice of what is
renoised. With --tasks it writes an example of every image task to `tasks/`, all of them on
sheet.png, and their scores to tasks.md and tasks.json.
With --direct RUN (configs/direct_decoder.py) it decodes a Würstchen's latents by Stage B and
directly: stages.json, stages.png.

Real images: `--checkpoint RUN --data PLACE` draws the captions of a place that the run never saw
(without `--data` those that were held back of its own images) and scores the images against the
true ones; of a tokenizer's run, its reconstructions. `--images A --reference B` scores what
anything drew. Both write scores.json and scores.md (docs/scores.md says what each score is).
`--manipulations PLACE` tells how far small changes of the same images move FID. A place is a
folder of images, tar shards, ArrayRecord or parquet files, or a data set of TFDS (docs/data.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from paella_jax.cli import Parser, path, run, setup_jax
from paella_jax.reports.flags import (
    CHANGED,
    DRAWN,
    EMBEDDED,
    IMAGES,
    REBUILT,
    RUNS,
    check_flags,
    given_of,
)

if TYPE_CHECKING:
    from paella_jax.reports.gathered import Judges

SUBJECTS = ("checkpoint", "images", "manipulations")
OF_SHAPES = ("sweep", "direct", "tasks", "seconds")  # which look at what was read of an image
# What makes a run on the embedded data be scored by features too.
OF_FEATURES = ("data", "overrides", "groups", "features", "weights", "prompts", "clip", "pick",
               "perceptual", "curve")  # fmt: skip
# What flags are that were not given; that they were is what `check_flags` asks.
DEFAULTS = {"steps": "4,8,12,16,24", "sweep_images": 64, "task_pairs": 32, "training_images": 2000,
            "guidance": "1,2,4,8"}  # fmt: skip
EPILOG = """other fields of the run's data can be given as --config.data.FIELD=VALUE, for example
  --config.data.tfds=coco_captions --config.data.caption_field=captions/text"""


def check_run(arguments: argparse.Namespace) -> bool:
    """Raises ValueError where a flag does not belong to this kind of run, before any work.

    Returns:
      Whether the run is scored by features.
    """
    from paella_jax.reports.run_scores import check_method
    from paella_jax.reports.scored_subject import REBUILDING
    from paella_jax.runs.folder import read_config

    method = read_config(arguments.checkpoint).method
    check_method(arguments.checkpoint, method)
    for flag, needed in (("sweep", "tokens"), ("tasks", "tokens"), ("direct", "stage_c")):
        if getattr(arguments, flag) and method != needed:
            raise ValueError(f"--{flag} is for runs of method {needed!r}, this is a {method!r}")
    by_features = scores_real_images(arguments)
    kind = REBUILT if method in REBUILDING else DRAWN
    check_flags(arguments.given, kind if by_features else EMBEDDED)
    return by_features


def check_subject(arguments: argparse.Namespace) -> None:
    """Raises ValueError unless one thing is to be scored, with the flags that belong to it."""
    subjects = [name for name in SUBJECTS if getattr(arguments, name)]
    if len(subjects) != 1:
        raise ValueError(
            "give one of --checkpoint RUN, --images PLACE or --manipulations PLACE"
            + (f", not {' and '.join(f'--{name}' for name in subjects)}" if subjects else "")
        )
    if bool(arguments.images) != bool(arguments.reference):
        raise ValueError("--images A and --reference B belong together")
    if arguments.num_images is not None and arguments.images:
        raise ValueError("--images A --reference B are scored whole; leave --num_images out")
    kinds = {"checkpoint": RUNS, "images": (IMAGES,), "manipulations": (CHANGED,)}
    check_flags(arguments.given, *kinds[subjects[0]])


def find_runs(arguments: argparse.Namespace) -> None:
    """Runs that are named as on the hub -> their folders, once the report has its place.

    Raises:
      UserError: a place that cannot be written, or a run that cannot be downloaded or converted.
    """
    from paella_jax.convert.found import run_folder
    from paella_jax.files.atomic import check_writable
    from paella_jax.sharing.hub import is_name

    if is_name(arguments.checkpoint or "") and not arguments.out:
        arguments.out = "scores"  # a download is no place for a report
    check_writable(Path(arguments.out or arguments.checkpoint or "scores"), folder=True)
    for flag in ("checkpoint", "super_resolution"):
        if getattr(arguments, flag):
            setattr(arguments, flag, str(run_folder(getattr(arguments, flag))[0]))


def load_judges(arguments: argparse.Namespace) -> Judges:
    """The feature network and CLIP models that the flags name."""
    from paella_jax.encoders.clip_judge import load_clip_judge
    from paella_jax.evaluation.features import load_features
    from paella_jax.reports.gathered import Judges

    name = arguments.features or ("inception" if arguments.weights else "efficientnet")
    judge = lambda folder: load_clip_judge(folder) if folder else None
    network = load_features(name, arguments.weights)
    return Judges(network, judge(arguments.clip), judge(arguments.pick))


def parse() -> argparse.Namespace:
    """Reads the command line; `given` has what it says, without the defaults."""
    parser = Parser(description=__doc__, overrides=True, epilog=EPILOG)
    parser.add_argument("--checkpoint", type=path, help="run folder, or OWNER/NAME on the hub")
    parser.add_argument(
        "--out", type=path, help="folder for the report (default: the run folder, or `scores`)"
    )
    parser.add_argument("--num_images", type=int, help="per split (default: the config's)")
    parser.add_argument(
        "--super_resolution", type=path, default="", help="run that enlarges the images"
    )
    shapes = parser.add_argument_group("runs on the embedded data")
    shapes.add_argument("--steps", help=f"step counts to compare ({DEFAULTS['steps']})")
    shapes.add_argument("--sweep", action="store_true", help="compare sampling settings (minutes)")
    shapes.add_argument(
        "--sweep_images", type=int, help=f"captions per split ({DEFAULTS['sweep_images']})"
    )
    shapes.add_argument(
        "--direct", type=path, help="direct decoder run: score a Würstchen's stages apart"
    )
    shapes.add_argument("--tasks", action="store_true", help="draw and score each image task")
    shapes.add_argument(
        "--task_pairs", type=int, help=f"images per task's score ({DEFAULTS['task_pairs']})"
    )
    shapes.add_argument(
        "--seconds", default=[], nargs="*", metavar="STAGE=SECONDS", help="copied into the report"
    )
    real = parser.add_argument_group("real images")
    real.add_argument("--images", type=path, default="", metavar="PLACE", help="images to score")
    real.add_argument("--reference", type=path, default="", metavar="PLACE", help="real images")
    real.add_argument("--paired", action="store_true", help="of one name each in both folders")
    real.add_argument(
        "--manipulations", type=path, default="", metavar="PLACE", help="images to change"
    )
    real.add_argument(
        "--data", type=path, default="", metavar="PLACE", help="default: the run's own"
    )
    real.add_argument("--prompts", type=path, default="", metavar="FILE", help="a caption per line")
    real.add_argument(
        "--groups", default="", metavar="FIELD|WORD,WORD",
        help="mark images by the group, as a style, that a field or a caption's word names",
    )  # fmt: skip
    real.add_argument("--features", default="", help="inception (--weights), efficientnet or clip")
    real.add_argument(
        "--weights", type=path, default="", help="the feature network's file or folder"
    )
    real.add_argument(
        "--clip", type=path, default="", metavar="FOLDER", help="CLIP model, for its score"
    )
    real.add_argument("--pick", type=path, default="", metavar="FOLDER", help="PickScore's model")
    real.add_argument(
        "--perceptual", type=path, default="", metavar="FILE", help="VGG weights, for LPIPS"
    )
    real.add_argument(
        "--training_images", type=int, help=f"searched for copies ({DEFAULTS['training_images']})"
    )
    real.add_argument("--curve", default="", metavar="steps,guidance", help="scores against these")
    real.add_argument("--guidance", help=f"guidance scales of --curve ({DEFAULTS['guidance']})")
    arguments, arguments.overrides = parser.parse_known_args()
    arguments.given = given_of(vars(arguments))
    for name, value in DEFAULTS.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


def main() -> int:
    """Parses the command line and evaluates."""
    arguments = parse()
    check_subject(arguments)
    find_runs(arguments)
    setup_jax()
    by_features = bool(arguments.checkpoint) and check_run(arguments)
    if arguments.images:
        from paella_jax.reports.folder_scores import score_folders

        page = score_folders(
            arguments.images,
            arguments.reference,
            load_judges(arguments),
            Path(arguments.out or "scores"),
            prompts=arguments.prompts,
            paired=arguments.paired,
            perceptual=arguments.perceptual,
        )
        print(page)
    elif arguments.manipulations:
        from paella_jax.reports.manipulations import measure_manipulations

        network, out = load_judges(arguments).network, Path(arguments.out or "scores")
        print(measure_manipulations(arguments.manipulations, network, out, arguments.num_images))
    elif by_features:
        print(evaluate_on_real_images(arguments))
    else:
        evaluate_on_shapes(arguments)
    return 0


def scores_real_images(arguments: argparse.Namespace) -> bool:
    """Whether a run is scored by features: on own images, or where it was asked for.

    Raises:
      ValueError: a flag that goes with the other kind of report.
    """
    from paella_jax.runs.folder import read_config

    config = read_config(arguments.checkpoint)
    asked = [name for name in OF_FEATURES if getattr(arguments, name)]
    by_features = bool(config.data.source != "shapes" or config.method == "vqgan" or asked)
    for name in OF_SHAPES:
        if by_features and getattr(arguments, name):
            other = f", not with --{asked[0]}" if asked else "; this run has other images"
            raise ValueError(f"--{name} reads images of the embedded data{other}; leave it out")
    return by_features


def evaluate_on_real_images(arguments: argparse.Namespace) -> str:
    """Draws or reconstructs, and scores by features; returns the table."""
    from paella_jax.images.plots import check_plots
    from paella_jax.reports.run_scores import score_run
    from paella_jax.reports.scored_run import Asked

    if arguments.curve:
        check_plots()
    numbers = lambda text: [float(x) for x in text.split(",") if x]
    asked = Asked(
        Path(arguments.checkpoint),
        Path(arguments.out or arguments.checkpoint),
        data=arguments.data,
        overrides=arguments.overrides,
        groups=arguments.groups,
        prompts=arguments.prompts,
        num_images=arguments.num_images,
        training_images=arguments.training_images,
        super_resolution=arguments.super_resolution,
        perceptual=arguments.perceptual,
        axes=tuple(axis for axis in arguments.curve.split(",") if axis),
        steps=[int(x) for x in numbers(arguments.steps)],
        guidance=numbers(arguments.guidance),
    )
    return score_run(asked, load_judges(arguments))


def evaluate_on_shapes(arguments: argparse.Namespace) -> None:
    """Scores a run on the embedded data by reading its images back."""
    from paella_jax.images.plots import check_plots
    from paella_jax.pipelines.load import load_tokens
    from paella_jax.reports.report import evaluate_run, show

    check_plots()
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
        from paella_jax.reports.task_page import write_tasks

        print(write_tasks(load_tokens(checkpoint), out / "tasks", arguments.task_pairs))
        print(f"wrote the tasks' images, sheet.png, tasks.md and tasks.json: {out / 'tasks'}")
    if arguments.sweep:
        from paella_jax.reports.sweep import show_sweep, sweep

        print(show_sweep(sweep(load_tokens(checkpoint), out, arguments.sweep_images)))


if __name__ == "__main__":
    run(main)
