"""What is wrong with the flags of `python -m paella_jax.sample`, told before a run is loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from paella_jax.files.atomic import check_writable
from paella_jax.images.read import read_classes, read_image
from paella_jax.pipelines.tasks import (
    CONDITIONS,
    ONE_SCALE,
    TASKS,
    chosen_task,
    is_given,
    numbers,
    refuse,
)
from paella_jax.pipelines.variations import PARTS
from paella_jax.runs.folder import read_config
from paella_jax.sampling.diffusion_settings import STEPPERS

IMAGE_FILES = (".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MOST_IN_ONE_FILE = 1024  # images of a grid or a movie, which are all in memory
MOST = 2**20
# flag -> least and most
WHOLE = {
    "num_images_per_prompt": (1, MOST),
    "batch_size": (1, MOST),
    "height": (1, MOST),
    "width": (1, MOST),
    "num_steps": (1, MOST),
    "seed": (0, 2**32 - 1),
    "best_of": (2, MOST),
    "morph": (0, MOST),
    "edit": (1, MOST),
    "top_k": (1, MOST),
    "frames": (2, MOST),
    "label": (0, MOST),
}
SHARES = ("strength", "share")
NUMBERS = ("guidance_scale", "temperature")
REDRAWING = ("strength", "num_steps", "guidance_scale", "stepper", "height", "width")
STREAM = ("prompts", "best_of")  # flags of text-to-image alone


def check_flags(flags: Any) -> None:
    """Checks all that needs no run: numbers, files, outputs, and flags that go together.

    A run may have to be downloaded or converted first; `check_run` does the rest.

    Raises:
      ValueError: (or a class of it) naming the flag and the fix.
      CheckpointError: a further run's folder is none.
    """
    check_numbers(flags)
    check_out(flags)
    check_files(flags)
    if flags.prompt and flags.prompts:
        raise ValueError("give --prompt or --prompts FILE, not both")
    task = chosen_task(flags)
    if task is not None:
        refuse(flags, STREAM, f"draws from text alone and does not go with --{task}")
    if flags.best_of and not flags.score_with:
        raise ValueError("--best_of needs --score_with FOLDER, a CLIP model that scores images")
    if flags.score_with and not flags.best_of:
        raise ValueError("--score_with belongs to --best_of N; give both")
    if flags.best_of and flags.num_images_per_prompt > 1:
        raise ValueError("--best_of keeps one image per prompt; leave --num_images_per_prompt out")
    if flags.strip:
        refuse(flags, ("best_of",), "keeps no steps; leave --strip out")
    has_other = any(is_given(flags, n) for n in ("like", "between", "label", "segmentation"))
    if not (flags.prompt or flags.prompts or flags.image or has_other):
        raise ValueError('nothing to draw: give --prompt "..." or --prompts FILE')
    for number, prompt in enumerate(flags.prompt):
        if not prompt.strip() and not has_other:
            raise ValueError(f"prompt {number} is empty; give a text to draw")


def check_run(flags: Any) -> None:
    """Checks the flags against the run that --checkpoint names, a folder by now.

    Raises:
      ValueError: a flag that this kind of run has no use for.
      CheckpointError: the folder is no run's.
    """
    check_kind(flags, read_config(flags.checkpoint).method)


def check_numbers(flags: Any) -> None:
    """Raises ValueError for a number outside of what its flag takes."""
    for name, (least, most) in WHOLE.items():
        value = getattr(flags, name)
        if value is not None and not least <= value <= most:
            raise ValueError(f"--{name} must be from {least} to {most}, got {value}")
    for name in (*SHARES, *NUMBERS):
        value = getattr(flags, name)
        if value is not None and not math.isfinite(value):
            raise ValueError(f"--{name} must be a finite number, got {value}")
    for name in SHARES:
        value = getattr(flags, name)
        if value is not None and not 0.0 <= value <= 1.0:
            raise ValueError(f"--{name} must be from 0 to 1, got {value}")
    if flags.temperature is not None and flags.temperature <= 0.0:
        raise ValueError(f"--temperature must be above 0, got {flags.temperature}")
    if flags.stepper is not None and flags.stepper not in STEPPERS:
        raise ValueError(f"--stepper must be one of {', '.join(STEPPERS)}, got {flags.stepper!r}")
    if flags.weights and flags.weights not in PARTS:
        numbers(flags.weights, "weights", words=PARTS)
    if flags.outpaint and len(numbers(flags.outpaint, "outpaint", int)) != 4:
        raise ValueError(f"--outpaint {flags.outpaint!r} needs TOP,BOTTOM,LEFT,RIGHT")


def is_one_file(out: str | Path) -> bool:
    """Whether an --out is a file with all images, and no folder."""
    return Path(out).suffix.lower() in (".png", ".gif")


def check_out(flags: Any) -> None:
    """Raises ValueError where --out cannot be written, or is of a kind that is never written."""
    out = Path(flags.out)
    if not flags.out:
        raise ValueError("--out is empty; give a .png, a .gif or a folder")
    if out.suffix.lower() in IMAGE_FILES:
        raise ValueError(f"--out {out} must be a .png, a .gif or a folder")
    if flags.captions and out.suffix.lower() != ".png":
        raise ValueError(f"--captions needs a .png as --out, got {out}")
    check_writable(out, folder=not is_one_file(out))


def check_files(flags: Any) -> None:
    """Raises ValueError, ImageError or CheckpointError where a given file or run is none."""
    if flags.prompts is not None and not Path(flags.prompts).is_file():
        raise ValueError(f"--prompts {flags.prompts!r} is not a file")
    if flags.between and len(flags.between) != 2:
        raise ValueError(f"--between needs two images, got {len(flags.between)}")
    for file in filter(None, (flags.image, flags.mask, *flags.like, *flags.between)):
        read_image(file)
    if flags.segmentation:
        read_classes(flags.segmentation)
    for run in filter(None, (flags.super_resolution, flags.decoder, flags.prior)):
        read_config(run)
    if flags.score_with and not (Path(flags.score_with) / "config.json").is_file():
        raise ValueError(
            f"--score_with {flags.score_with} is no folder with a config.json; give a CLIP model "
            "in the Hugging Face layout, with its tokenizer"
        )


def check_kind(flags: Any, method: str) -> None:
    """Raises ValueError for flags that this kind of run has no use for."""
    if method == "tokens":
        refuse(flags, ("stepper",), "belongs to Würstchen runs; this is a token predictor")
        if flags.super_resolution:
            why = "has no effect with --super_resolution; leave it out"
            refuse(flags, ONE_SCALE, why)
    elif method in ("stage_b", "stage_c"):
        others = [name for name in TASKS if name not in ("image", "strength")]
        own = [name for task in TASKS.values() for name in task.own]
        unused = (*others, *CONDITIONS, *own, "sampler", "temperature", "strip")
        refuse(flags, unused, "is of token predictors; this is a Würstchen run")
        if flags.image and not flags.prompt:
            check_reconstruction(flags)


def check_reconstruction(flags: Any) -> None:
    """Raises ValueError for flags of drawing where an image goes through the stages and back."""
    needs = (
        "needs a --prompt: without one the --image is rebuilt as it is; add one, or leave it out"
    )
    refuse(flags, REDRAWING, needs)
    for name in ("negative_prompt", "num_images_per_prompt"):
        if getattr(flags, name) not in ("", 1):
            raise ValueError(f"--{name} {needs}")


def draws_rows(flags: Any) -> bool:
    """Whether the flags ask for text-to-image without its steps."""
    return chosen_task(flags) is None and not flags.strip and not is_given(flags, "image")
