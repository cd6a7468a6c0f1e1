"""What `paella_jax.load` is given -> a run folder: one on this machine, of the hub, or published.

This is looked at before every load, so nothing is imported that plain run folders do not need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paella_jax.convert.released_files import is_published
from paella_jax.outside import parse_object
from paella_jax.runs.folder import CONFIG_FILE
from paella_jax.sharing.hub import download, is_name


def run_folder(
    directory: str | Path,
    revision: str | None = None,
    offline: bool = False,
    options: Mapping[str, Any] | None = None,
) -> tuple[Path, dict[str, Any]]:
    """The run folder, downloaded or converted where it must be, and the options that are left.

    Args:
      directory: run folder, shared folder, published folder, or OWNER/NAME on the hub.
      revision: branch, tag or commit of a repository.
      offline: take repositories from the hub's local cache.
      options: of `paella_jax.load`; those of a conversion are taken out.

    Raises:
      ValueError: a revision of a folder.
      HubError: a repository that cannot be read.
      ConversionError: a published folder that cannot be converted.
    """
    place, left = Path(directory).expanduser(), dict(options or {})
    of_hub = is_name(directory)
    if of_hub:
        place = download(str(directory), revision, offline, _choose)
    elif revision is not None:
        raise ValueError(f"revision={revision!r} is for OWNER/NAME on the hub, not for {directory}")
    if is_run(place) or not is_published(place):
        return place, left
    from paella_jax.convert.published import OPTIONS, converted

    given = {name: left.pop(name) for name in OPTIONS if name in left}
    return converted(place, offline or not of_hub, **given), left


def is_run(folder: Path) -> bool:
    """Whether a folder's config is a run's, or too damaged to tell."""
    file = folder / CONFIG_FILE
    try:
        return file.is_file() and "method" in parse_object(file.read_bytes())
    except (ValueError, OSError):
        return True


def _choose(names: Sequence[str]) -> Sequence[str]:
    from paella_jax.convert.published import needed_files

    return needed_files(names)
