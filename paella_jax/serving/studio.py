"""The runs behind the page: one request is drawn at a time, with previews, and can be stopped.

One at a time also means one compiling at a time. Nothing here knows the page.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from paella_jax.images.png import tiled
from paella_jax.serving.draw import Drawn, OnStep, check_canvas, draw
from paella_jax.serving.limits import Ask, Limits, check


class Run(NamedTuple):
    """A loaded run.

    Attributes:
      name: as visitors see it.
      pipe: from `paella_jax.load`.
      tasks: of `limits.TASKS`, what it can do.
    """

    name: str
    pipe: Any
    tasks: Sequence[str]


@dataclass(frozen=True)
class View:
    """What there is of a run's images.

    Attributes:
      images: as far as they are.
      strip: the first image after each step that was told.
      step: steps done.
      total: of how many.
      state: "waiting", "waiting for compiling", "drawing", "stopped" or "done".
    """

    images: tuple[Image.Image, ...] = ()
    strip: tuple[Image.Image, ...] = ()
    step: int = 0
    total: int = 0
    state: str = "waiting"


COMPILING = "waiting for compiling"
WARMED = ", which is done once, as the server starts"
Views = tuple[View, ...]  # one per run that was asked for


class Studio:
    """Draws requests of any threads, one after another."""

    def __init__(
        self,
        runs: Sequence[Run],
        limits: Limits | None = None,
        drawing: Callable[[Any, Ask, OnStep], Drawn] = draw,
    ) -> None:
        """Takes one run or two.

        Args:
          runs: whose images are drawn.
          limits: of a request.
          drawing: asks a pipeline (draw.py).
        """
        self.runs, self.limits = list(runs), limits or Limits()
        self._drawing = drawing
        self._lock = threading.Lock()
        self.warming = ""  # the run that is being compiled for, if one is

    def warm_up(self, counts: Sequence[int], say: Callable[[str], None] = print) -> None:
        """Compiles what the first requests of text need, run by run; requests go between.

        A run that cannot be compiled for is told and left: whoever draws with it is told as well.

        Args:
          counts: numbers of images of those requests.
          say: is told how far it is, a line each time.
        """
        for run in self.runs:
            self.warming = run.name
            say(f"compiling for {run.name}: the first drawing would wait for it")
            try:
                seconds = 0.0
                for count in counts:
                    with self._lock:
                        seconds += run.pipe.warm_up(count)
                say(f"compiled for {run.name} in {seconds:.0f} s")
            except Exception as error:  # the page is there without it
                reason = str(error).partition("\n")[0]
                say(f"compiling for {run.name} failed ({type(error).__name__}: {reason})")
            finally:
                self.warming = ""

    def check(self, ask: Ask, chosen: Sequence[int]) -> None:
        """Raises ValueError for a request over the limits, or one that a chosen run cannot do."""
        check(ask, self.limits)
        if not chosen:
            raise ValueError("no run is chosen: choose one or both")
        for number in chosen:
            if ask.task not in self.runs[number].tasks:
                raise ValueError(f"{self.runs[number].name} cannot do {ask.task}: choose another")
            check_canvas(self.runs[number].pipe, ask, self.limits.side)

    def stream(
        self, ask: Ask, chosen: Sequence[int], stop: threading.Event | None = None
    ) -> Iterator[Views]:
        """Draws with the chosen runs, one after another, and gives what there is meanwhile.

        Whoever reads slowly misses views, but never the last one. Closing the iterator stops the
        drawing at its next step.

        Args:
          ask: the request.
          chosen: numbers of runs.
          stop: set by anybody to end the drawing at its next step.

        Raises:
          ValueError: of `check`, and of the pipeline.
        """
        self.check(ask, chosen)
        stop = stop or threading.Event()
        news: queue.SimpleQueue[Views | BaseException | None] = queue.SimpleQueue()
        worker = threading.Thread(target=self._work, args=(ask, chosen, stop, news), daemon=True)
        worker.start()
        try:
            ended = False
            while not ended:
                views, ended = _newest(news)
                if views is not None:
                    yield views
        finally:
            stop.set()

    def draw_one(self, run: int, prompt: str, seed: int) -> Image.Image:
        """One image by a run's own settings; its file would not say by which run."""
        with self._lock:
            drawn = self._drawing(self.runs[run].pipe, Ask(prompt, seed=seed), lambda *_: True)
        image = drawn.images[0].copy()
        image.info.clear()
        return image

    def _work(
        self,
        ask: Ask,
        chosen: Sequence[int],
        stop: threading.Event,
        news: queue.SimpleQueue[Views | BaseException | None],
    ) -> None:
        """Draws in a thread of its own; what it puts last is None, or what went wrong."""
        views = [View() for _ in chosen]

        def tell(place: int, **changes: Any) -> None:
            views[place] = replace(views[place], **changes)
            news.put(tuple(views))

        try:
            tell(0, state=COMPILING if self.warming else "waiting")
            with self._lock:
                for place, number in enumerate(chosen):
                    self._draw_run(self.runs[number], ask, stop, lambda p=place, **x: tell(p, **x))
            news.put(None)
        except BaseException as error:  # the visitor is told, whatever it was
            news.put(error)

    def _draw_run(
        self, run: Run, ask: Ask, stop: threading.Event, tell: Callable[..., None]
    ) -> None:
        """Draws with one run and tells each step."""
        if stop.is_set():
            tell(state="stopped")
            return
        tell(state="drawing")
        strip: list[Image.Image] = []

        def on_step(step: int, total: int, images: list[Image.Image]) -> bool:
            strip.append(images[0])
            tell(images=tuple(images), strip=tuple(strip), step=step, total=total)
            return not stop.is_set()

        drawn = self._drawing(run.pipe, ask, on_step)
        tell(images=tuple(drawn.images), state="stopped" if drawn.stopped else "done")


