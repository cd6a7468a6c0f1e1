"""Outpainting in windows of the size that a run was trained on.

A network that knows its positions, as small ones do here, repeats a caption's places on a canvas
wider than it was trained on: "bottom left" is wherever a row of trained width could begin. Each
window of the trained size holds its share of what is there already, and its own caption says what
the window shows, so that nothing is asked of the network that it did not learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from paella_jax.images.read import ImageError
from paella_jax.pipelines.base import Generation, Job
from paella_jax.pipelines.batches import child_seeds, one_per_prompt, piece_size
from paella_jax.pipelines.prompt_embeds import PromptEmbeds
from paella_jax.pipelines.prompts import Condition
from paella_jax.pipelines.records import NOT_OF_THE_SAMPLER
from paella_jax.pipelines.watch import Watch
from paella_jax.sampling.token_loop import Known

OnRows = Callable[[np.ndarray, int], np.ndarray]
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
    pipe: Any,
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
      Images of the whole canvas.

    Raises:
      ImageError, ValueError: sizes that do not fit, or another number of prompts.
    """
    token, side = pipe.sizes.token, pipe.sizes.default // pipe.sizes.token
    pipe.sizes.check_part(*pixels.shape[:2])
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
    known = Known(np.pad(tokens, border, mode="edge")[None], generate[None])
    return draw_windows(pipe, windows, [[prompt] for prompt in listed], known, **options)


