"""What a visitor may ask for: checked before anything is drawn, whoever sends it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image

SEEDS = 2**32
USUAL = 4
STRONGEST_GUIDANCE = 100.0
SIDES = ("top", "bottom", "left", "right")
TEXT, IMAGE, INPAINT, OUTPAINT, VARIATIONS = (
    "text to image",
    "image to image",
    "inpaint",
    "outpaint",
    "variations",
)
TASKS = (TEXT, IMAGE, INPAINT, OUTPAINT, VARIATIONS)


@dataclass(frozen=True)
class Ask:
    """A request of the page.

    Attributes:
      prompt: what to draw; may be empty for variations.
      task: one of `TASKS`.
      negative: what to steer away from.
      seed: of the images.
      count: images of each run.
      steps: predictions; None is each run's own.
      guidance: None is each run's own; 1 switches it off.
      height: of the images in pixels; None is each run's own. Outpainting has its own.
      width: likewise.
      strength: of image to image, in (0, 1].
      image: what the task is about, in RGB.
      mask: of the image's size; white is drawn anew.
      margins: what outpainting adds on each of `SIDES`, as fractions of the image's side.
    """

    prompt: str
    task: str = TEXT
    negative: str = ""
    seed: int = 0
    count: int = 1
    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    strength: float = 0.6
    image: Image.Image | None = field(default=None, repr=False)
    mask: Image.Image | None = field(default=None, repr=False)
    margins: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


class Limits(NamedTuple):
    """The largest request that the page takes.

    Attributes:
      images: of a run in one request.
      steps: predictions.
      side: pixels, where another size than a run's own is asked for.
      characters: of a prompt.
      waiting: requests of others that may be in the queue before one is refused.
      megabytes: of an uploaded file.
      pixels: of an uploaded image.
    """

    images: int = 16
    steps: int = 100
    side: int = 1024
    characters: int = 1000
    waiting: int = 32
    megabytes: int = 20
    pixels: int = 4096 * 4096

    @property
    def usual(self) -> int:
        """Images of a request that leaves their number as the page has it."""
        return min(USUAL, self.images)


def check(ask: Ask, limits: Limits) -> None:
    """Checks a request; of a prompt's length in tokens the run itself decides.

    Raises:
      ValueError: naming what is wrong and what is allowed.
    """
    for what, text in (("prompt", ask.prompt), ("negative prompt", ask.negative)):
        if len(text) > limits.characters:
            raise ValueError(f"the {what} has {len(text)} characters; give {limits.characters}")
    if ask.task not in TASKS:
        raise ValueError(f"the task {ask.task!r} is none of {', '.join(TASKS)}")
    if not ask.prompt.strip() and ask.task != VARIATIONS:
        raise ValueError("the prompt is empty: write what to draw")
    _whole("seed", ask.seed, 0, SEEDS - 1)
    _whole("number of images", ask.count, 1, limits.images)
    if ask.steps is not None:
        _whole("number of steps", ask.steps, 1, limits.steps)
    for name, pixels in (("height", ask.height), ("width", ask.width)):
        if pixels is not None:
            _whole(name, pixels, 1, limits.side)
    if ask.guidance is not None:
        _number("guidance", ask.guidance, 0.0, STRONGEST_GUIDANCE)
    if ask.task != TEXT and ask.image is None:
        raise ValueError(f"{ask.task} needs an image: upload one, or take one that was drawn")
    if ask.task == IMAGE:
        _number("strength", ask.strength, 0.01, 1.0)
    if ask.task == INPAINT:
        _check_mask(ask)
    if ask.task == OUTPAINT:
        for where, margin in zip(SIDES, ask.margins, strict=True):
            _number(f"margin at the {where}", margin, 0.0, 1.0)
        if not any(ask.margins):
            raise ValueError("outpainting needs a margin: choose how much to add, and where")


def as_number(name: str, text: str | None, kind: type[int] | type[float]) -> Any:
    """What was written in a field; None where it was left empty. Raises ValueError."""
    if not (text or "").strip():
        return None
    try:
        return kind(text or "")
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name} must be {what}, or empty for the run's own") from None


def _check_mask(ask: Ask) -> None:
    """Raises ValueError where nothing is marked."""
    if ask.mask is None or ask.mask.convert("L").getextrema()[1] == 0:
        raise ValueError("nothing is marked: paint over the part that is to be drawn anew")


def _whole(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"the {name} must be a whole number from {least} to {most}, got {value!r}")


def _number(name: str, value: object, least: float, most: float) -> None:
    right = isinstance(value, int | float) and math.isfinite(value) and least <= value <= most
    if not right:
        raise ValueError(f"the {name} must be from {least:g} to {most:g}, got {value!r}")
