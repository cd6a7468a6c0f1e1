"""Looking on while a call samples: progress, previews, and stopping it.

A loop runs in groups of steps, each a call of the one compiled program (sampling/loop.py): between
two groups the caller sees what there is. Without anybody who looks on it is one group.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from types import TracebackType
from typing import Any

import jax
import numpy as np
from PIL import Image

from paella_jax.images.write import to_uint8

# (steps done, of all, images so far) -> False ends the sampling
Callback = Callable[[int, int, list[Image.Image]], Any]


class StopSampling(Exception):
    """Raised by a callback: sampling ends, and the call returns what there is."""


class Watch:
    """One call's progress.

    Attributes:
      every: steps between two looks.
      stopped: whether the callback ended the sampling.
      rehearse: nothing is drawn: programs are compiled and run without a step.
    """

    def __init__(
        self,
        callback: Callback | None = None,
        every: int = 1,
        progress: bool = False,
        rehearse: bool = False,
    ) -> None:
        """Looks on with a callback, a bar, or both.

        Args:
          callback: is told after every `every` steps, and after the last of each batch.
          every: steps between two looks.
          progress: shows a bar.
          rehearse: runs no step.
        """
        self.rehearse = rehearse
        self.every, self.stopped = every if callback else 1, False
        self._callback, self._progress = callback, progress
        self._done = self._total = 0
        self._bar: Any = None

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def looks(self) -> bool:
        """Whether anybody does; else a loop is one group."""
        return self._callback is not None or self._progress

    def expect(self, steps: int) -> None:
        """Says how many steps the whole call has; the first to say so counts."""
        if self._total:
            return
        self._total = steps
        if self._progress:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=steps, unit="step", desc="sampling")

    def tell(self, steps: int, show: Callable[[], np.ndarray]) -> None:
        """Says that so many more steps are done.

        Args:
          steps: since it was told last.
          show: makes float images [count, height, width, 3] in [0, 1] of what there is.
        """
        self._done += steps
        if self._bar is not None:
            self._bar.update(steps)
        if self._callback is None:
            return
        images = [Image.fromarray(image) for image in to_uint8(show())]
        try:
            answer = self._callback(self._done, self._total, images)
        except StopSampling:
            answer = False
        self.stopped = isinstance(answer, bool | np.bool_) and not answer


def in_groups(
    advance: Callable[[Any, tuple[np.int32, np.int32]], Any],
    reached: Any,
    edges: np.ndarray,
    show: Callable[[Any], np.ndarray],
    watch: Watch | None = None,
    kept: Collection[int] = (),
) -> tuple[Any, list[Any]]:
    """Runs a loop in as many groups of steps as somebody wants to look on.

    Args:
      advance: (what is reached, (first step, the step after the last)) -> what is reached then.
      reached: before the first step, a pair of which the second is what a step shows.
      edges: int [2 or more], of the loop (`Loop.edges`).
      show: what is reached -> images, for those who look on.
      watch: who looks on.
      kept: numbers of steps after which what a step shows is kept.

    Returns:
      What is reached in the end, or where somebody stopped it; and what was kept.
    """
    first, end = int(edges[0]), int(edges[-1])
    if watch and watch.rehearse:
        advance(reached, (np.int32(first), np.int32(first)))
        return reached, [reached[1]] * len(kept)
    looks = [*range(first, end, watch.every)[1:], end] if watch and watch.looks else []
    told, history = first, []
    for stop in sorted({end, *looks, *kept}):
        reached = advance(reached, (np.int32(first), np.int32(stop)))
        first = stop
        if stop in kept:
            history.append(reached[1])
        if watch and stop in looks:
            jax.block_until_ready(reached)
            watch.tell(stop - told, partial(show, reached))
            told = stop
            if watch.stopped:
                break
    # Of a loop that was stopped the last state stands for those that are missing.
    return reached, history + [reached[1]] * (len(kept) - len(history))
