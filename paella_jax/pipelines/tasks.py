"""The image tasks of token predictors by name: what each does, needs and leaves unused.

A task is asked for by a flag of `python -m paella_jax.sample` and reads that command's flags.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paella_jax.families.clip_prior import load_clip_prior
from paella_jax.pipelines import editing, variations
from paella_jax.pipelines.given_image import GivenImage, fit_image, read_given
from paella_jax.pipelines.presets import STRENGTH
from paella_jax.pipelines.prompts import Condition

CONDITIONS = ("emphasis", "label", "segmentation", "prior")  # flags that add to a prompt


class Asked(NamedTuple):
    """What the flags say.

    Attributes:
      pipe: one run, or a base with its super-resolution.
      flags: all of them, by attribute.
      prompts: the texts.
      conditions: the same with what flags add to them.
      options: of `generate`, without the size.
      given: the image in the size that is drawn, of a task over one (`given_image`).
    """

    pipe: Any
    flags: Any
    prompts: list[str]
    conditions: list[Condition]
    options: dict[str, Any]
    given: Any = None  # a GivenImage where the task is over one

    @property
    def size(self) -> dict[str, Any]:
        """The options of a task that leaves the size free."""
        return {"height": self.flags.height, "width": self.flags.width}

    @property
    def strip(self) -> dict[str, Any]:
        """The options of a task that draws one strip of frames."""
        options = {**self.options, "frames": self.flags.frames}
        return {name: x for name, x in options.items() if name != "num_images_per_prompt"}

    @property
    def chosen(self) -> dict[str, Any]:
        """The options that are not left to the task's defaults."""
        return {name: value for name, value in self.options.items() if value is not None}

    def copies(self, titles: list[str]) -> list[str]:
        """Titles of the prompts -> those of their images."""
        return [title for title in titles for _ in range(self.flags.num_images_per_prompt)]


Drawn = tuple[Any, list[str]]  # a generation and its images' titles


def text_to_image(asked: Asked) -> Drawn:
    """Draws the conditions, each with the embedding of a prior where there is one."""
    conditions = asked.conditions
    titles = asked.copies([condition.prompt for condition in conditions])
    if asked.flags.prior:
        prior = load_clip_prior(asked.flags.prior)
        conditions = variations.with_prior(
            asked.pipe, prior, conditions, seed=asked.options["seed"]
        )
    return asked.pipe.generate(conditions, **asked.size, **asked.options), titles


def image_to_image(asked: Asked) -> Drawn:
    """Draws over the image."""
    pipe, flags, prompts, (condition,), options, given = asked
    strength = STRENGTH if flags.strength is None else flags.strength
    drawn = editing.image_to_image(pipe, given.pixels, condition, strength=strength, **options)
    return drawn, asked.copies(prompts)


def inpaint(asked: Asked) -> Drawn:
    """Draws the masked part anew."""
    pipe, _, prompts, (condition,), options, given = asked
    drawn = editing.inpaint(pipe, given.pixels, given.marked, condition, **options)
    return drawn, asked.copies(prompts)


def outpaint(asked: Asked) -> Drawn:
    """Draws around the image."""
    pipe, flags, prompts, (condition,), options, given = asked
    margins = numbers(flags.outpaint, "outpaint", int)
    sides = dict(zip(("top", "bottom", "left", "right"), margins, strict=True))
    image = given.pixels[np.ix_(*((~given.marked).any(axis) for axis in (1, 0)))]
    drawn = editing.outpaint(pipe, image, condition, **sides, **options)
    return drawn, asked.copies(prompts)


def morph(asked: Asked) -> Drawn:
    """Keeps the layout, from step --morph of twice the run's steps on, or of --num_steps."""
    pipe, flags, prompts, (condition,), _, given = asked
    drawn = editing.morph(pipe, given.pixels, condition, start_step=flags.morph, **asked.chosen)
    return drawn, asked.copies(prompts)


