"""A request of the page -> a call of a pipeline; no other file knows how those are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from paella_jax.config import UserError
from paella_jax.pipelines.gallery import png_texts
from paella_jax.pipelines.prompts import Condition
from paella_jax.serving.limits import IMAGE, INPAINT, OUTPAINT, TEXT, VARIATIONS, Ask

MOST_PREVIEWS = 16  # of one drawing about; each decodes all images

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
    if hasattr(pipe, "stage_b") and pipe.stage_c is None:
        raise UserError("it is a Stage B, which draws nothing from text: give its Stage C")
    varies = getattr(networks, "image_encoder", None) is not None
    # Würstchen as diffusers has it brings no compressor, and so reads no images.
    over_images = [IMAGE, INPAINT, OUTPAINT] if getattr(pipe, "can_encode", True) else []
    return [TEXT, *over_images, *([VARIATIONS] if varies else [])]


def draw(pipe: Any, ask: Ask, on_step: OnStep) -> Drawn:
    """Draws what is asked for.

    Args:
      pipe: from `paella_jax.load`.
      ask: checked.
      on_step: called while it draws, and with the last step.

    Raises:
      ValueError: (PromptError, ImageError) a request that this run cannot draw.
    """
    steps = ask.steps or pipe.defaults.get("num_steps") or 1
    every = -(-steps // MOST_PREVIEWS)
    images = pipe(callback=on_step, callback_every=every, **arguments(pipe, ask))
    for image, record in zip(images, images.records(), strict=True):
        image.info |= png_texts(record)  # a file that is saved from the page says what it is
    return Drawn(list(images), images.stopped)


def arguments(pipe: Any, ask: Ask) -> dict[str, Any]:
    """What a pipeline is called with."""
    own: dict[str, Any] = {
        "prompt": ask.prompt,
        "negative_prompt": ask.negative,
        "seed": ask.seed,
        "num_images_per_prompt": ask.count,
        "num_steps": ask.steps,
        "guidance_scale": ask.guidance,
        "height": ask.height,
        "width": ask.width,
    }
    if ask.task == IMAGE:
        return own | {"image": ask.image, "strength": ask.strength}
    if ask.task == INPAINT:
        return own | {"image": ask.image, "mask": ask.mask}
    if ask.task == VARIATIONS and ask.image is not None:
        return own | {"prompt": Condition(prompt=ask.prompt, images=(ask.image,))}
    if ask.task == OUTPAINT:
        image, marked = canvas(pipe, ask)
        return own | {
            "image": image,
            "mask": marked,
            "height": image.height,
            "width": image.width,
        }
    return own


def check_canvas(pipe: Any, ask: Ask, most_side: int) -> None:
    """Raises ValueError where outpainting's margins make a larger canvas than is drawn here.

    Args:
      pipe: of the request.
      ask: checked.
      most_side: pixels; a run's own size is drawn however large it is.
    """
    if ask.task != OUTPAINT or _only_side(pipe):
        return
    default = pipe.size_of(None, None)[0]
    top, bottom, left, right = _margins(pipe, ask)
    size, most = (default + top + bottom, default + left + right), max(most_side, default)
    if max(size) > most:
        raise ValueError(
            f"the image and its margins make {size[0]}x{size[1]} pixels, the most is {most} a "
            "side: add less"
        )


def _only_side(pipe: Any) -> int:
    """Both sides of a run's images where it draws one size; 0 where sizes are free."""
    sizes = getattr(pipe, "sizes", None)
    return getattr(sizes, "only_side", getattr(sizes, "side", 0))


def _margins(pipe: Any, ask: Ask) -> list[int]:
    """What is added at the top, bottom, left and right of an image of the run's size, in pixels."""
    default, sizes = pipe.size_of(None, None)[0], getattr(pipe, "sizes", None)
    # Würstchen's sizes are Stage B's; of two scales there is one size, with margins of any width.
    divisor = pipe.stage_b.size_divisor if sizes is None else getattr(sizes, "divisor", 1)
    return [divisor * round(default * m / divisor) for m in ask.margins]


def canvas(pipe: Any, ask: Ask) -> tuple[Image.Image, np.ndarray]:
    """The image inside of its margins, and the mask that marks them.

    A run that draws any size gets a larger canvas, whose sides are multiples of what it needs. One
    that draws a single size gets a square canvas of that size with the image in it, smaller.

    Returns:
      The image of the canvas's size, its margins filled with the nearest pixels; bool
      [height, width].
    """
    default, only = pipe.size_of(None, None)[0], _only_side(pipe)
    top, bottom, left, right = _margins(pipe, ask)
    height, width = default + top + bottom, default + left + right
    if only:
        side = max(height, width)
        top, left = top + (side - height) // 2, left + (side - width) // 2
        scale = only / side
        inner, top, left = (max(1, round(x * scale)) if x else 0 for x in (default, top, left))
        bottom, right = only - inner - top, only - inner - left
    else:
        inner = default
    assert ask.image is not None  # `limits.check` has seen to that
    pixels = np.asarray(ImageOps.fit(ask.image, (inner, inner), Image.Resampling.LANCZOS))
    border = ((top, bottom), (left, right))
    filled = np.pad(pixels, (*border, (0, 0)), mode="edge")
    marked = np.pad(np.zeros((inner, inner), bool), border, constant_values=True)
    return Image.fromarray(filled), marked
