"""JSON objects that a command keeps between its calls, as results of its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paella_jax.config import CheckpointError
from paella_jax.outside import parse_object


def read_kept(file: Path, *needed: str) -> dict[str, Any]:
    """A JSON object with some entries.

    Raises:
      CheckpointError: the file cannot be read, holds something else, or lacks an entry.
    """
    try:
        content = parse_object(file.read_bytes())
        if missing := [name for name in needed if name not in content]:
            raise ValueError(f"it lacks {', '.join(missing)}")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error}); delete it and run the same command again, which makes "
            "it anew"
        ) from error
    return content
