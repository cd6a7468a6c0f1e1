"""What `paella_jax.load` is given -> a run folder: one on this machine, of the hub, or published.

This is looked at before every load, so nothing is imported that plain run folders do not need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from paella_jax.convert.released_files import INDEX, RELEASED, is_published
from paella_jax.outside import expanded, parse_object
from paella_jax.runs.folder import CONFIG_FILE
from paella_jax.runs.manifest import MANIFEST
from paella_jax.sharing.hub import HubError, Stages, check_flag, check_path, download, is_name

# Networks whose released files make a whole repository.
WHOLE = ({"paella", "tokenizer"}, {"stage_b", "stage_c", "tokenizer"})


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
      ValueError: an argument of another type, or a revision of a folder.
      HubError: a repository that cannot be read.
      ConversionError: a published folder that cannot be converted.
    """
    check_path("directory", directory, ": a run folder, or OWNER/NAME on the hub")
    check_flag("offline", offline)
    if not isinstance(revision, str | None):
        raise ValueError(f"revision={revision!r} must be a text: a branch, tag or commit")
    place = expanded(directory)
    left = {name: _at_home(value) for name, value in (options or {}).items()}
    of_hub = is_name(directory)
    if of_hub:
        name = str(directory)
        stages = Stages(partial(_look, name), partial(_needed, name))
        place = download(name, revision, offline, stages)
    elif revision is not None:
        raise ValueError(f"revision={revision!r} is for OWNER/NAME on the hub, not for {directory}")
    if is_run(place) or not is_published(place):
        return place, left
    from paella_jax.convert.published import OPTIONS, converted

    given = {name: left.pop(name) for name in OPTIONS if name in left}
    return converted(place, offline or not of_hub, **given), left


def _at_home(option: Any) -> Any:
    """Of options those that begin with `~` are folders and files."""
    is_path = isinstance(option, str | Path) and str(option).startswith("~")
    return expanded(option) if is_path else option


def is_run(folder: Path) -> bool:
    """Whether a folder's config is a run's, or too damaged to tell."""
    file = folder / CONFIG_FILE
    try:
        return file.is_file() and "method" in parse_object(file.read_bytes())
    except (ValueError, OSError):
        return True


def _look(name: str, names: Sequence[str]) -> list[str]:
    """Of a repository's files those that tell what it is. Raises HubError where none does."""
    released = [file for file in names if _is_released(file)]
    found = [file for file in (INDEX, CONFIG_FILE) if file in names]
    if not found and not released:
        raise HubError(
            f"{name} holds no run: neither {MANIFEST}, {CONFIG_FILE} and {INDEX} nor a file that "
            "Paella or Würstchen was published in; check the name (docs/sharing.md 3)"
        )
    stems = {PurePath(file).stem for file in released}
    networks = {network for network, known in RELEASED.items() if stems & set(known)}
    if not found and not any(whole <= networks for whole in WHOLE):
        raise HubError(
            f"{name} holds {', '.join(released)} alone, of the files that belong together: "
            "paella_v3.pt with vqgan_f4.pt, or model_v2_stage_b.pt with model_v2_stage_c.pt and "
            "vqgan_f4_v1_500k.pt"
        )
    return found or released[:1]


def _needed(name: str, folder: Path, names: Sequence[str]) -> list[str]:
    """The files to download, once there are those that tell what a repository is.

    Raises:
      ConversionError, HubError: it holds something that cannot be drawn with.
    """
    from paella_jax.convert.published import needed_files, recognise_folder

    if INDEX in names:
        recognise_folder(folder)  # by its class, which is all that it looks at
        index = parse_object((folder / INDEX).read_bytes())
        parts = {part for part, value in index.items() if isinstance(value, list)}
        inside = [file for file in names if file.partition("/")[0] in parts and "/" in file]
        return [INDEX, *needed_files(inside)]
    if CONFIG_FILE in names and is_run(folder):
        return needed_files(names)
    at_top = [file for file in names if "/" not in file]
    if any(map(_is_released, at_top)):
        return needed_files(at_top)
    raise HubError(
        f"{name} holds a {CONFIG_FILE} that is no run's of this library; check the name "
        "(docs/sharing.md 3)"
    )


def _is_released(file: str) -> bool:
    stems = {stem for known in RELEASED.values() for stem in known}
    return "/" not in file and PurePath(file).stem in stems
