"""What `pipe(...)` does around `generate`: names, checks, the image and mask, seeds, the result."""

from __future__ import annotations

import difflib
import inspect
import secrets
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from PIL import Image

from paella_jax.images.write import to_uint8
from paella_jax.pipelines.drawn_images import Images
from paella_jax.pipelines.given_image import read_given
from paella_jax.pipelines.presets import STRENGTH
from paella_jax.pipelines.prompt_embeds import PromptEmbeds
from paella_jax.pipelines.records import is_whole, records
from paella_jax.pipelines.watch import Watch
from paella_jax.sampling.parallel_decode import ParallelDecodeSettings
from paella_jax.sampling.renoise_settings import RenoiseSettings

# What other libraries call an argument -> ours.
OTHER_NAMES = {
    "num_inference_steps": "num_steps",
    "num_images": "num_images_per_prompt",
    "guidance": "guidance_scale",
    "mask_image": "mask",
}
NOT_HERE = {
    "generator": "give seed, a whole number: an image then depends on nothing else of the call",
    "eta": "give stepper, 'ddpm' or 'ddim'",
    "callback_on_step_end": "give callback, called as (step, total, images)",
    "return_dict": "the result is always a list of images with .prompts, .seeds and .settings",
}
OUTPUT_TYPES = ("pil", "np", "tokens", "latents")
FURTHER = ("batch_size", "trace", "sampler")  # of every `generate`, without a place in a call
LIKE = 0.8  # as a typing error is; arguments of other kinds of runs are alike by 0.7
MOST_IMAGES = 65_536
MOST_STEPS = 10_000
LARGEST_SIDE = 16_384
DEFAULTS: dict[str, Any] = {
    "prompt": None,
    "negative_prompt": "",
    "prompt_embeds": None,
    "image": None,
    "mask": None,
    "strength": None,
    "height": None,
    "width": None,
    "num_steps": None,
    "guidance_scale": None,
    "temperature": None,
    "seed": 0,
    "num_images_per_prompt": 1,
    "output_type": "pil",
    "progress": False,
    "callback": None,
    "callback_every": 1,
}


def answer(
    pipe: Any, asked: Mapping[str, Any], options: Mapping[str, Any], rehearse: bool = False
) -> Any:
    """The result of a call.

    Args:
      pipe: the pipeline.
      asked: all arguments of `Pipeline.__call__`, by name.
      options: the further ones.
      rehearse: compiles everything and runs no step.
    """
    asked, options = rename(asked, options)
    check_names(pipe, options)
    check(asked | {"batch_size": 1, "trace": False} | dict(options))
    kind = asked["output_type"]
    if kind in ("tokens", "latents") and kind != pipe.beside:
        told = f"this run draws {pipe.beside}, not {kind}; give output_type={pipe.beside!r}"
        raise ValueError(told)
    size = pipe.size_of(asked["height"], asked["width"])
    if asked["seed"] is None:
        asked["seed"] = secrets.randbits(32)
    elif getattr(asked["seed"], "ndim", None) == 0:  # of numpy, or of jax
        asked["seed"] = asked["seed"].item()
    shared = ("num_steps", "guidance_scale", "temperature", "seed", "num_images_per_prompt")
    drawing = {name: asked[name] for name in (*shared, "height", "width")} | options
    prompt = asked["prompt_embeds"]
    if prompt is None:
        prompt = asked["prompt"] = _own(asked["prompt"])
        drawing["negative_prompt"] = asked["negative_prompt"]
    given = None
    if asked["image"] is not None:
        if options.get("t_start") is not None:
            raise ValueError("with an image give strength, not t_start")
        pipe.check_prompt(prompt)
        given = read_given(pipe, asked["image"], asked["mask"], size)
        strength = asked["strength"] or (STRENGTH if given.marked is None else 1.0)
        drawing |= {"height": size[0], "width": size[1]}
        sampler = options.get("sampler")
        start = pipe.from_image(given, float(strength), _count(prompt), sampler)
        if asked["guidance_scale"] is None:
            asked["guidance_scale"] = start.get("guidance_scale")
        drawing |= start | {"guidance_scale": asked["guidance_scale"]}
        asked["strength"] = strength
    keeps = given is not None and given.marked is not None
    draw = getattr(pipe, "generate_around", pipe.generate) if keeps else pipe.generate
    watch = Watch(asked["callback"], asked["callback_every"], asked["progress"], rehearse)
    with watch:
        result = draw(prompt, watch=watch, **drawing)
    if kind == pipe.beside:
        return pipe.arrays(result)
    images = result.images if given is None else given.keep(result.images)
    if kind in ("np", "array"):
        return images
    pictures = [Image.fromarray(image) for image in to_uint8(images)]
    drawn_from = records(pipe, asked, options, drawing)

    def steps() -> np.ndarray:
        """The images after every step; drawn again where the result has no trace."""
        again = {**drawing, "trace": True}
        traced = result if result.trace is not None else draw(prompt, **again)
        shown = pipe.steps_of(traced, prompt, drawing)
        return shown if given is None else np.stack([given.keep(images) for images in shown])

    return Images(pictures, drawn_from, result, watch.stopped, steps)


