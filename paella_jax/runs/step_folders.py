"""Which folders below `checkpoints/` are steps: those that are named as a step is written."""

from __future__ import annotations

from pathlib import Path


def is_step(name: str) -> bool:
    """Whether a folder's name is that of a finished checkpoint; unfinished ones have a suffix.

    Other digits than 0 to 9 are no names of ours, nor are zeros in front.
    """
    return name.isascii() and name.isdecimal() and name == str(int(name))


def step_folders(workdir: str | Path) -> list[Path]:
    """The folders of a run's finished checkpoints, whole or not."""
    return [place for place in (Path(workdir) / "checkpoints").glob("*") if is_step(place.name)]


def newest_step(workdir: str | Path) -> int:
    """The step of a run's newest finished checkpoint; 0 where there is none."""
    return max((int(place.name) for place in step_folders(workdir)), default=0)