def _newest(news: queue.SimpleQueue[Any]) -> tuple[Views | None, bool]:
    """Waits for news and takes all there are: the newest views, and whether it was the end.

    Raises whatever went wrong.
    """
    views, item = None, news.get()
    while True:
        if isinstance(item, BaseException):
            raise item
        if item is None:
            return views, True
        views = item
        if news.empty():
            return views, False
        item = news.get()


def strip_image(strip: Sequence[Image.Image]) -> np.ndarray:
    """Images side by side in one row, uint8 [height, steps * width, 3]; small ones enlarged.

    A two-scale run's first steps are of small images: they are enlarged to the last one's size.
    """
    size = strip[-1].size
    row = [np.asarray(x if x.size == size else x.resize(size, 0)) for x in strip]
    return tiled(row, columns=len(row))


def in_words(views: Views, names: Sequence[str]) -> str:
    """A line per run about how far it is."""
    lines = []
    for view, name in zip(views, names, strict=True):
        far = f"step {view.step} of {view.total}" if view.total else ""
        begins = "begins (the first drawing of its kind is compiled before)"
        doing = far or begins if view.state == "drawing" else view.state
        doing += WARMED if view.state == COMPILING else ""
        at = f" at {far}" if view.state == "stopped" and far else ""
        lines.append(f"{name}: {doing}{at}")
    return "\n".join(lines)


def names_of(folders: Sequence[str]) -> list[str]:
    """Names of run folders that tell them apart: the last part of each path that differs."""
    parts = [Path(folder).absolute().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{folder} ({number})" for number, folder in enumerate(folders, 1)]


def defaults_of(runs: Sequence[Run]) -> dict[str, str]:
    """What the fields of the page mean that are left empty, where all runs agree."""
    own = []
    for run in runs:
        used = run.pipe.defaults
        values = {"steps": used.get("num_steps"), "guidance": used.get("guidance_scale")}
        own.append(values | {name: used.get(name) for name in ("height", "width")})
    return {
        name: _in_words(value)
        for name, value in own[0].items()
        if value is not None and all(other.get(name) == value for other in own)
    }


def _in_words(value: Any) -> str:
    """A number, or the two ends of a ramp."""
    ends = [value] if isinstance(value, int | float) else list(value)
    return " to ".join(f"{end:g}" for end in dict.fromkeys(ends))
