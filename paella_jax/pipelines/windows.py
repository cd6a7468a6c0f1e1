"""Outpainting in windows of the size that a run was trained on.

A network that knows its positions, as small ones do here, repeats a caption's places on a canvas
wider than it was trained on: "bottom left" is wherever a row of trained width could begin. Each
window of the trained size holds its share of what is there already, and its own caption says what
the window shows, so that nothing is asked of the network that it did not learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from paella_jax.images.read import ImageError
from paella_jax.pipelines.base import Generation, Job
from paella_jax.pipelines.batches import child_seeds, numbered
from paella_jax.pipelines.prompts import Condition
from paella_jax.pipelines.tokens import TokenPipeline
from paella_jax.sampling.token_loop import Known

FIRST_CHILD = 2**31 - 3  # number of an image key's child for the first window, then downwards


class Window(NamedTuple):
    """A part of a canvas, in tokens or in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def place(self) -> tuple[slice, slice]:
        """The part of an array [height, width]."""
        rows = slice(self.top, self.top + self.height)
        return rows, slice(self.left, self.left + self.width)


def needs_windows(pipe: Any) -> bool:
    """Whether a run draws no canvas larger than its training images as one: it has positions."""
    sizes, networks = getattr(pipe, "sizes", None), getattr(pipe, "networks", None)
    if networks is None:
        return False
    predictor = networks.predictor
    network = getattr(predictor, "network", predictor)  # a U-ViT is wrapped
    return bool(getattr(sizes, "only_side", 0) or getattr(network, "positions", False))


def windows_of(canvas: tuple[int, int], kept: Window, side: tuple[int, int]) -> list[Window]:
    """The windows that cover a canvas around what is kept, in the order in which they are drawn.

    Along an axis that is longer than a window they move on by half of one, so that half of each is
    there already; the last one ends at the border.

    Args:
      canvas: height and width.
      kept: the image's place on it.
      side: height and width of a window.

    Returns:
      In the canvas's unit; those beside the image come before those across its corners.
    """
    axes = [
        _starts(length, begin, begin + size, span)
        for length, begin, size, span in zip(
            canvas, (kept.top, kept.left), (kept.height, kept.width), side, strict=True
        )
    ]
    height, width = (min(a, b) for a, b in zip(canvas, side, strict=True))
    found = [Window(top, left, height, width) for top, left in product(*axes)]
    beyond = lambda window: (window.top != axes[0][0]) + (window.left != axes[1][0])
    ordered = sorted(found, key=beyond)  # stable: nearer ones stay before farther ones
    drawn, windows = np.zeros(canvas, bool), []
    drawn[kept.place] = True
    for window in ordered:
        if not drawn[window.place].all():
            windows.append(window)
            drawn[window.place] = True
    return windows


def _starts(length: int, begin: int, end: int, span: int) -> list[int]:
    """Where windows begin along an axis: first the one around the image, then outwards."""
    last = max(length - span, 0)
    starts = [min(max((begin + end - span) // 2, 0), last)]
    step = max(span // 2, 1)
    right = [min(end + step * k - span, last) for k in range(1, -(-(length - end) // step) + 1)]
    left = [max(begin - step * k, 0) for k in range(1, -(-begin // step) + 1)]
    for start in (*right, *left):
        start = min(max(start, 0), last)
        if start not in starts:
            starts.append(start)
    return starts


def outpaint_windows(
    pipe: TokenPipeline,
    pixels: np.ndarray,
    prompts: str | Condition | Sequence[str | Condition],
    margins: tuple[tuple[int, int], tuple[int, int]],
    **options: Any,
) -> Generation:
    """Draws what is around an image, window by window.

    Args:
      pipe: from `paella_jax.load`.
      pixels: float32 [height, width, 3], of whole tokens.
      prompts: of every window, or one for each in their order (`windows_of`).
      margins: pixels ((top, bottom), (left, right)), of whole tokens.
      **options: of the pipeline's `generate`.

    Returns:
      Images of the whole canvas, without a trace.

    Raises:
      ImageError, ValueError: sizes that do not fit, or another number of prompts.
    """
    token, side = pipe.sizes.token, pipe.sizes.default // pipe.sizes.token
    pipe.sizes.check_part(*pixels.shape[:2])
    if options.pop("trace", False):
        raise ValueError("outpainting in windows keeps no steps: leave trace (--strip) out")
    tokens = pipe.encode(pixels[None])[0]
    border = [(a // token, b // token) for a, b in margins]
    generate = np.pad(np.zeros(tokens.shape, bool), border, constant_values=True)
    kept = Window(border[0][0], border[1][0], *tokens.shape)
    windows = windows_of(generate.shape, kept, (side, side))
    listed = [prompts] if isinstance(prompts, str | Condition) else list(prompts)
    if len(listed) not in (1, len(windows)):
        raise ValueError(
            f"{len(listed)} prompts for {len(windows)} windows; give one, or one for each of "
            + ", ".join(_told(window, token) for window in windows)
        )
    listed = listed * (len(windows) // len(listed))
    job, sampler = Job.take(options)
    images = numbered(job.seeds(1), job.num_images_per_prompt)
    copies = len(images.seeds)
    canvas = np.repeat(np.pad(tokens, border, mode="edge")[None], copies, axis=0)
    for number, (window, prompt) in enumerate(zip(windows, listed, strict=True)):
        part = (slice(None), *window.place)
        mask = np.repeat(generate[window.place][None], copies, axis=0)
        drawn = pipe.generate(
            [prompt] * copies,
            known=Known(canvas[part], mask),
            seed=child_seeds(images, FIRST_CHILD - number),
            height=window.height * token,
            width=window.width * token,
            negative_prompt=job.negative_prompt,
            batch_size=job.batch_size,
            watch=job.watch,
            **sampler,
        )
        if job.stopped:
            return drawn
        canvas[part], generate[window.place] = drawn.tokens, False
    return Generation(pipe.decode(canvas), canvas, None)


def _told(window: Window, token: int) -> str:
    top, left, height, width = (token * x for x in window)
    return f"rows {top}-{top + height} columns {left}-{left + width}"


def is_larger(pipe: TokenPipeline, image: tuple[int, int], canvas: tuple[int, int]) -> bool:
    """Whether a canvas is larger than the training images, so that windows have a use.

    Raises:
      ImageError: a canvas that cannot be drawn.
    """
    side, divisor = pipe.sizes.default, pipe.sizes.divisor
    if max(canvas) <= side:
        return False
    smaller = [x for x in canvas if x < side and (pipe.sizes.only_side or x % divisor)]
    if smaller:
        wanted = f"at least {side}" if pipe.sizes.only_side else f"multiples of {divisor}"
        raise ImageError(
            f"the image of {image[0]}x{image[1]} pixels (height x width) and its margins make "
            f"{canvas[0]}x{canvas[1]}; both must be {wanted}: change the margins"
        )
    return True


def only_prompt(prompts: Sequence[str | Condition]) -> str | Condition:
    """The prompt of a canvas that is drawn whole. Raises ValueError unless there is one."""
    if len(prompts) != 1:
        raise ValueError(f"{len(prompts)} prompts for a canvas that is drawn whole; give one")
    return prompts[0]
