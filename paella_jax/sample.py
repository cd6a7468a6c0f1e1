"""Draw images: `python -m paella_jax.sample --checkpoint RUN --prompt "..." --out grid.png`.

Without further flags this is text-to-image. One of these flags chooses an image task:
  --image FILE --strength 0.6              draw the prompt over the image
  --image FILE --mask FILE                 draw the mask's white part anew
  --image FILE --outpaint 0,0,32,32        add pixels: top,bottom,left,right
  --image FILE --morph 8                   keep the layout: enter a run of twice the steps here
  --image FILE --edit 100 [--mask FILE]    draw some tokens again in each of 100 rounds
  --like FILE [--like FILE ...]            variations of one image, or a mix of several
  --mix "PROMPT" [--mix ...]               mix further prompts in; --weights 0.5,0.5 or columns
  --between FILE --between FILE            a strip from one image to another by their embeddings
  --to "PROMPT" --frames 8                 a strip from the prompt to another (.gif for a movie)
  --prior RUN                              add the image embedding a CLIP prior draws for the prompt
and --emphasis "PHRASE=1.5", --label N, --segmentation FILE add conditions to the prompt.

An --image of any size is scaled to cover the size that is drawn (--height and --width, else that of
the training images) and cut to its middle, its mask with it. --outpaint adds to an image of that
size. Pixels outside of a mask or of the margins stay the scaled image's own.

--out FILE.png holds the image itself, or several side by side; with --captions in frames, enlarged
and with their prompts. The prompt, the seed and all settings are in the file's texts.
--prompts FILE --out FOLDER draws one image per line of text, or per row of a .jsonl, .csv or .tsv
(columns: prompt, and if wanted negative_prompt, seed, file, height, width, num_steps,
guidance_scale, temperature), each with a seed of its own, and a line in manifest.jsonl. The same
call goes on where it was stopped.
--best_of 16 --score_with FOLDER keeps the image of 16 that a CLIP model finds to fit best.
--strip writes the intermediate steps as well: a row per image, or a .gif.
--super_resolution RUN enlarges what is drawn (text-to-image, --mix, --mask, --outpaint, --edit).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paella_jax.cli import Parser, path, run, setup_jax
from paella_jax.outside import say

OPTIONS = ("negative_prompt", "num_images_per_prompt", "num_steps", "guidance_scale",
           "temperature", "seed", "batch_size")  # fmt: skip
# Flags that hold paths, of which a file's texts have the last names alone.
PATHS = ("checkpoint", "prompts", "out", "score_with", "super_resolution", "decoder", "image",
         "mask", "like", "between", "prior", "segmentation")  # fmt: skip


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--checkpoint", type=path, required=True, help="run folder")
    parser.add_argument("--prompt", action="append", default=[], help="may be given several times")
    parser.add_argument("--prompts", metavar="FILE", type=path, help="a prompt per line or row")
    parser.add_argument("--negative_prompt", default="")
    parser.add_argument("--out", type=path, default="grid.png", help=".png, .gif, or a folder")
    parser.add_argument("--captions", action="store_true", help="frames and prompts in a .png")
    parser.add_argument("--num_images_per_prompt", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=64, help="images drawn at once, at most")
    parser.add_argument("--best_of", type=int, metavar="N", help="keep the best of N images")
    parser.add_argument("--score_with", type=path, metavar="FOLDER", help="CLIP or PickScore model")
    parser.add_argument("--cut_long_prompts", action="store_true", help="instead of refusing them")
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--num_steps", type=int)
    parser.add_argument("--guidance_scale", type=float)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sampler", choices=("random", "confidence"), help="default: the run's")
    parser.add_argument("--strip", action="store_true", help="show the intermediate steps")
    parser.add_argument("--super_resolution", type=path, metavar="RUN", help="run that enlarges")
    parser.add_argument("--decoder", type=path, metavar="RUN", help="tokenizer run that decodes")
    tasks = parser.add_argument_group("image tasks")
    tasks.add_argument("--image", type=path, metavar="FILE")
    tasks.add_argument("--strength", type=float)
    tasks.add_argument("--mask", type=path, metavar="FILE")
    tasks.add_argument("--outpaint", metavar="TOP,BOTTOM,LEFT,RIGHT")
    tasks.add_argument("--morph", type=int, metavar="STEP")
    tasks.add_argument("--edit", type=int, metavar="ROUNDS")
    tasks.add_argument("--share", type=float, help="of the tokens, per round; default 0.08")
    tasks.add_argument("--top_k", type=int, help="draw among as many tokens; default 3")
    tasks.add_argument("--like", type=path, action="append", default=[], metavar="FILE")
    tasks.add_argument("--mix", action="append", default=[], metavar="PROMPT")
    tasks.add_argument("--weights", help="of --prompt and every --mix; or columns, rows: parts")
    tasks.add_argument("--between", type=path, action="append", default=[], metavar="FILE")
    tasks.add_argument("--to", metavar="PROMPT")
    tasks.add_argument("--frames", type=int, default=8, help="of --to, --between, --edit --strip")
    tasks.add_argument("--prior", type=path, help="run folder of configs/clip_prior.py")
    tasks.add_argument("--emphasis", action="append", default=[], metavar="PHRASE=FACTOR")
    tasks.add_argument("--label", type=int)
    tasks.add_argument("--segmentation", type=path, metavar="FILE", help=".npy or grey image")
    stages = parser.add_argument_group("Würstchen")
    stages.add_argument("--stepper", help="of Stage C: ddpm, ddim or dpm++")
    stages.add_argument("--offload", action="store_true", help="one stage on the device at a time")
    return parser.parse_args()


def read_emphasis(arguments: argparse.Namespace) -> dict[str, float]:
    """{phrase: factor} of --emphasis. Raises ValueError where one is of another form."""
    from paella_jax.pipelines.tasks import numbers

    emphasis = {}
    for text in arguments.emphasis:
        phrase, equals, factor = text.rpartition("=")
        if not equals or not phrase.strip() or "," in factor:
            raise ValueError(f"--emphasis {text!r} must be PHRASE=FACTOR, e.g. 'red circle=1.5'")
        emphasis[phrase] = numbers(factor, "emphasis")[0]
    return emphasis


def read_conditions(arguments: argparse.Namespace, prompts: Sequence[str]) -> list[Any]:
    """One condition per prompt, with the flags that add to a prompt."""
    from paella_jax.images.read import read_classes
    from paella_jax.pipelines.prompts import Condition

    emphasis, given = read_emphasis(arguments), arguments.segmentation
    segmentation = read_classes(given) if given else None
    if not prompts and (arguments.like or arguments.label is not None or given):
        prompts = [""]
    return [
        Condition(prompt, label=arguments.label, segmentation=segmentation, emphasis=dict(emphasis))
        for prompt in prompts
    ]


def conditions_of_rows(arguments: argparse.Namespace) -> Any:
    """A function (pipeline, rows) -> what is drawn for them."""
    from paella_jax.pipelines.wuerstchen import WuerstchenPipeline

    prior = None
    if arguments.prior:
        from paella_jax.families.clip_prior import load_clip_prior

        prior = load_clip_prior(arguments.prior)

    def conditions(pipe: Any, rows: Sequence[Any]) -> list[Any]:
        prompts = [row.prompt for row in rows]
        if isinstance(pipe, WuerstchenPipeline):
            return prompts
        asked = read_conditions(arguments, prompts)
        if prior is None:
            return asked
        from paella_jax.pipelines.variations import with_prior

        return with_prior(pipe, prior, asked, seed=[row.seed for row in rows])

    return conditions


def draw(pipe: Any, arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    """Runs the task the flags ask for; returns the generation and its images' titles.

    Raises:
      ValueError: flags that do not go together, or not with this pipeline.
    """
    from paella_jax.pipelines.rows_by_flags import rows_of
    from paella_jax.pipelines.tasks import Asked, draw_task
    from paella_jax.pipelines.two_scale import TwoScalePipeline
    from paella_jax.pipelines.wuerstchen import WuerstchenPipeline

    if isinstance(pipe, WuerstchenPipeline):
        return draw_wuerstchen(pipe, arguments)
    rows = list(rows_of(arguments)) if arguments.prompts else []
    prompts = [*arguments.prompt, *(row.prompt for row in rows)]
    options = {name: getattr(arguments, name) for name in (*OPTIONS, "sampler")}
    if rows:
        options |= {"seed": [row.seed for row in rows]}
        options |= {"negative_prompt": [row.negative_prompt for row in rows]}
    options |= {"trace": True} if arguments.strip else {}
    conditions = read_conditions(arguments, prompts)
    prompts = prompts or [condition.prompt for condition in conditions]  # a label alone has none
    asked = Asked(pipe, arguments, prompts, conditions, options)
    return draw_task(asked, isinstance(pipe, TwoScalePipeline))


def draw_wuerstchen(pipe: Any, arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    """Text-to-image, image-to-image; without a prompt, an image through the stages and back."""
    from paella_jax.pipelines.given_image import read_given

    prompts, options = arguments.prompt, {n: getattr(arguments, n) for n in OPTIONS}
    size = {"height": arguments.height, "width": arguments.width, "stepper": arguments.stepper}
    if arguments.image is not None and not prompts:
        image = pipe.read(arguments.image)
        return pipe.reconstruct(image[None], seed=arguments.seed), [Path(arguments.image).name]
    if arguments.image is not None:
        strength = 0.6 if arguments.strength is None else arguments.strength
        fitted = read_given(
            pipe, arguments.image, None, pipe.size_of(size["height"], size["width"])
        )
        options |= {"image": fitted.pixels, "strength": strength}
    titles = [prompt for prompt in prompts for _ in range(arguments.num_images_per_prompt)]
    return pipe.generate(prompts, **size, **options), titles


def draw_task_to_files(pipe: Any, arguments: argparse.Namespace) -> int:
    """Runs an image task, or draws the steps, and writes; returns the number of images."""
    import numpy as np

    from paella_jax.images.write import save_images, save_strip
    from paella_jax.pipelines.tasks import given_image

    out, captions = Path(arguments.out), arguments.captions
    result, titles = draw(pipe, arguments)
    texts = texts_of_task(arguments)
    if arguments.strip:
        shown = pipe.strip(result, batch_size=arguments.batch_size)
        given = given_image(pipe, arguments)
        shown = shown if given is None else np.stack([given.keep(images) for images in shown])
        save_strip(out, shown, titles, captions, texts)
    else:
        save_images(out, result.images, titles, captions=captions, texts=texts)
    return len(result.images)


def texts_of_task(arguments: argparse.Namespace) -> dict[str, str]:
    """What a PNG of an image task or of steps says of itself: prompts, seeds and the flags."""
    from paella_jax.pipelines.rows_by_flags import rows_of

    rows = list(rows_of(arguments)) if arguments.prompts else []
    given = {name: x for name, x in vars(arguments).items() if _is_given(x)}
    record = given | {name: last_names(given[name]) for name in PATHS if name in given}
    if rows:
        own = ("prompt", "negative_prompt", "seed")
        record["images"] = [{name: getattr(row, name) for name in own} for row in rows]
    asked = record.get("images") or [
        {"negative_prompt": arguments.negative_prompt, "seed": arguments.seed}
    ]
    each = lambda name: dict.fromkeys(str(one[name]) for one in asked)
    return {
        "prompt": "\n".join([row.prompt for row in rows] or arguments.prompt),
        "negative_prompt": "\n".join(each("negative_prompt")),
        "seed": ", ".join(each("seed")),
        "record": json.dumps(record),
    }


def last_names(paths: Any) -> Any:
    """A path's last name, or those of several: nobody need know where the files lay."""
    return [Path(path).name for path in paths] if isinstance(paths, list) else Path(paths).name