def edit(asked: Asked) -> Drawn:
    """Draws some tokens again in each of --edit rounds, where --mask allows it."""
    pipe, flags, prompts, (condition,), _, given = asked
    options = asked.chosen | {"mask": given.marked}
    if options.pop("trace", False):
        options["frames"] = min(flags.frames, flags.edit)
    for name in ("share", "top_k"):
        if getattr(flags, name) is not None:
            options[name] = getattr(flags, name)
    drawn = editing.edit(pipe, given.pixels, condition, rounds=flags.edit, **options)
    return drawn, asked.copies(prompts)


def vary(asked: Asked) -> Drawn:
    """Draws what has the content of the images --like."""
    pipe, flags, prompts, (condition,), options, _ = asked
    drawn = variations.variations(pipe, flags.like, condition, **asked.size, **options)
    names = ", ".join(Path(file).name for file in flags.like)
    return drawn, asked.copies([f"like {names} {' '.join(prompts)}"])


def between(asked: Asked) -> Drawn:
    """A strip from one image to another."""
    files, frames = asked.flags.between, asked.flags.frames
    prompt = " ".join(asked.prompts)
    drawn = variations.interpolate_images(asked.pipe, *files, prompt=prompt, **asked.strip)
    first, last = (Path(file).name for file in files)
    return drawn, [first, *[""] * (frames - 2), last]


def towards(asked: Asked) -> Drawn:
    """A strip from the prompt to another."""
    pipe, flags, _, (first,), *_ = asked
    drawn = variations.interpolate(pipe, first, flags.to, **asked.size, **asked.strip)
    return drawn, [first.prompt or "the condition", *[""] * (flags.frames - 2), flags.to]


def mix(asked: Asked) -> Drawn:
    """Mixes further prompts in."""
    pipe, flags, prompts, (first,), options, _ = asked
    conditions = [first, *flags.mix]
    if flags.weights in variations.PARTS:
        parts = {"along": flags.weights} | asked.size | options
        drawn = variations.mix_parts(pipe, conditions, **parts)
    else:
        weights = numbers(flags.weights, "weights") if flags.weights else None
        drawn = pipe.generate([conditions], weights=weights, **asked.size, **options)
    return drawn, asked.copies([" + ".join([*prompts, *flags.mix])])


class Task(NamedTuple):
    """What the flag of a task asks for.

    Attributes:
      draw: does it.
      over_image: whether --image must be given as well.
      own: further flags that only this task takes.
      unused: flags that have no effect with it.
      two_scales: whether it works with --super_resolution.
      one_prompt: whether it takes a single prompt.
    """

    draw: Callable[[Asked], Drawn]
    over_image: bool = False
    own: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    two_scales: bool = False
    one_prompt: bool = True


TASKS = {
    "image": Task(image_to_image, unused=("prior",), two_scales=True),
    "like": Task(vary, unused=("prior",)),
    "between": Task(between, unused=("height", "width", *CONDITIONS), one_prompt=False),
    "to": Task(towards, unused=("prior",)),
    "mix": Task(mix, own=("weights",), unused=("prior",), two_scales=True),
    "mask": Task(inpaint, over_image=True, two_scales=True),
    "outpaint": Task(outpaint, over_image=True, two_scales=True),
    "morph": Task(morph, over_image=True),
    "strength": Task(image_to_image, over_image=True),
    "edit": Task(edit, over_image=True, own=("share", "top_k"), two_scales=True),
}


# Flags that --super_resolution leaves without effect.
ONE_SCALE = (*(name for name, task in TASKS.items() if not task.two_scales), *CONDITIONS)


