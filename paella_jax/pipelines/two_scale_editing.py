"""Image tasks at two scales: first on the small picture, then on the large one given the small.

The same pixels are drawn anew in both; everything else stays (docs/models/muse.md 1.7).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paella_jax.images.read import ImageError, ImageLike, read_image
from paella_jax.pipelines.editing import read_masked, touched
from paella_jax.pipelines.mask_free_editing import Range, resample_settings
from paella_jax.pipelines.prompts import Condition
from paella_jax.pipelines.two_scale import TwoScaleGeneration, TwoScalePipeline
from paella_jax.sampling.token_loop import Known


def inpaint(
    pipe: TwoScalePipeline,
    image: ImageLike,
    mask: ImageLike,
    prompt: str | Condition,
    **options: Any,
) -> TwoScaleGeneration:
    """Draws the masked part of an image anew; every other token of both scales stays as it is.

    A token is drawn where the mask (white or True) touches any of its pixels.

    Args:
      pipe: two runs.
      image: of the pipeline's size.
      mask: of the same size.
      prompt: describes the whole picture.
      **options: of `TwoScalePipeline.generate`.

    Raises:
      ImageError: unusable image, a mask of another size, one that marks nothing or everything.
    """
    low, high = keep_unmasked(pipe, image, mask)
    return pipe.generate([prompt], known=low, super_resolution_known=high, **options)


def keep_unmasked(pipe: TwoScalePipeline, image: ImageLike, mask: ImageLike) -> tuple[Known, Known]:
    """An image's small and large tokens, to be drawn anew where the mask touches their pixels.

    Raises:
      ImageError: unusable image, a mask of another size, one that marks nothing or everything.
    """
    pixels, marked = read_masked(image, mask)
    _check_size(pipe, pixels)
    networks: Any = pipe.super_resolution.networks
    low, high = (touched(marked, (n, n)) for n in (networks.low_grid, networks.predictor.grid))
    if low.all():
        cell = pipe.side // networks.low_grid
        raise ImageError(
            f"the mask touches every cell of {cell}x{cell} pixels, so nothing of the small picture "
            "would stay; use text-to-image instead"
        )
    return (
        Known(pipe.encode_low(pixels[None]), low[None]),
        Known(pipe.super_resolution.encode(pixels[None]), high[None]),
    )


def edit(
    pipe: TwoScalePipeline,
    image: ImageLike,
    prompt: str | Condition,
    *,
    mask: ImageLike | None = None,
    rounds: int = 100,
    share: float = 0.08,
    top_k: int = 3,
    guidance_scale: Range = 4.0,
    temperature: Range = 1.0,
    frames: int = 0,
    **options: Any,
) -> TwoScaleGeneration:
    """Mask-free editing of the small picture, enlarged once at the end (docs/models/muse.md 1.7).

    Args:
      pipe: two runs.
      image: of the pipeline's size.
      prompt: describes the edited picture.
      mask: where the image may change; None is everywhere.
      rounds: as in `mask_free_editing.edit`. So are share, top_k, guidance_scale, temperature and
        frames; they are the small picture's.
      share: see above.
      top_k: see above.
      guidance_scale: see above.
      temperature: see above.
      frames: see above; with any, the enlarging steps are returned as well.
      **options: of `TwoScalePipeline.generate`.

    Raises:
      ImageError, ValueError: unusable image, mask or setting.
    """
    settings = resample_settings(rounds, share, top_k, guidance_scale, temperature, frames)
    kept: dict[str, Any] = {}
    if mask is None:
        pixels = read_image(image)
        _check_size(pipe, pixels)
        tokens = pipe.encode_low(pixels[None])
    else:
        low, high = keep_unmasked(pipe, image, mask)
        tokens = np.asarray(low.tokens)
        kept = {"known": low, "super_resolution_known": high}
    return pipe.generate(
        [prompt], image_tokens=tokens, resampling=settings, trace=frames > 0, **kept, **options
    )


def _check_size(pipe: TwoScalePipeline, pixels: np.ndarray) -> None:
    """Raises ImageError for an image of another size than the pipeline's."""
    if pixels.shape[:2] != (pipe.side, pipe.side):
        raise ImageError(
            f"the image is {pixels.shape[0]}x{pixels.shape[1]} pixels (height x width); resize or "
            f"crop it to {pipe.side}x{pipe.side}, the only size of these runs"
        )


def outpaint(
    pipe: TwoScalePipeline,
    image: ImageLike,
    prompt: str | Condition,
    *,
    top: int = 0,
    bottom: int = 0,
    left: int = 0,
    right: int = 0,
    **options: Any,
) -> TwoScaleGeneration:
    """Puts an image on a larger canvas and draws what is around it.

    The transformers have one size, so image and margins together must have it. Tokens at the
    image's border see the margin, where its outermost pixels are repeated.

    Args:
      pipe: two runs.
      image: smaller than the pipeline's size; its tokens stay, but for small cells that a margin
        touches.
      prompt: describes the whole canvas.
      top: pixels to add. So are bottom, left and right.
      bottom: pixels.
      left: pixels.
      right: pixels.
      **options: of `TwoScalePipeline.generate`.

    Raises:
      ImageError, ValueError: unusable image or sizes.
    """
    margins = {"top": top, "bottom": bottom, "left": left, "right": right}
    for name, margin in margins.items():
        if margin < 0:
            raise ValueError(f"{name} is {margin} pixels; give at least 0")
    if not any(margins.values()):
        raise ValueError("outpainting needs at least one of top, bottom, left and right")
    pixels = read_image(image)
    border = ((top, bottom), (left, right))
    marked = np.pad(np.zeros(pixels.shape[:2], bool), border, constant_values=True)
    if marked.shape != (pipe.side, pipe.side):
        raise ImageError(
            f"the image of {pixels.shape[0]}x{pixels.shape[1]} pixels (height x width) and its "
            f"margins make {marked.shape[0]}x{marked.shape[1]}; these runs draw {pipe.side}x"
            f"{pipe.side} only: resize the image or change the margins"
        )
    return inpaint(pipe, np.pad(pixels, (*border, (0, 0)), mode="edge"), marked, prompt, **options)


def strip(pipe: TwoScalePipeline, generation: TwoScaleGeneration) -> np.ndarray:
    """The pictures after every step of both scales, of a generation with a trace.

    Returns:
      float32 [steps, count, side, side, 3] in [0, 1]; the small pictures' pixels are repeated.

    Raises:
      ValueError: no trace.
    """
    small, large = pipe.base.strip(generation.low), pipe.super_resolution.strip(generation)
    places = np.arange(pipe.side) * small.shape[2] // pipe.side
    return np.concatenate([small[:, :, places][:, :, :, places], large])
