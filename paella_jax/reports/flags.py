"""Which flags of `python -m paella_jax.evaluate` belong to what is scored: none is passed over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

# What can be scored, as messages name it.
IMAGES = "--images A --reference B"
CHANGED = "--manipulations PLACE"
DRAWN = "--checkpoint RUN that draws and is scored by features"
REBUILT = "--checkpoint RUN of a tokenizer or Stage B"
EMBEDDED = "--checkpoint RUN on the embedded data, scored by what is read of its images"
RUNS = (DRAWN, REBUILT, EMBEDDED)
BELONGS = {
    "reference": (IMAGES,),
    "paired": (IMAGES,),
    "num_images": (CHANGED, *RUNS),
    "features": (IMAGES, CHANGED, DRAWN, REBUILT),
    "weights": (IMAGES, CHANGED, DRAWN, REBUILT),
    "clip": (IMAGES, DRAWN),
    "pick": (IMAGES, DRAWN),
    "prompts": (IMAGES, DRAWN),
    "perceptual": (IMAGES, REBUILT),
    "data": (DRAWN, REBUILT),
    "overrides": (DRAWN, REBUILT),
    "groups": (DRAWN,),
    "training_images": (DRAWN,),
    "curve": (DRAWN,),
    "guidance": (DRAWN,),
    "steps": (DRAWN, EMBEDDED),
    "super_resolution": (DRAWN, EMBEDDED),
    "sweep": (EMBEDDED,),
    "sweep_images": (EMBEDDED,),
    "tasks": (EMBEDDED,),
    "task_pairs": (EMBEDDED,),
    "direct": (EMBEDDED,),
    "seconds": (EMBEDDED,),
}
# The least that numbers may be; without training images none are searched.
LEAST = {"num_images": 1, "training_images": 0, "sweep_images": 1, "task_pairs": 1}
Given = Mapping[str, Any]


class Need(NamedTuple):
    """What else a flag needs where one kind of thing is scored.

    Attributes:
      flag: its name.
      kind: of what is scored, one of the above.
      is_met: whether the flags that were given hold what it needs.
      otherwise: what to say if not.
    """

    flag: str
    kind: str
    is_met: Callable[[Given], Any]
    otherwise: str


def _needs_axis(axis: str) -> Need:
    has_axis = lambda given: axis in given.get("curve", "").split(",")
    return Need(axis, DRAWN, has_axis, f"has the values of --curve {axis}; give both, or neither")


NEEDS = (
    _needs_axis("steps"),
    _needs_axis("guidance"),
    Need("sweep_images", EMBEDDED, lambda given: "sweep" in given, "belongs to --sweep; give both"),
    Need("task_pairs", EMBEDDED, lambda given: "tasks" in given, "belongs to --tasks; give both"),
    Need(
        "prompts", IMAGES, lambda given: "clip" in given or "pick" in given,
        "has what --clip and --pick compare images with; give one of them, or leave it out",
    ),
    Need(
        "perceptual", IMAGES, lambda given: "paired" in given,
        "compares pairs: give it with --images A --reference B --paired, or with a tokenizer's "
        "--checkpoint",
    ),
)  # fmt: skip


def given_of(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were given, of those that are parsed without defaults; 0 is given."""
    empty = lambda value: value is None or value is False or value in ("", [])
    return {name: value for name, value in flags.items() if not empty(value)}


def check_flags(given: Given, *kinds: str) -> None:
    """Whether each flag belongs to what is scored, has what it needs, and is no too small number.

    Args:
      given: the flags with their values.
      kinds: what is scored; several where only one of them is known to be.

    Raises:
      ValueError: naming the flag, and what it belongs to.
    """
    for name, least in LEAST.items():
        if name in given and given[name] < least:
            raise ValueError(f"--{name} must be at least {least}, got {given[name]}")
    for name, places in BELONGS.items():
        if name in given and not set(places) & set(kinds):
            shown = "config.data.FIELD" if name == "overrides" else name
            raise ValueError(f"--{shown} belongs to {_named(places)}; leave it out")
    for need in NEEDS:
        if need.flag in given and kinds == (need.kind,) and not need.is_met(given):
            raise ValueError(f"--{need.flag} {need.otherwise}")


def _named(places: tuple[str, ...]) -> str:
    others = [place for place in places if place not in RUNS]
    runs = ["--checkpoint RUN"] if set(RUNS) <= set(places) else [p for p in places if p in RUNS]
    return " or ".join([*others, *runs])