def rename(
    asked: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same with our names. Raises ValueError for two names of one argument, or one of theirs
    that has no equal here."""
    asked, left = dict(asked), dict(options)
    for theirs, ours in OTHER_NAMES.items():
        if theirs in left:
            own, usual = asked[ours], DEFAULTS[ours]
            if own is not usual and (isinstance(own, np.ndarray) or own != usual):
                raise ValueError(f"{theirs} and {ours} are the same; give one of them")
            asked[ours] = left.pop(theirs)
    for name, instead in NOT_HERE.items():
        if name in left:
            raise ValueError(f"there is no argument {name!r}: {instead}")
    return asked, left


def check_names(pipe: Any, options: Mapping[str, Any]) -> None:
    """Raises ValueError for a further argument that is mistyped; of others `generate` decides."""
    of_samplers = (*fields(RenoiseSettings), *fields(ParallelDecodeSettings))
    known = {*DEFAULTS, *OTHER_NAMES, *FURTHER, *(field.name for field in of_samplers)}
    known |= {*pipe.defaults, *inspect.signature(pipe.generate).parameters}
    for name in options:
        close = [] if name in known else difflib.get_close_matches(name, sorted(known), 1, LIKE)
        if close:
            raise ValueError(f"there is no argument {name!r} (did you mean {close[0]!r}?)")


def check(asked: Mapping[str, Any]) -> None:
    """Raises ValueError for an argument of a wrong type or range, or that lacks another."""
    negative = asked["negative_prompt"]
    if not isinstance(negative, str | list | tuple | None):
        kind = type(negative).__name__
        raise ValueError(f"negative_prompt is of type {kind}; give a text or a list of texts")
    if (asked["prompt"] is None) == (asked["prompt_embeds"] is None):
        raise ValueError("give a prompt or prompt_embeds (one of them); pipe('a red circle')")
    if asked["prompt_embeds"] is not None and asked["negative_prompt"]:
        raise ValueError(
            "prompt_embeds hold their negative prompts: give those to pipe.embed(prompts, "
            "negative_prompt=...)"
        )
    embeds = asked["prompt_embeds"]
    if not isinstance(embeds, PromptEmbeds | None):
        raise ValueError(
            f"prompt_embeds are of type {type(embeds).__name__}; give what pipe.embed(prompts) made"
        )
    kind = asked["output_type"]
    if not isinstance(kind, str) or kind not in (*OUTPUT_TYPES, "array"):
        raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {kind!r}")
    for name in ("mask", "strength"):
        if asked[name] is not None and asked["image"] is None:
            raise ValueError(f"{name} goes with image; give the image too")
    _whole(asked, "num_images_per_prompt", 1, MOST_IMAGES)
    _whole(asked, "batch_size", 1, MOST_IMAGES)
    _whole(asked, "num_steps", 1, MOST_STEPS, optional=True)
    _whole(asked, "callback_every", 1, MOST_STEPS)
    _whole(asked, "height", 0, LARGEST_SIDE, optional=True)
    _whole(asked, "width", 0, LARGEST_SIDE, optional=True)
    strength = asked["strength"]
    number = isinstance(strength, int | float | np.number) and not isinstance(strength, bool)
    if strength is not None and not (number and 0.0 < strength <= 1.0):
        raise ValueError(f"strength must be in (0, 1], got {strength!r}")
    if asked["callback"] is not None and not callable(asked["callback"]):
        raise ValueError(
            f"callback is of type {type(asked['callback']).__name__}; give a function of (step, "
            "total, images)"
        )
    for name in ("progress", "trace"):
        if not isinstance(asked[name], bool):
            raise ValueError(f"{name} must be True or False, got {asked[name]!r}")


def _whole(
    asked: Mapping[str, Any], name: str, least: int, most: int, optional: bool = False
) -> None:
    value = asked[name]
    if optional and value is None:
        return
    if not is_whole(value) or not least <= value <= most:
        raise ValueError(f"{name}={value!r} must be a whole number from {least} to {most}")


def _own(prompt: Any) -> Any:
    """The prompts as they are now: steps may be drawn again after a caller has changed a list."""
    return list(prompt) if isinstance(prompt, list) else prompt


def _count(prompt: Any) -> int:
    """How many prompts there are; what is no list is one."""
    one = isinstance(prompt, str) or not hasattr(prompt, "__len__")
    return 1 if one else len(prompt)
