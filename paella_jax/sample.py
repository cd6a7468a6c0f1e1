"""Draw images: `python -m paella_jax.sample --checkpoint RUN --prompt "..." --out grid.png`.

Without further flags this is text-to-image. One of these flags chooses an image task:
  --image FILE --strength 0.6              draw the prompt over the image
  --image FILE --mask FILE                 draw the mask's white part anew
  --image FILE --outpaint 0,0,32,32        add pixels: top,bottom,left,right
  --image FILE --morph 8                   keep the layout: enter a 24-step run at this step
  --image FILE --edit 100 [--mask FILE]    draw some tokens again in each of 100 rounds
  --like FILE [--like FILE ...]            variations of one image, or a mix of several
  --mix "PROMPT" [--mix ...]               mix further prompts in; --weights 0.5,0.5
  --between FILE --between FILE            a strip from one image to another by their embeddings
  --to "PROMPT" --frames 8                 a strip from the prompt to another (.gif for a movie)
  --prior RUN                              add the image embedding a CLIP prior draws for the prompt
and --emphasis "PHRASE=1.5", --label N, --segmentation FILE add conditions to the prompt.
--strip writes the intermediate steps as well: a row per image, or a .gif.
--super_resolution RUN enlarges what is drawn (text-to-image, --mix, --mask, --outpaint, --edit).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from paella_jax.cli import run, setup_jax

IMAGE_FILES = (".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
OPTIONS = ("negative_prompt", "num_images_per_prompt", "num_steps", "guidance_scale",
           "temperature", "seed")  # fmt: skip


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="run folder")
    parser.add_argument("--prompt", action="append", default=[], help="may be given several times")
    parser.add_argument("--prompts", help="text file with one prompt per line")
    parser.add_argument("--negative_prompt", default="")
    parser.add_argument("--out", default="grid.png", help=".png grid, .gif, or a folder")
    parser.add_argument("--num_images_per_prompt", type=int, default=1)
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--num_steps", type=int)
    parser.add_argument("--guidance_scale", type=float)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sampler", choices=("random", "confidence"), help="default: the run's")
    parser.add_argument("--strip", action="store_true", help="show the intermediate steps")
    parser.add_argument("--super_resolution", metavar="RUN", help="run that enlarges the images")
    parser.add_argument("--decoder", metavar="RUN", help="tokenizer run whose decoder is used")
    tasks = parser.add_argument_group("image tasks")
    tasks.add_argument("--image")
    tasks.add_argument("--strength", type=float)
    tasks.add_argument("--mask")
    tasks.add_argument("--outpaint", metavar="TOP,BOTTOM,LEFT,RIGHT")
    tasks.add_argument("--morph", type=int, metavar="STEP")
    tasks.add_argument("--edit", type=int, metavar="ROUNDS")
    tasks.add_argument("--share", type=float, help="of the tokens, per round; default 0.08")
    tasks.add_argument("--top_k", type=int, help="draw among as many tokens; default 3")
    tasks.add_argument("--like", action="append", default=[], metavar="FILE")
    tasks.add_argument("--mix", action="append", default=[], metavar="PROMPT")
    tasks.add_argument("--weights", help="of --prompt and every --mix, with commas")
    tasks.add_argument("--between", action="append", default=[], metavar="FILE")
    tasks.add_argument("--to", metavar="PROMPT")
    tasks.add_argument("--frames", type=int, default=8, help="of --to, --between, --edit --strip")
    tasks.add_argument("--prior", help="run folder of configs/clip_prior.py")
    tasks.add_argument("--emphasis", action="append", default=[], metavar="PHRASE=FACTOR")
    tasks.add_argument("--label", type=int)
    tasks.add_argument("--segmentation", metavar="FILE", help="classes as .npy or grey image")
    stages = parser.add_argument_group("Würstchen")
    stages.add_argument("--stepper", help="of Stage C: ddpm, ddim or dpm++")
    stages.add_argument("--offload", action="store_true", help="one stage on the device at a time")
    return parser.parse_args()


def read_prompts(arguments: argparse.Namespace) -> list[str]:
    """The prompts of --prompt and --prompts."""
    prompts = list(arguments.prompt)
    if arguments.prompts:
        file = Path(arguments.prompts)
        if not file.is_file():
            raise ValueError(f"--prompts {file} is not a file")
        lines = file.read_text(encoding="utf-8").splitlines()
        prompts += [line for line in lines if line.strip()]
    return prompts


def read_conditions(arguments: argparse.Namespace, prompts: list[str]) -> list[Any]:
    """One condition per prompt, with the flags that add to a prompt."""
    from paella_jax.images.read import read_classes
    from paella_jax.pipelines.prompts import Condition
    from paella_jax.pipelines.tasks import numbers

    emphasis = {}
    for text in arguments.emphasis:
        phrase, equals, factor = text.rpartition("=")
        if not equals:
            raise ValueError(f"--emphasis {text!r} must be PHRASE=FACTOR, e.g. 'red circle=1.5'")
        emphasis[phrase] = numbers(factor, "emphasis")[0]
    given = arguments.segmentation
    segmentation = read_classes(given) if given else None
    if not prompts and (arguments.like or arguments.label is not None or arguments.segmentation):
        prompts = [""]
    return [
        Condition(prompt, label=arguments.label, segmentation=segmentation, emphasis=dict(emphasis))
        for prompt in prompts
    ]


def draw(pipe: Any, arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    """Runs the task the flags ask for; returns the generation and its images' titles.

    Raises:
      ValueError: flags that do not go together, or not with this pipeline.
    """
    from paella_jax.pipelines.tasks import ONE_SCALE, Asked, draw_task, refuse
    from paella_jax.pipelines.tokens import TokenPipeline
    from paella_jax.pipelines.two_scale import TwoScalePipeline

    two_scales = isinstance(pipe, TwoScalePipeline)
    if not two_scales and not isinstance(pipe, TokenPipeline):
        return draw_wuerstchen(pipe, arguments)
    if arguments.stepper:
        raise ValueError("--stepper belongs to Würstchen runs; this is a token predictor")
    if two_scales:
        refuse(arguments, ONE_SCALE, "has no effect with --super_resolution; leave it out")
    prompts = read_prompts(arguments)
    options = {name: getattr(arguments, name) for name in (*OPTIONS, "sampler")}
    options |= {"trace": True} if arguments.strip else {}
    conditions = read_conditions(arguments, prompts)
    return draw_task(Asked(pipe, arguments, prompts, conditions, options), two_scales)


def draw_wuerstchen(pipe: Any, arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    """Text-to-image, image-to-image; without a prompt, an image through the stages and back."""
    from paella_jax.pipelines.tasks import CONDITIONS, TASKS, refuse

    others = [name for name in TASKS if name not in ("image", "strength")]
    own = [name for task in TASKS.values() for name in task.own]
    why = "is a task of token predictors; this is a Würstchen run"
    refuse(arguments, (*others, *CONDITIONS, *own, "sampler", "strip"), why)
    prompts, options = read_prompts(arguments), {n: getattr(arguments, n) for n in OPTIONS}
    image = None if arguments.image is None else pipe.read(arguments.image)
    if image is not None and not prompts:
        return pipe.reconstruct(image[None], seed=arguments.seed), [Path(arguments.image).name]
    if image is not None:
        strength = 0.6 if arguments.strength is None else arguments.strength
        options |= {"image": image, "strength": strength}
    size = {"height": arguments.height, "width": arguments.width, "stepper": arguments.stepper}
    titles = [prompt for prompt in prompts for _ in range(arguments.num_images_per_prompt)]
    return pipe.generate(prompts, **size, **options), titles


def main() -> int:
    """Parses the command line, samples and writes."""
    arguments = parse()
    if Path(arguments.out).suffix.lower() in IMAGE_FILES:
        raise ValueError(f"--out {arguments.out} must be a .png grid, a .gif or a folder")
    setup_jax()

    from paella_jax.images.write import save_images, save_strip
    from paella_jax.pipelines.load import load

    names = ("offload", "super_resolution", "decoder")
    loading = {name: getattr(arguments, name) for name in names if getattr(arguments, name)}
    pipe = load(arguments.checkpoint, **loading)
    result, titles = draw(pipe, arguments)
    if arguments.strip:
        save_strip(Path(arguments.out), pipe.strip(result), titles)
    else:
        save_images(Path(arguments.out), result.images, titles)
    print(f"wrote {arguments.out} ({len(result.images)} images)")
    return 0


if __name__ == "__main__":
    run(main)
