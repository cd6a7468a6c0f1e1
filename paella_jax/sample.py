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
and --emphasis "PHRASE=1.5", --label N, --segmentation FILE.npy add conditions to the prompt.
--strip writes the intermediate steps as well: a row per picture, or a .gif.
--super_resolution RUN enlarges what is drawn (text-to-image, --mix, --mask, --outpaint, --edit).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paella_jax.cli import run, setup_jax

if TYPE_CHECKING:
    from paella_jax.pipelines.tokens import Generation, TokenPipeline
    from paella_jax.pipelines.two_scale import TwoScaleGeneration, TwoScalePipeline
    from paella_jax.pipelines.wuerstchen import WuerstchenGeneration, WuerstchenPipeline

TASKS = ("image", "like", "between", "to", "mix")
UNUSED = {
    "image": ("height", "width", "prior"),
    "like": ("prior",),
    "between": ("height", "width", "prior", "label", "segmentation", "emphasis"),
    "to": ("prior",),
    "mix": ("prior",),
}
IMAGE_TASKS = ("mask", "outpaint", "morph", "strength", "edit")
ONE_SCALE = ("strength", "morph", "like", "between", "to", "emphasis", "label", "segmentation",
             "prior")  # fmt: skip
NOT_WUERSTCHEN = ("mask", "outpaint", "morph", "edit", "like", "between", "mix", "to", "emphasis",
                  "label", "segmentation", "prior", "weights", "sampler", "share", "top_k",
                  "strip")  # fmt: skip
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
    parser.add_argument("--super_resolution", metavar="RUN", help="run that enlarges the pictures")
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
    tasks.add_argument("--segmentation", metavar="FILE.npy")
    stages = parser.add_argument_group("Würstchen")
    stages.add_argument("--stepper", help="of Stage C: ddpm, ddim or dpm++")
    stages.add_argument("--offload", action="store_true", help="one stage on the device at a time")
    return parser.parse_args()


def numbers(text: str, name: str, kind: type = float) -> list[Any]:
    """Comma-separated numbers. Raises ValueError naming the flag."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--{name} {text!r} is not a list of numbers with commas") from None


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
    import numpy as np

    from paella_jax.pipelines.prompts import Condition

    emphasis = {}
    for text in arguments.emphasis:
        phrase, equals, factor = text.rpartition("=")
        if not equals:
            raise ValueError(f"--emphasis {text!r} must be PHRASE=FACTOR, e.g. 'red circle=1.5'")
        emphasis[phrase] = numbers(factor, "emphasis")[0]
    segmentation = None
    if arguments.segmentation:
        try:
            segmentation = np.load(arguments.segmentation, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"--segmentation {arguments.segmentation}: {error}") from None
    if not prompts and (arguments.like or arguments.label is not None or arguments.segmentation):
        prompts = [""]
    return [
        Condition(prompt, label=arguments.label, segmentation=segmentation, emphasis=dict(emphasis))
        for prompt in prompts
    ]


def given(arguments: argparse.Namespace, name: str) -> bool:
    """Whether a flag was given; 0 counts, although `0 == False`."""
    value = getattr(arguments, name)
    return value is not None and value is not False and value != []


def check_flags(arguments: argparse.Namespace) -> str | None:
    """The one image task that the flags ask for.

    Raises:
      ValueError: several tasks, or a flag that the task does not use.
    """
    tasks = [name for name in TASKS if given(arguments, name)]
    if len(tasks) > 1:
        raise ValueError(f"give one of {', '.join('--' + name for name in tasks)}, not several")
    chosen = [name for name in IMAGE_TASKS if given(arguments, name)]
    if chosen and tasks != ["image"]:
        raise ValueError("--mask, --outpaint, --morph, --strength and --edit need --image FILE")
    if len(chosen) > 1 and chosen != ["mask", "edit"]:
        raise ValueError(f"give one of {', '.join('--' + name for name in chosen)}, not several")
    for name in ("share", "top_k"):
        if given(arguments, name) and arguments.edit is None:
            raise ValueError(f"--{name} belongs to --edit")
    if arguments.weights and tasks != ["mix"]:
        raise ValueError("--weights belongs to --mix")
    task = tasks[0] if tasks else None
    for name in UNUSED[task] if task else ():
        if given(arguments, name):
            raise ValueError(f"--{name} has no effect with --{task}; leave it out")
    return task


def token_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What every task of a token predictor passes on to its pipeline."""
    options = {name: getattr(arguments, name) for name in (*OPTIONS, "sampler")}
    return options | ({"trace": True} if arguments.strip else {})


