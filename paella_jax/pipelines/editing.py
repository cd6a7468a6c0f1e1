"""Image tasks: each one turns its inputs into arguments of the one sampler.

Keep-masks, start levels and mixing weights are all there is; nothing here loops over steps.
Facts: docs/models/paella.md 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from paella_jax.families.clip_prior import ClipPriorSampler
from paella_jax.images.read import ImageError, ImageLike, read_image, read_mask
from paella_jax.pipelines.base import image_keys, one_per_prompt
from paella_jax.pipelines.prompts import Condition
from paella_jax.pipelines.tokens import Generation, TokenPipeline
from paella_jax.sampling.schedule import linear_ramp
from paella_jax.sampling.token_loop import Known
from paella_jax.sampling.token_sampler import start_from_image


def encode_image(pipe: TokenPipeline, image: ImageLike, divisor: int | None = None) -> np.ndarray:
    """An image -> its tokens int32 [h, w].

    Args:
      pipe: from `paella_jax.load`.
      image: of a size that the network takes.
      divisor: of its sides instead, for an image that is only a part of what is drawn.

    Raises:
      ImageError: its sides do not fit.
    """
    pixels = read_image(image)
    height, width = pixels.shape[:2]
    side = pipe.only_side if divisor is None else 0
    divisor = pipe.divisor if divisor is None else divisor
    wrong = {height, width} != {side} if side else height % divisor or width % divisor
    if wrong:
        nearest = [side or max(divisor, round(x / divisor) * divisor) for x in (height, width)]
        needed = f"be {side}, this network's only size" if side else f"be multiples of {divisor}"
        raise ImageError(
            f"the image is {height}x{width} pixels (height x width), both must {needed}; resize or "
            f"crop it to {nearest[0]}x{nearest[1]}"
        )
    return pipe.encode(pixels[None])[0]


def image_to_image(
    pipe: TokenPipeline,
    image: ImageLike,
    prompt: str | Condition,
    *,
    strength: float = 0.6,
    **options: Any,
) -> Generation:
    """Draws the prompt over an image.

    Args:
      pipe: from `paella_jax.load`.
      image: of a size that the network draws.
      prompt: what to draw.
      strength: share of the tokens corrupted at the start (of the steps run, for a masked
        network's confidence sampler): 0 returns the image's own tokens, 1 is text-to-image.
      **options: of `TokenPipeline.generate`.

    Raises:
      ImageError, ValueError: unusable image, strength outside [0, 1].
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength must be in [0, 1], got {strength}")
    tokens = encode_image(pipe, image)[None]
    if strength == 0.0:
        copies = len(image_keys([0], options.get("num_images_per_prompt", 1)))
        tokens = np.repeat(tokens, copies, axis=0)
        return Generation(pipe.decode(tokens), tokens, None)
    settings = pipe.settings(sampler=options.get("sampler"))
    start: dict[str, Any] = start_from_image(settings, strength)
    return pipe.generate([prompt], image_tokens=tokens, **size_of(pipe, tokens), **start, **options)


def inpaint(
    pipe: TokenPipeline,
    image: ImageLike,
    mask: ImageLike,
    prompt: str | Condition,
    **options: Any,
) -> Generation:
    """Draws the masked part of an image anew; every other token stays as it is.

    A token is drawn where the mask (white or True) touches any of its pixels. diffusers' aMUSEd
    inpaints with the linear schedule (docs/models/muse.md 2.7): `schedule="linear"` does the same
    here.

    Raises:
      ImageError: unusable image, a mask of another size, one that marks nothing or everything.
    """
    known = keep_unmasked(pipe, image, mask)
    size = size_of(pipe, np.asarray(known.tokens))
    return pipe.generate([prompt], known=known, **size, **options)


def keep_unmasked(pipe: TokenPipeline, image: ImageLike, mask: ImageLike) -> Known:
    """The image's tokens [1, h, w], to be drawn anew where the mask touches any of their pixels.

    Raises:
      ImageError: unusable image, a mask of another size, one that marks nothing or everything.
    """
    pixels, marked = read_masked(image, mask)
    tokens = encode_image(pipe, pixels)
    cell = pipe.networks.vqgan.downsampling
    generate = touched(marked, tokens.shape)
    if generate.all():
        raise ImageError(
            f"the mask touches every cell of {cell}x{cell} pixels, so nothing of the image would "
            "stay; use text-to-image instead"
        )
    return Known(tokens[None], generate[None])


def read_masked(image: ImageLike, mask: ImageLike) -> tuple[np.ndarray, np.ndarray]:
    """Image float32 [height, width, 3] in [0, 1] and mask bool [height, width].

    Raises:
      ImageError: unusable image, a mask of another size, or one that marks nothing.
    """
    pixels, marked = read_image(image), read_mask(mask)
    if marked.shape != pixels.shape[:2]:
        raise ImageError(
            f"the mask is {marked.shape[0]}x{marked.shape[1]} pixels, the image "
            f"{pixels.shape[0]}x{pixels.shape[1]}; make them equal"
        )
    if not marked.any():
        raise ImageError("the mask marks nothing; paint white what is to be drawn anew")
    return pixels, marked


def touched(marked: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """bool [height, width] in pixels -> bool [h, w] (`grid`): tokens with any pixel marked.

    The sides need not divide by the grid; a pixel on a border belongs to both tokens.
    """
    for axis, count in enumerate(grid):
        edges = (np.arange(count + 1) * marked.shape[axis]).tolist()
        spans = [range(a // count, -(-b // count)) for a, b in pairwise(edges)]
        marked = np.stack([marked.take(span, axis).any(axis) for span in spans], axis)
    return marked


def outpaint(
    pipe: TokenPipeline,
    image: ImageLike,
    prompt: str | Condition,
    *,
    top: int = 0,
    bottom: int = 0,
    left: int = 0,
    right: int = 0,
    **options: Any,
) -> Generation:
    """Puts an image on a larger canvas and draws what is around it.

    Args:
      pipe: from `paella_jax.load`.
      image: stays as it is (its tokens do). Its sides must be multiples of the token size; with
        the margins they must make a size that the network draws.
      prompt: describes the whole canvas.
      top: pixels to add, a multiple of the token size. So are bottom, left and right.
      bottom: pixels.
      left: pixels.
      right: pixels.
      **options: of `TokenPipeline.generate`.

    Raises:
      ImageError, ValueError: unusable image or sizes.
    """
    cell = pipe.networks.vqgan.downsampling
    margins = {"top": top, "bottom": bottom, "left": left, "right": right}
    for name, margin in margins.items():
        if margin < 0 or margin % cell:
            raise ValueError(f"{name} is {margin} pixels; give a multiple of {cell} of at least 0")
    if not any(margins.values()):
        raise ValueError("outpainting needs at least one of top, bottom, left and right")
    pixels = read_image(image)
    height, width = pixels.shape[:2]
    _check_canvas(pipe, (height, width), (height + top + bottom, width + left + right))
    tokens = encode_image(pipe, pixels, cell)
    border = ((top // cell, bottom // cell), (left // cell, right // cell))
    generate = np.pad(np.zeros(tokens.shape, bool), border, constant_values=True)
    canvas = np.pad(tokens, border)[None]
    known = Known(canvas, generate[None])
    return pipe.generate([prompt], known=known, **size_of(pipe, canvas), **options)


def _check_canvas(pipe: TokenPipeline, image: tuple[int, int], canvas: tuple[int, int]) -> None:
    """Raises ImageError where an image and its margins make a size that cannot be drawn."""
    side, divisor = pipe.only_side, pipe.divisor
    if side and canvas != (side, side):
        wanted = f"this network draws {side}x{side} only"
    elif not side and (canvas[0] % divisor or canvas[1] % divisor):
        wanted = f"both must be multiples of {divisor}"
    else:
        return
    raise ImageError(
        f"the image of {image[0]}x{image[1]} pixels (height x width) and its margins make "
        f"{canvas[0]}x{canvas[1]}; {wanted}: change the margins or resize the image"
    )


def morph(
    pipe: TokenPipeline,
    image: ImageLike,
    prompt: str | Condition,
    *,
    start_step: int = 8,
    num_steps: int = 24,
    **options: Any,
) -> Generation:
    """Structural morphing: keeps an image's layout and draws the prompt in it.

    Enters a run of `num_steps` at `start_step` with the image noised to that level, and renoises
    with the tokens of the step before, so that structure carries over.

    Raises:
      ImageError, ValueError: unusable image, a start outside the run, or a network trained with
        masks, whose noise has no structure.
    """
    if pipe.networks.predictor.mask_token is not None:
        raise ValueError(
            "morphing renoises with the tokens of the step before, which only a network trained "
            "with random tokens (cell.corruption=uniform) understands; this one was trained with "
            "masks: use image-to-image"
        )
    if not 0 <= start_step < num_steps:
        raise ValueError(f"start_step {start_step} must be in [0, num_steps {num_steps})")
    temperature = options.pop("temperature", None)
    full = pipe.settings(options.get("sampler"), num_steps=num_steps, temperature=temperature)
    ramp = linear_ramp(*full.temperature, num_steps)
    tokens = encode_image(pipe, image)[None]
    chosen: dict[str, Any] = {
        "t_start": 1.0 - start_step / num_steps,
        "num_steps": num_steps - start_step,
        "temperature": (float(ramp[start_step]), float(ramp[-1])),
        "renoise_mode": "previous",
    }
    return pipe.generate(
        [prompt], image_tokens=tokens, **size_of(pipe, tokens), **(chosen | options)
    )


def variations(
    pipe: TokenPipeline,
    images: Sequence[ImageLike],
    prompt: str | Condition = "",
    **options: Any,
) -> Generation:
    """New pictures with the content of one or several images, by their embeddings.

    Raises:
      ImageError, ValueError: unusable images, or a run without an image encoder.
    """
    base = prompt if isinstance(prompt, Condition) else Condition(prompt=prompt)
    pixels = [read_image(image) for image in images]
    return pipe.generate([replace(base, images=tuple(pixels))], **options)


def with_prior(
    pipe: TokenPipeline,
    prior: ClipPriorSampler,
    conditions: Sequence[str | Condition],
    *,
    seed: int | Sequence[int] = 0,
    **options: Any,
) -> list[Condition]:
    """Adds to each condition the image embedding a CLIP prior draws for its text.

    Source: docs/models/paella.md 4.3.

    Args:
      pipe: a run with both CLIP towers.
      prior: from `families.clip_prior.load_clip_prior`.
      conditions: texts, or conditions with a text.
      seed: of the prior's draw, one or one per condition: it depends on nothing else of the call.
      **options: num_steps and guidance_scale of the prior.

    Raises:
      ValueError: a run without CLIP, or a prior of another width.
    """
    given = [c if isinstance(c, Condition) else Condition(prompt=c) for c in conditions]
    keys = image_keys(one_per_prompt(seed, len(given), "seed"), 1)
    embeddings = np.asarray(prior(pipe.embed_texts([c.prompt for c in given]), keys, **options))
    pairs = zip(given, embeddings, strict=True)
    return [replace(c, images=(*c.images, embedding)) for c, embedding in pairs]


def interpolate(
    pipe: TokenPipeline,
    first: str | Condition,
    second: str | Condition,
    *,
    frames: int = 8,
    seed: int = 0,
    **options: Any,
) -> Generation:
    """A strip of pictures from one condition to another, all from the same noise.

    Frame i mixes the two conditions' predictions with weights (1 - a, a), a = i / (frames - 1);
    the ends equal the single conditions' pictures.
    """
    if frames < 2:
        raise ValueError(f"an interpolation needs at least 2 frames, got {frames}")
    share = np.linspace(0.0, 1.0, frames, dtype=np.float32)
    weights = np.stack([1.0 - share, share], axis=1)
    return pipe.generate([[first, second]] * frames, weights=weights, seed=seed, **options)


def interpolate_images(
    pipe: TokenPipeline,
    first: ImageLike,
    second: ImageLike,
    *,
    prompt: str = "",
    frames: int = 8,
    seed: int = 0,
    **options: Any,
) -> Generation:
    """A strip between two images by spherical interpolation of their embeddings."""
    if frames < 2:
        raise ValueError(f"an interpolation needs at least 2 frames, got {frames}")
    ends = [pipe.embed(read_image(image)[None])[0] for image in (first, second)]
    share = np.linspace(0.0, 1.0, frames)
    path = [slerp(ends[0], ends[1], float(a)) for a in share]
    conditions = [Condition(prompt=prompt, images=(vector,)) for vector in path]
    return pipe.generate(conditions, seed=seed, **options)


def slerp(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """Spherical interpolation of two vectors, lengths interpolated linearly; exact at the ends."""
    if share in (0.0, 1.0):
        return second if share else first
    lengths = np.linalg.norm(first), np.linalg.norm(second)
    cosine = np.clip(np.dot(first, second) / max(lengths[0] * lengths[1], 1e-12), -1.0, 1.0)
    angle = np.arccos(cosine)
    if np.sin(angle) < 1e-4:
        return ((1.0 - share) * first + share * second).astype(np.float32)
    length = (1.0 - share) * lengths[0] + share * lengths[1]
    direction = np.sin((1.0 - share) * angle) * first / lengths[0]
    direction = (direction + np.sin(share * angle) * second / lengths[1]) / np.sin(angle)
    return (length * direction).astype(np.float32)


def size_of(pipe: TokenPipeline, tokens: np.ndarray) -> dict[str, Any]:
    """The `height` and `width` in pixels of token maps [count, h, w]."""
    cell = pipe.networks.vqgan.downsampling
    return {"height": tokens.shape[1] * cell, "width": tokens.shape[2] * cell}
