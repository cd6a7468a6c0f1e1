"""A request of the page -> a call of a pipeline: the only file that knows how pipelines are asked.

Images and masks of any size become those of the size that is drawn: scaled to cover it, and cut in
the middle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from paella_jax.config import UserError
from paella_jax.images.write import to_uint8
from paella_jax.pipelines import editing
from paella_jax.pipelines.prompts import Condition
from paella_jax.serving.limits import IMAGE, INPAINT, OUTPAINT, TEXT, VARIATIONS, Ask

MOST_PREVIEWS = 16  # of one drawing; with more steps some are left out

# (steps done, of how many, the images so far) -> False to stop
OnStep = Callable[[int, int, list[Image.Image]], bool]


class Drawn(NamedTuple):
    """The images, and whether they were stopped before they were finished."""

    images: list[Image.Image]
    stopped: bool


def tasks_of(pipe: Any) -> list[str]:
    """What a loaded run can do of `limits.TASKS`.

    Raises:
      UserError: nothing, as it draws no images from text.
    """
    networks = getattr(pipe, "networks", None)
    if getattr(networks, "low_vqgan", None) is not None:
        raise UserError("it enlarges small images: give it as --super_resolution of its base")
    if hasattr(pipe, "stage_b"):
        if pipe.stage_c is None:
            raise UserError("it is a Stage B, which draws nothing from text: give its Stage C")
        return [TEXT, IMAGE]
    if not hasattr(pipe, "networks"):  # of two scales
        return [TEXT, INPAINT, OUTPAINT]
    varies = getattr(networks, "image_encoder", None) is not None
    return [TEXT, IMAGE, INPAINT, OUTPAINT, *([VARIATIONS] if varies else [])]


def draw(pipe: Any, ask: Ask, on_step: OnStep) -> Drawn:
    """Draws what is asked for.

    Args:
      pipe: from `paella_jax.load`.
      ask: checked.
      on_step: called while it draws, and once with the last step.

    Raises:
      ValueError: (PromptError, ImageError) a request that this run cannot draw.
    """
    options: dict[str, Any] = {
        "negative_prompt": ask.negative,
        "seed": ask.seed,
        "num_images_per_prompt": ask.count,
        "num_steps": ask.steps,
        "guidance_scale": ask.guidance,
        "trace": True,
    }
    if ask.task == IMAGE:
        image = cover(ask.image, own_size(pipe, ask))
        result = editing.image_to_image(pipe, image, ask.prompt, strength=ask.strength, **options)
    elif ask.task == INPAINT:
        size = own_size(pipe, ask)
        image, mask = cover(ask.image, size), cover_mask(ask.mask, size)
        result = editing.inpaint(pipe, image, mask, ask.prompt, **options)
    elif ask.task == OUTPAINT:
        image, mask = canvas(pipe, ask)
        result = editing.inpaint(pipe, image, mask, ask.prompt, **options)
    else:
        size = {"height": ask.height, "width": ask.width}
        result = pipe.generate([_condition(ask)], **size, **options)
    states = list(pipe._states(result))
    for number, state in enumerate(states, 1):
        on_step(number, len(states), to_images(state))
    return Drawn(to_images(result.images), False)


def _condition(ask: Ask) -> str | Condition:
    if ask.task == VARIATIONS:
        return Condition(prompt=ask.prompt, images=(ask.image,))
    return ask.prompt


def to_images(images: np.ndarray) -> list[Image.Image]:
    """float [count, height, width, 3] in [0, 1] -> PIL images."""
    return [Image.fromarray(image) for image in to_uint8(images)]


def own_size(pipe: Any, ask: Ask) -> tuple[int, int]:
    """Height and width of what is drawn: those asked for, or the run's own."""
    default = pipe.config.data.image_size
    return ask.height or default, ask.width or default


def cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image scaled to cover a size (height, width), and cut in the middle."""
    return ImageOps.fit(image.convert("RGB"), size[::-1], Image.Resampling.LANCZOS)


def cover_mask(mask: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """A mask that follows its image through `cover`: bool [height, width], True if any is."""
    fitted = ImageOps.fit(mask.convert("L"), size[::-1], Image.Resampling.BOX)
    return np.asarray(fitted) > 0


def canvas(pipe: Any, ask: Ask) -> tuple[Image.Image, np.ndarray]:
    """The image inside of its margins, and the mask that marks them.

    A run that draws any size gets a larger canvas, whose sides are multiples of what it needs. One
    that draws a single size gets a square canvas of that size with the image in it, smaller.

    Returns:
      The image of the canvas's size, its margins filled with the nearest pixels; bool
      [height, width].
    """
    default = pipe.config.data.image_size
    divisor = getattr(pipe.sizes, "divisor", 1)
    top, bottom, left, right = (divisor * round(default * m / divisor) for m in ask.margins)
    height, width = default + top + bottom, default + left + right
    only = getattr(pipe.sizes, "only_side", getattr(pipe.sizes, "side", 0))
    if only:
        side = max(height, width)
        top, left = top + (side - height) // 2, left + (side - width) // 2
        scale = only / side
        inner, top, left = (max(1, round(x * scale)) if x else 0 for x in (default, top, left))
        bottom, right = only - inner - top, only - inner - left
    else:
        inner = default
    pixels = np.asarray(cover(ask.image, (inner, inner)))
    border = ((top, bottom), (left, right))
    filled = np.pad(pixels, (*border, (0, 0)), mode="edge")
    marked = np.pad(np.zeros((inner, inner), bool), border, constant_values=True)
    return Image.fromarray(filled), marked