def edit_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of mask-free editing, without those that were not given."""
    options = token_options(arguments)
    if options.pop("trace", False):
        options["frames"] = min(arguments.frames, arguments.edit)
    options |= {"mask": arguments.mask, "rounds": arguments.edit}
    options |= {"share": arguments.share, "top_k": arguments.top_k}
    return {name: value for name, value in options.items() if value is not None}


def draw(pipe: TokenPipeline, arguments: argparse.Namespace) -> tuple[Generation, list[str]]:
    """Runs the task the flags ask for; returns the pictures and their titles."""
    from paella_jax.pipelines import editing

    prompts = read_prompts(arguments)
    options = token_options(arguments)
    size = {"height": arguments.height, "width": arguments.width}
    copies = arguments.num_images_per_prompt
    conditions = read_conditions(arguments, prompts)
    task = check_flags(arguments)
    if task in ("image", "like", "to", "mix") and len(conditions) != 1:
        raise ValueError(f"this task takes one --prompt, got {len(conditions)}")
    if arguments.image:
        return _draw_over(pipe, arguments, conditions[0], options), prompts * copies
    if arguments.like:
        images = [editing.read_image(file) for file in arguments.like]
        return editing.variations(pipe, images, conditions[0], **size, **options), [
            f"like {', '.join(Path(f).name for f in arguments.like)} {' '.join(prompts)}"
        ] * copies
    if arguments.between:
        if len(arguments.between) != 2:
            raise ValueError(f"--between needs two images, got {len(arguments.between)}")
        options.pop("num_images_per_prompt")
        strip = editing.interpolate_images(
            pipe, *arguments.between, prompt=" ".join(prompts), frames=arguments.frames, **options
        )
        names = [Path(file).name for file in arguments.between]
        return strip, [names[0], *[""] * (arguments.frames - 2), names[1]]
    if arguments.to:
        options.pop("num_images_per_prompt")
        strip = editing.interpolate(
            pipe, conditions[0], arguments.to, frames=arguments.frames, **size, **options
        )
        first = conditions[0].prompt or "the condition"
        return strip, [first, *[""] * (arguments.frames - 2), arguments.to]
    if arguments.mix:
        weights = numbers(arguments.weights, "weights") if arguments.weights else None
        mixed = [[conditions[0], *arguments.mix]]
        title = " + ".join([*prompts, *arguments.mix])
        return pipe.generate(mixed, weights=weights, **size, **options), [title] * copies
    titles = [c.prompt for c in conditions for _ in range(copies)]
    if arguments.prior:
        from paella_jax.families.clip_prior import load_clip_prior

        prior = load_clip_prior(arguments.prior)
        conditions = editing.with_prior(pipe, prior, conditions, seed=arguments.seed)
    return pipe.generate(conditions, **size, **options), titles


def draw_wuerstchen(
    pipe: WuerstchenPipeline, arguments: argparse.Namespace
) -> tuple[WuerstchenGeneration, list[str]]:
    """Text-to-image, image-to-image; without a prompt, an image through the stages and back."""
    from paella_jax.pipelines import editing

    for name in NOT_WUERSTCHEN:
        if given(arguments, name):
            raise ValueError(f"--{name} is a task of token predictors; this is a Würstchen run")
    prompts, options = read_prompts(arguments), {n: getattr(arguments, n) for n in OPTIONS}
    image = None if arguments.image is None else editing.read_image(arguments.image)
    if image is not None and not prompts:
        return pipe.reconstruct(image[None], seed=arguments.seed), [Path(arguments.image).name]
    if image is not None:
        strength = 0.6 if arguments.strength is None else arguments.strength
        options |= {"image": image, "strength": strength}
    size = {"height": arguments.height, "width": arguments.width, "stepper": arguments.stepper}
    titles = [prompt for prompt in prompts for _ in range(arguments.num_images_per_prompt)]
    return pipe.generate(prompts, **size, **options), titles


def _draw_over(
    pipe: TokenPipeline, arguments: argparse.Namespace, condition: Any, options: dict[str, Any]
) -> Generation:
    from paella_jax.pipelines import editing

    if arguments.edit is not None:
        from paella_jax.pipelines.mask_free_editing import edit

        return edit(pipe, arguments.image, condition, **edit_options(arguments))
    if arguments.mask:
        return editing.inpaint(pipe, arguments.image, arguments.mask, condition, **options)
    if arguments.outpaint:
        return editing.outpaint(pipe, arguments.image, condition, **margins(arguments), **options)
    if arguments.morph is not None:
        given_steps = options.pop("num_steps")
        steps = 24 if given_steps is None else given_steps
        return editing.morph(
            pipe,
            arguments.image,
            condition,
            start_step=arguments.morph,
            num_steps=steps,
            **{name: value for name, value in options.items() if value is not None},
        )
    strength = 0.6 if arguments.strength is None else arguments.strength
    return editing.image_to_image(pipe, arguments.image, condition, strength=strength, **options)


def margins(arguments: argparse.Namespace) -> dict[str, int]:
    """Of --outpaint. Raises ValueError where they are not four whole numbers."""
    sides = numbers(arguments.outpaint, "outpaint", int)
    if len(sides) != 4:
        raise ValueError(f"--outpaint {arguments.outpaint!r} needs TOP,BOTTOM,LEFT,RIGHT")
    return dict(zip(("top", "bottom", "left", "right"), sides, strict=True))


def draw_two_scales(
    pipe: TwoScalePipeline, arguments: argparse.Namespace
) -> tuple[TwoScaleGeneration, list[str]]:
    """Text-to-image, mixing, inpainting, outpainting and editing with two runs."""
    from paella_jax.pipelines import two_scale_editing

    for name in ONE_SCALE:
        if given(arguments, name):
            raise ValueError(f"--{name} has no effect with --super_resolution; leave it out")
    task, prompts = check_flags(arguments), read_prompts(arguments)
    copies, options = arguments.num_images_per_prompt, token_options(arguments)
    if task and len(prompts) != 1:
        raise ValueError(f"this task takes one --prompt, got {len(prompts)}")
    image, titles = arguments.image, [prompt for prompt in prompts for _ in range(copies)]
    if arguments.edit is not None:
        options = edit_options(arguments)
        return two_scale_editing.edit(pipe, image, prompts[0], **options), titles
    if arguments.mask:
        drawn = two_scale_editing.inpaint(pipe, image, arguments.mask, prompts[0], **options)
        return drawn, titles
    if arguments.outpaint:
        options |= margins(arguments)
        return two_scale_editing.outpaint(pipe, image, prompts[0], **options), titles
    if image:
        raise ValueError("--image with --super_resolution needs --mask, --outpaint or --edit")
    options |= {"height": arguments.height, "width": arguments.width}
    if arguments.mix:
        weights = numbers(arguments.weights, "weights") if arguments.weights else None
        mixed = [[*prompts, *arguments.mix]]
        return pipe.generate(mixed, weights=weights, **options), [" + ".join(mixed[0])] * copies
    return pipe.generate(prompts, **options), titles


def write_strip(out: Path, strip: Any, titles: list[str]) -> None:
    """Writes pictures [steps, count, H, W, 3]: a row of steps each, or all of them in a movie."""
    import numpy as np

    steps = strip.shape[0]
    by_picture = strip.swapaxes(0, 1)
    if out.suffix.lower() == ".gif":
        write(out, np.concatenate(list(by_picture), axis=2), titles)
        return
    names = [f"{title} ({step})" for title in titles for step in range(1, steps + 1)]
    write(out, by_picture.reshape(-1, *strip.shape[2:]), names, columns=steps)


def write(out: Path, images: Any, titles: list[str], columns: int | None = None) -> None:
    """Writes a grid (.png), a movie (.gif) or a folder of single images."""
    from PIL import Image

    from paella_jax.images.write import save_gif, save_grid, to_uint8

    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix.lower() == ".gif":
        save_gif(out, images)
    elif out.suffix.lower() == ".png":
        save_grid(out, images, titles, columns=columns)
    else:
        out.mkdir(exist_ok=True)
        for index, image in enumerate(to_uint8(images)):
            Image.fromarray(image).save(out / f"{index:05d}.png")
        (out / "prompts.txt").write_text("\n".join(titles) + "\n", encoding="utf-8")


def main() -> int:
    """Parses the command line, samples and writes."""
    arguments = parse()
    if Path(arguments.out).suffix.lower() in IMAGE_FILES:
        raise ValueError(f"--out {arguments.out} must be a .png grid, a .gif or a folder")
    setup_jax()

    from paella_jax.pipelines import two_scale_editing
    from paella_jax.pipelines.load import load
    from paella_jax.pipelines.tokens import TokenPipeline
    from paella_jax.pipelines.two_scale import TwoScalePipeline

    names = ("offload", "super_resolution", "decoder")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name)}
    pipe: Any = load(arguments.checkpoint, **given)
    two_scales = isinstance(pipe, TwoScalePipeline)
    if arguments.stepper and (two_scales or isinstance(pipe, TokenPipeline)):
        raise ValueError("--stepper belongs to Würstchen runs; this is a token predictor")
    one_scale = draw if isinstance(pipe, TokenPipeline) else draw_wuerstchen
    paint: Any = draw_two_scales if two_scales else one_scale
    result, titles = paint(pipe, arguments)
    if arguments.strip:
        strip = two_scale_editing.strip(pipe, result) if two_scales else pipe.strip(result)
        write_strip(Path(arguments.out), strip, titles)
    else:
        write(Path(arguments.out), result.images, titles)
    print(f"wrote {arguments.out} ({len(result.images)} images)")
    return 0


if __name__ == "__main__":
    run(main)
