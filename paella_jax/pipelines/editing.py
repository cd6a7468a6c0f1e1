"""Image tasks that keep something of an image: each turns it into arguments of the one sampler.

Tokens to keep, a start level and resampling settings are all there is; nothing here loops over
steps (docs/models/paella.md 4.2). The functions that take any pipeline work on two scales as well:
the same pixels are drawn anew in both, and everything else stays (docs/models/muse.md 1.7).

Images are of a size that the run draws, and what is returned is what was decoded. The call
`pipe(prompt, image=..., mask=...)` and the flags of `sample` fit images of any size and put the
pixels back that are kept (given_image.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paella_jax.images.read import ImageLike
from paella_jax.pipelines.base import Generation
from paella_jax.pipelines.batches import numbered
from paella_jax.pipelines.geometry import keep_unmasked
from paella_jax.pipelines.presets import STRENGTH, edit_settings, needs_tokens, start_options
from paella_jax.pipelines.prompts import Condition
from paella_jax.pipelines.tokens import TokenPipeline
from paella_jax.pipelines.two_scale import TwoScalePipeline
from paella_jax.pipelines.windows import (
    is_larger,
    needs_windows,
    only_prompt,
    outpaint_windows,
)
from paella_jax.sampling.schedule import first_and_last, linear_ramp

AnyScale = TokenPipeline | TwoScalePipeline
RAMPS = ("guidance_scale", "temperature")
ROUNDS = ("rounds", "share", "top_k", *RAMPS)  # settings of mask-free editing


def encode_image(pipe: AnyScale, image: ImageLike) -> tuple[np.ndarray, dict[str, Any]]:
    """An image -> its tokens.

    Args:
      pipe: from `paella_jax.load`.
      image: of a size that it draws.

    Returns:
      int32 [1, h, w], of the small image where there are two scales; and the arguments of
      `generate` that ask for the image's size.

    Raises:
      ImageError: unusable image, or sides that do not fit.
    """
    pixels = pipe.read(image)
    height, width = pixels.shape[:2]
    pipe.sizes.check_image(height, width)
    return pipe.scales[0].encode(pixels[None]), pipe.sizes.options(height, width)


def image_to_image(
    pipe: TokenPipeline,
    image: ImageLike,
    prompt: str | Condition,
    *,
    strength: float = STRENGTH,
    **options: Any,
) -> Generation:
    """Draws the prompt over an image.

    Args:
      pipe: from `paella_jax.load`.
      image: of a size that the network draws.
      prompt: what to draw.
      strength: fraction of the tokens corrupted at the start (of the steps run, for a masked
        network's confidence sampler): 0 returns the image's own tokens, 1 is text-to-image. Where
        the run has `sampler.image_guidance`, it says how loud the prompt is in between.
      **options: of `TokenPipeline.generate`.

    Raises:
      ImageError, ValueError: unusable image, strength outside [0, 1].

    Example:
      >>> image_to_image(pipe, "photo.png", "a red circle", strength=0.4).images
    """
    needs_tokens(pipe, "image_to_image")
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength must be in [0, 1], got {strength}")
    tokens, size = encode_image(pipe, image)
    if strength == 0.0:
        copies = len(numbered([0], options.get("num_images_per_prompt", 1)).seeds)
        tokens = np.repeat(tokens, copies, axis=0)
        return Generation(pipe.decode(tokens), tokens, None)
    start = start_options(pipe.config, pipe.settings(options.get("sampler")), strength)
    given = {name: value for name, value in options.items() if value is not None}
    return pipe.generate([prompt], image_tokens=tokens, **size, **(start | given))


def inpaint(
    pipe: AnyScale, image: ImageLike, mask: ImageLike, prompt: str | Condition, **options: Any
) -> Generation:
    """Draws the masked part of an image anew; every other token stays as it is.

    A token is drawn where the mask touches any of its pixels. diffusers' aMUSEd inpaints with the
    linear schedule (docs/models/muse.md 2.7): `schedule="linear"` does the same here.

    Args:
      pipe: from `paella_jax.load`, of one scale or two.
      image: of a size that it draws.
      mask: of the same size; white or True is drawn anew.
      prompt: describes the whole image.
      **options: of the pipeline's `generate`.

    Raises:
      ImageError: unusable image, a mask of another size, one that marks nothing or everything.

    Example:
      >>> inpaint(pipe, "photo.png", "mask.png", "a red circle").images
    """
    needs_tokens(pipe, "inpaint", two_scales=True)
    return pipe.generate([prompt], **keep_unmasked(pipe, image, mask), **options)


def outpaint(
    pipe: AnyScale,
    image: ImageLike,
    prompt: str | Condition | Sequence[str | Condition],
    *,
    top: int = 0,
    bottom: int = 0,
    left: int = 0,
    right: int = 0,
    windows: bool | None = None,
    **options: Any,
) -> Generation:
    """Puts an image on a larger canvas and draws what is around it.

    A network with position vectors repeats a prompt's places on a canvas larger than its training
    images. There it draws windows of the trained size, each half over what is there already
    (windows.py), and a prompt describes a window with what it sees of the image. So "a circle at
    the bottom left and a square at the top right" is right for a window whose left half shows the
    image's circle.

    Args:
      pipe: from `paella_jax.load`, of one scale or two.
      image: its tokens stay as they are. With the margins it must make a size that is drawn; with
        one scale its own sides must be multiples of the token's.
      prompt: describes the whole canvas; of windows all of them, or a list describes each in the
        order of `windows_of`: beside the image to the right and below, then to the left and above.
      top: pixels to add above; with one scale a multiple of the token's side.
      bottom: pixels to add below, likewise.
      left: pixels to add, likewise.
      right: pixels to add, likewise.
      windows: whether to draw in windows; None does where the network has positions and the canvas
        is larger than its training images. Two scales draw their one size.
      **options: of the pipeline's `generate`.

    Raises:
      ImageError, ValueError: unusable image or sizes.

    Example:
      >>> outpaint(pipe, "photo.png", "a red circle at the left", right=16).images
    """
    needs_tokens(pipe, "outpaint", two_scales=True)
    token = pipe.sizes.token
    rule = "" if token == 1 else f"a multiple of {token} of "
    for name, margin in {"top": top, "bottom": bottom, "left": left, "right": right}.items():
        if margin < 0 or margin % token:
            raise ValueError(f"{name} is {margin} pixels; give {rule}at least 0")
    if not any((top, bottom, left, right)):
        raise ValueError("outpainting needs at least one of top, bottom, left and right")
    pixels = pipe.read(image)
    height, width = pixels.shape[:2]
    canvas = (height + top + bottom, width + left + right)
    margins = ((top, bottom), (left, right))
    wanted = needs_windows(pipe) if windows is None else windows
    if wanted and isinstance(pipe, TokenPipeline) and is_larger(pipe, (height, width), canvas):
        return outpaint_windows(pipe, pixels, prompt, margins, **options)
    pipe.sizes.check_canvas((height, width), canvas)
    one = prompt if isinstance(prompt, str | Condition) else only_prompt(prompt)
    return pipe.generate([one], **pipe.keep_inside(pixels, margins), **options)


def edit(
    pipe: AnyScale,
    image: ImageLike,
    prompt: str | Condition,
    *,
    mask: ImageLike | None = None,
    frames: int = 0,
    **options: Any,
) -> Generation:
    """Mask-free editing: changes an image towards a prompt, keeping what already fits it.

    Every round draws a random fraction of the tokens again, given the others and the prompt. A
    network trained with masks sees these tokens masked, one trained with random tokens sees random
    ones. More rounds, or a larger fraction, change more. Of two scales the small image is edited,
    and enlarged once at the end. Source: docs/models/muse.md 1.7.

    Args:
      pipe: from `paella_jax.load`, of any cell.
      image: of a size that it draws.
      prompt: describes the edited image.
      mask: where the image may change (white or True); None is everywhere.
      frames: intermediate states in the result's `trace`, evenly spaced, the last one being the
        result. Of two scales the enlarging steps are returned as well.
      **options: rounds (100), share (0.08) of the tokens that may change, drawn again in a round,
        top_k (3) most probable tokens to draw among, and the rounds' guidance_scale and
        temperature (those of the run's last step), a number or a pair that ramps; others are of
        the pipeline's `generate`.

    Raises:
      ImageError, ValueError: unusable image, mask or setting.

    Example:
      >>> edit(pipe, "photo.png", "a blue circle", rounds=50).images
    """
    needs_tokens(pipe, "edit", two_scales=True)
    own = {name: options.pop(name) for name in ROUNDS if name in options}
    own |= {name: first_and_last(name, own[name]) for name in RAMPS if name in own}
    settings = edit_settings(pipe, **own, frames=frames or None)
    kept: dict[str, Any]
    if mask is None:
        tokens, kept = encode_image(pipe, image)
    else:
        kept = keep_unmasked(pipe, image, mask)
        tokens = kept[pipe.scales[0].known].tokens
    return pipe.generate(
        [prompt],
        image_tokens=tokens,
        resampling=settings,
        trace=frames > 0,
        **kept,
        **options,
    )


def morph(
    pipe: TokenPipeline,
    image: ImageLike,
    prompt: str | Condition,
    *,
    start_step: int | None = None,
    num_steps: int | None = None,
    **options: Any,
) -> Generation:
    """Structural morphing: keeps an image's layout and draws the prompt in it.

    Enters a run of `num_steps` at `start_step` with the image noised to that level, and renoises
    with the tokens of the step before, so that structure carries over. A prompt that says where
    things are decides that itself: give one that does not, or a label.

    Args:
      pipe: from `paella_jax.load`, of a network trained with random tokens.
      image: of a size that it draws.
      prompt: what to draw.
      start_step: a later one keeps more; default a fifth of the steps (published: a third).
      num_steps: default twice the run's.
      **options: of `TokenPipeline.generate`.

    Raises:
      ImageError, ValueError: unusable image, a start outside the run, or a network trained with
        masks, whose noise has no structure.

    Example:
      >>> morph(pipe, "photo.png", Condition(label=2)).images
    """
    needs_tokens(pipe, "morph")
    if pipe.networks.predictor.mask_token is not None:
        raise ValueError(
            "morphing renoises with the tokens of the step before, which only a network trained "
            "with random tokens (cell.corruption=uniform) understands; this one was trained with "
            "masks: use image-to-image"
        )
    num_steps = num_steps or 2 * pipe.settings(options.get("sampler")).num_steps
    start_step = round(num_steps / 5) if start_step is None else start_step
    if not 0 <= start_step < num_steps:
        raise ValueError(f"start_step {start_step} must be in [0, num_steps {num_steps})")
    temperature = options.pop("temperature", None)
    full = pipe.settings(options.get("sampler"), num_steps=num_steps, temperature=temperature)
    ramp = linear_ramp(*full.temperature, num_steps)
    tokens, size = encode_image(pipe, image)
    chosen: dict[str, Any] = {
        "t_start": 1.0 - start_step / num_steps,
        "num_steps": num_steps - start_step,
        "temperature": (float(ramp[start_step]), float(ramp[-1])),
        "renoise_mode": "previous",
    }
    given = {name: value for name, value in options.items() if value is not None}
    return pipe.generate([prompt], image_tokens=tokens, **size, **(chosen | given))