def draw_task(asked: Asked, two_scales: bool) -> Drawn:
    """Does what the flags ask for; returns a generation and its images' titles.

    Every pixel of an image that a mask or the margins do not mark is put back, as a call does.

    Raises:
      ValueError: flags that do not go together, or not with this pipeline.
    """
    name = chosen_task(asked.flags)
    if name is None:
        return text_to_image(asked)
    count = len(asked.conditions)
    if TASKS[name].one_prompt and count != 1:
        raise ValueError(f"this task takes one --prompt, got {count}")
    if two_scales and name == "image":
        raise ValueError("--image with --super_resolution needs --mask, --outpaint or --edit")
    given = given_image(asked.pipe, asked.flags)
    drawn, titles = TASKS[name].draw(asked._replace(given=given))
    images = drawn.images if given is None else given.keep(drawn.images)
    return drawn._replace(images=images), titles


def given_image(pipe: Any, flags: Any) -> GivenImage | None:
    """--image and --mask in the size that is drawn, as a call fits them; None without an image.

    With --outpaint the canvas, of which the margins are marked.

    Raises:
      ImageError, ValueError: an unusable image or mask, or a size that is not drawn.
    """
    if not flags.image:
        return None
    if not flags.outpaint:
        size = pipe.size_of(flags.height, flags.width)
        return read_given(pipe, flags.image, flags.mask, size)
    margins = numbers(flags.outpaint, "outpaint", int)
    top, bottom, left, right = (max(margin, 0) for margin in margins)  # `outpaint` refuses others
    border = ((top, bottom), (left, right))
    image = fit_image(pipe.read(flags.image), _size_inside(pipe, flags, border))
    marked = np.pad(np.zeros(image.shape[:2], bool), border, constant_values=True)
    return GivenImage(np.pad(image, (*border, (0, 0)), mode="edge"), marked)


def _size_inside(pipe: Any, flags: Any, border: Any) -> tuple[int, int]:
    """Of the image that --outpaint puts on a canvas: --height and --width, the size that the run
    draws, or of two scales, which draw canvases of that size alone, what the margins leave."""
    default = pipe.size_of(None, None)
    if hasattr(pipe, "base"):
        default = tuple(side - sum(both) for side, both in zip(default, border, strict=True))
    size = (flags.height or default[0], flags.width or default[1])
    if min(size) < 1:
        raise ValueError(f"--outpaint {flags.outpaint} leaves nothing of the image: add less")
    return size


def chosen_task(flags: Any) -> str | None:
    """The name of the one task that the flags ask for.

    Raises:
      ValueError: several tasks, or a flag that the task does not use.
    """
    asked = [name for name in TASKS if is_given(flags, name)]
    tasks = [name for name in asked if not TASKS[name].over_image]
    parts = [name for name in asked if TASKS[name].over_image]
    if len(tasks) > 1:
        raise ValueError(f"give one of {', '.join('--' + name for name in tasks)}, not several")
    if parts and tasks != ["image"]:
        raise ValueError("--mask, --outpaint, --morph, --strength and --edit need --image FILE")
    if len(parts) > 1 and parts != ["mask", "edit"]:
        raise ValueError(f"give one of {', '.join('--' + name for name in parts)}, not several")
    for owner, task in TASKS.items():
        if owner not in asked:
            refuse(flags, task.own, f"belongs to --{owner}")
    for name in tasks:
        refuse(flags, TASKS[name].unused, f"has no effect with --{name}; leave it out")
    return asked[-1] if asked else None


def refuse(flags: Any, names: tuple[str, ...], why: str) -> None:
    """Raises ValueError for the first of these flags that was given."""
    for name in names:
        if is_given(flags, name):
            raise ValueError(f"--{name} {why}")


def is_given(flags: Any, name: str) -> bool:
    """Whether a flag was given; 0 counts, although `0 == False`."""
    value = getattr(flags, name)
    return value is not None and value is not False and value != []


def numbers(text: str, name: str, kind: type = float, words: Sequence[str] = ()) -> list[Any]:
    """Comma-separated numbers. Raises ValueError naming the flag, and words it takes instead."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        other = f", and none of {', '.join(words)}" if words else ""
        raise ValueError(f"--{name} {text!r} is not a list of numbers with commas{other}") from None