def _is_given(value: Any) -> bool:
    """Whether a flag says something: zero does, as a label or a strength."""
    return value is not None and value is not False and value not in ("", [])


def main() -> int:
    """Parses the command line, samples and writes."""
    arguments = parse()
    setup_jax()

    from paella_jax.convert.found import run_folder
    from paella_jax.pipelines.flag_checks import check_flags, check_run, draws_rows
    from paella_jax.pipelines.rows_by_flags import check_rows, draw_by_flags

    check_flags(arguments)
    read_emphasis(arguments)
    count = check_rows(arguments)
    arguments.checkpoint = str(run_folder(arguments.checkpoint)[0])  # may be a long download
    check_run(arguments)

    from paella_jax.pipelines.load import load

    names = ("offload", "super_resolution", "decoder")
    loading = {name: getattr(arguments, name) for name in names if getattr(arguments, name)}
    pipe = load(arguments.checkpoint, **loading)
    if draws_rows(arguments):
        drawn = draw_by_flags(pipe, arguments, count, conditions_of_rows(arguments))
    else:
        drawn = draw_task_to_files(pipe, arguments)
    new = "new " if arguments.prompts else ""
    say(f"wrote {arguments.out} ({drawn} {new}{'image' if drawn == 1 else 'images'})")
    return 0


if __name__ == "__main__":
    run(main)
