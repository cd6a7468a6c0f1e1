"""Which checkpoints of a run have all their parts, and what becomes of the others."""

from __future__ import annotations

import shutil
from pathlib import Path

from paella_jax.runs.digests import tell_once
from paella_jax.runs.folder import CheckpointError
from paella_jax.runs.step_digests import NOTE, absent_files
from paella_jax.runs.step_folders import step_folders

# Where one of these is missing a folder was copied in part, or lost files.
LISTED = "_METADATA"  # by name all arrays of a checkpoint
NEEDED = ("_CHECKPOINT_METADATA", f"state/{LISTED}", "state/manifest.ocdbt", NOTE)
INCOMPLETE = "incomplete"  # beside `checkpoints`


def complete_steps(workdir: str | Path) -> list[int]:
    """The steps of a run whose checkpoints have all their parts, oldest first."""
    folders = step_folders(workdir)
    return sorted(int(f.name) for f in folders if not lost_files(f))


def lost_files(folder: Path) -> list[str]:
    """Files that the folder of a checkpoint should have and has not."""
    needed = [part for part in NEEDED if not (folder / part).is_file()]
    return list(dict.fromkeys([*needed, *absent_files(folder)]))


def set_aside_incomplete(workdir: str | Path, keep: int | None = None) -> str:
    """Moves checkpoints that lack a part out of the way, so that the one before is used.

    Args:
      workdir: run folder.
      keep: newest checkpoints that the run keeps. What is left of an older one, whose removal was
        stopped, is removed.

    Returns:
      What was moved, for the person watching; empty if nothing.

    Raises:
      CheckpointError: there is no whole one.
    """
    whole = complete_steps(workdir)
    broken = sorted((f for f in step_folders(workdir) if int(f.name) not in whole), key=str)
    for folder in [f for f in broken if is_outdated(f, whole, keep)]:
        shutil.rmtree(folder, ignore_errors=True)
        broken.remove(folder)
    if broken and not whole:
        raise CheckpointError(none_is_whole(broken))
    for folder in broken:
        place = Path(workdir) / INCOMPLETE / folder.name
        place.parent.mkdir(exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        folder.rename(place)
    moved = ", ".join(folder.name for folder in broken)
    return f"checkpoint {moved} lacks files: moved to {INCOMPLETE}/" if broken else ""


def is_outdated(folder: Path, whole: list[int], keep: int | None) -> bool:
    """Whether as many whole checkpoints are newer than one as a run keeps."""
    return keep is not None and 0 < keep <= sum(step > int(folder.name) for step in whole)


def none_is_whole(broken: list[Path]) -> str:
    """What is said where all checkpoints lack files."""
    return (
        f"no checkpoint in {broken[0].parent} is whole: {', '.join(f.name for f in broken)} "
        "lack files. Copy them again, or delete them to start over"
    )


def tell_of_lost(workdir: str | Path, after: int = -1) -> None:
    """A line for each checkpoint that is passed over, as it lost files, behind a step."""
    for folder in sorted(step_folders(workdir), key=str):
        lost = lost_files(folder) if int(folder.name) > after else []
        if lost:
            tell_once(f"checkpoint {folder} lacks files ({', '.join(lost[:3])}): it is left out")