def draw_windows(
    pipe: Any,
    windows: Sequence[Window],
    prompts: Sequence[Any],
    known: Known,
    image_tokens: np.ndarray | None = None,
    **options: Any,
) -> Generation:
    """Draws what is not kept of a canvas, window by window.

    Args:
      pipe: from `paella_jax.load`.
      windows: in tokens, in their order; together they cover what is drawn.
      prompts: of each window, as many prompts as `known` has images.
      known: of the canvas.
      image_tokens: of the canvas, where drawing starts from an image.
      **options: of the pipeline's `generate`.

    Returns:
      Images of the canvas. A trace has the canvas after every step of every window; where somebody
      stops it, what is not drawn is as it was given.
    """
    job, sampler = Job.take(options)
    images, copies = job.images(len(known.tokens)), job.num_images_per_prompt
    repeat = lambda x: np.repeat(np.asarray(x), copies, axis=0)
    canvas, generate = repeat(known.tokens), repeat(known.generate)
    negatives = one_per_prompt(job.negative_prompt or "", len(known.tokens), "negative_prompt")
    negatives = job.repeat(negatives)
    start = repeat(known.tokens if image_tokens is None else image_tokens)
    settings = {name: x for name, x in sampler.items() if name not in NOT_OF_THE_SAMPLER}
    each = len(pipe.settings(**settings).shown_after())
    batch = piece_size(len(images.seeds), job.batch_size, pipe.mesh)
    job.expect(len(windows) * -(-len(images.seeds) // batch) * each)
    token, steps = pipe.sizes.token, []
    for number, (window, prompt) in enumerate(zip(windows, prompts, strict=True)):
        part, show = (slice(None), *window.place), partial(_shown, pipe, canvas, window)
        drawn = pipe.generate(
            prompt.repeat(copies) if isinstance(prompt, PromptEmbeds) else job.repeat(prompt),
            known=Known(canvas[part], generate[part]),
            image_tokens=None if image_tokens is None else start[part],
            seed=child_seeds(images, FIRST_CHILD - number),
            height=window.height * token,
            width=window.width * token,
            negative_prompt=negatives,
            batch_size=job.batch_size,
            trace=job.trace,
            watch=job.watch and OnCanvas(job.watch, show, each, batch),
            **sampler,
        )
        steps += [_filled(canvas, part, x) for x in (() if drawn.trace is None else drawn.trace)]
        # Of a call that is stopped later batches are missing.
        canvas = _filled(canvas, part, drawn.tokens)
        generate[part] = False
        if job.stopped:
            break
    return Generation(pipe.decode(canvas), canvas, np.stack(steps) if job.trace else None)


def _shown(
    pipe: Any, canvas: np.ndarray, window: Window, images: np.ndarray, first: int
) -> np.ndarray:
    """Images of a window on what there is of the canvas, as pixels."""
    around = np.array(pipe.decode(canvas[first : first + len(images)]))
    pixels = Window(*(pipe.sizes.token * x for x in window))
    around[(slice(None), *pixels.place)] = images
    return around


def _filled(canvas: np.ndarray, part: tuple[slice, ...], tokens: np.ndarray) -> np.ndarray:
    """A copy of the canvas of as many images as there are tokens, with these in their part."""
    filled = canvas[: len(tokens)].copy()
    filled[part] = tokens
    return filled


class OnCanvas(Watch):
    """Looks on at a window for somebody who sees all of the canvas."""

    def __init__(self, watch: Watch, show: OnRows, steps: int, batch: int) -> None:
        """Made for one window, drawn in `steps` for each `batch` of images.

        `show` makes the canvas of images of the window, the first of which is the image `first`.
        """
        super().__init__(rehearse=watch.rehearse)
        self.every, self._watch, self._show = watch.every, watch, show
        self._steps, self._batch = steps, batch

    @property
    def looks(self) -> bool:
        """Whether anybody does."""
        return self._watch.looks

    def expect(self, steps: int) -> None:
        """Nothing: how many steps all windows have was said before."""

    def tell(self, steps: int, show: Callable[[], np.ndarray]) -> None:
        """Says that so many more steps are done; shows the window in its place."""
        first = self._done // self._steps * self._batch
        self._done += steps
        self._watch.tell(steps, lambda: self._show(show(), first))
        self.stopped = self._watch.stopped


def windows_around(pipe: Any, prompt: Any, known: Known | None) -> list[Window]:
    """The windows in which a call draws around the part of an image that it keeps.

    Args:
      pipe: from `paella_jax.load`.
      prompt: of the call; with a map, or mixed, it says itself what is where.
      known: what stays of the canvas.

    Returns:
      None of them where the canvas is drawn whole: it is no larger than the training images, the
      network has no positions, what stays is no rectangle, or the prompt says what is where.
    """
    if known is None or not needs_windows(pipe):
        return []
    side = pipe.sizes.default // pipe.sizes.token
    _, height, width = known.generate.shape
    kept = _rectangle(~np.asarray(known.generate[0]))
    if kept is None or max(height, width) <= side or _says_places(prompt):
        return []
    return windows_of((height, width), kept, (side, side))


def generate_around(pipe: Any, prompt: Any, **options: Any) -> Any:
    """As a `TokenPipeline`'s `generate`, in windows where they are needed (`windows_around`)."""
    alone = all(options.get(name) is None for name in ("weights", "low_tokens", "resampling"))
    windows = windows_around(pipe, prompt, options.get("known")) if alone else []
    if not windows:
        return pipe.generate(prompt, **options)
    one = isinstance(prompt, str | Condition)
    return draw_windows(pipe, windows, [[prompt] if one else prompt] * len(windows), **options)


def _rectangle(kept: np.ndarray) -> Window | None:
    """What is kept as a window; None where it is none."""
    rows, columns = (np.flatnonzero(kept.any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    top, left = int(rows[0]), int(columns[0])
    window = Window(top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left)
    return window if kept[window.place].all() else None


def _says_places(prompt: Any) -> bool:
    """Whether a prompt is mixed of several, or comes with a map."""
    each = prompt if isinstance(prompt, list | tuple) else [prompt]
    mixed = any(isinstance(one, list | tuple) for one in each)
    return mixed or any(getattr(one, "segmentation", None) is not None for one in each)


def _told(window: Window, token: int) -> str:
    top, left, height, width = (token * x for x in window)
    return f"rows {top}-{top + height} columns {left}-{left + width}"


def is_larger(pipe: Any, image: tuple[int, int], canvas: tuple[int, int]) -> bool:
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
