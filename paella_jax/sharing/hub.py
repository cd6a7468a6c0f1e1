"""The Hugging Face hub: shared folders from it or from its local cache, and onto it.

Of a repository that `paella_jax.export` made exactly the files that its manifest lists are taken,
of another one those that the caller chooses. Downloads end up in the hub's own cache, whose layout
is read here directly: `models--OWNER--NAME/{refs/BRANCH,snapshots/COMMIT/}`.
"""

from __future__ import annotations

import glob
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from paella_jax.config import UserError
from paella_jax.outside import expanded, say
from paella_jax.runs.manifest import MANIFEST, check_files, read_manifest

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
MAIN = "main"
Choose = Callable[[Sequence[str]], Sequence[str]]  # all files of a repository -> those to download


class Stages(NamedTuple):
    """What to download where some files tell which others are needed.

    Attributes:
      first: all files -> the small ones to look at.
      rest: (the folder with those, all files) -> those to download.
    """

    first: Choose
    rest: Callable[[Path, Sequence[str]], Sequence[str]]


class HubError(UserError, RuntimeError):
    """A repository cannot be read or written; the message names it and what to do."""


def is_name(text: str | Path) -> bool:
    """Whether a text looks like OWNER/NAME and is no path that exists."""
    return bool(NAME.fullmatch(str(text))) and not os.path.lexists(text)


def check_path(argument: str, value: Any, or_else: str = "") -> None:
    """Raises ValueError, which names the argument, for what is neither a text nor a `Path`."""
    if not isinstance(value, str | Path):
        raise ValueError(f"{argument}={value!r} must be a path, as a text or a Path{or_else}")


def check_flag(argument: str, value: Any) -> None:
    """Raises ValueError, which names the argument, for anything but True and False."""
    if not isinstance(value, bool):
        raise ValueError(f"{argument}={value!r} must be True or False")


def check_name(name: str) -> None:
    """Raises HubError for what is no repository's name."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise HubError(f"{name!r} is no name of a repository on the hub; give OWNER/NAME")


def download(
    name: str,
    revision: str | None = None,
    offline: bool = False,
    choose: Choose | Stages = lambda names: names,
    api: Any = None,
) -> Path:
    """The folder of a repository in the hub's cache, with the files that are needed.

    Args:
      name: OWNER/NAME.
      revision: branch, tag or commit; default its main branch.
      offline: take what is in the cache, without asking the hub.
      choose: of a repository that is no shared run, the files to take.
      api: a `huggingface_hub.HfApi`, or what has its methods.

    Raises:
      HubError: no such repository, revision or file, no access to it, or no network and nothing in
        the cache.
    """
    check_name(name)
    if offline:
        return _cached(name, revision, "offline=True")
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi(library_name="paella_jax")
    try:
        with _errors_name(name, revision):
            return _download(api, name, revision, choose)
    except _NoNetwork as error:
        folder = _cached(name, revision, str(error))
        say(f"{error}: {name} is taken from the hub's cache", sys.stderr)
        return folder


def _download(api: Any, name: str, revision: str | None, choose: Choose | Stages) -> Path:
    info = api.model_info(name, revision=revision)
    names = [file.rfilename for file in info.siblings]
    is_ours = MANIFEST in names
    first = choose.first if isinstance(choose, Stages) else choose
    wanted = [MANIFEST] if is_ours else first(names)
    take = lambda files, commit: Path(
        api.snapshot_download(name, revision=commit, allow_patterns=[glob.escape(f) for f in files])
    )
    # By the branch's name, so that the cache knows its commit when there is no network.
    folder = take(wanted, revision)
    if isinstance(choose, Stages) and not is_ours:
        return take(choose.rest(folder, names), folder.name)
    manifest = read_manifest(folder) if is_ours else None
    return folder if manifest is None else take([MANIFEST, *manifest["files"]], folder.name)


def _cached(name: str, revision: str | None, why: str) -> Path:
    """The snapshot of a repository in the cache. Raises HubError where there is none."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    branch = folder / "refs" / (revision or MAIN)
    commit = branch.read_text().strip() if branch.is_file() else revision or MAIN
    snapshot = folder / "snapshots" / commit
    if not snapshot.is_dir():
        what = f"revision {revision} of {name}" if revision else name
        raise HubError(
            f"{what} is neither a folder here nor in the hub's cache {constants.HF_HUB_CACHE}, and "
            f"cannot be downloaded ({why}); check the path, or load it once with a network"
        )
    return snapshot


class _NoNetwork(Exception):
    """The hub could not be reached."""


@contextmanager
def _errors_name(name: str, revision: str | None = None) -> Iterator[None]:
    """Turns the hub's errors into one line each."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f"{name} is gated: accept its terms at https://huggingface.co/{name}, then {LOG_IN}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"{name} is neither a folder here nor a repository on the hub that you may see; check "
            f"the spelling, and if it is private {LOG_IN}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{name} has no revision {revision!r}; leave it out, or give one") from error
    except errors.HfHubHTTPError as error:
        raise HubError(f"the hub refused {name}: {_first_line(error)}") from error
    except (errors.LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        raise _NoNetwork("no network") from error
    except Exception as error:
        # The hub's client has had several HTTP libraries, which have classes of their own.
        if type(error).__module__.startswith(("httpx", "requests", "httpcore")):
            raise _NoNetwork("no network") from error
        raise


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def push_to_hub(
    source: Any,
    name: str,
    *,
    private: bool = False,
    message: str = "Share a run",
    api: Any = None,
) -> str:
    """Uploads a shared folder, after checking that it is whole, or a pipeline.

    Args:
      source: folder that `paella_jax.export` or `pipe.save` wrote, or a loaded pipeline.
      name: OWNER/NAME of the repository, which is made where there is none.
      private: whether a new repository can be seen by its owner alone.
      message: of the commit.
      api: a `huggingface_hub.HfApi`, or what has its methods.

    Returns:
      The address of the repository.

    Raises:
      ValueError: a source, `private` or `message` of another type.
      HubError: no such folder, no name, no network, not logged in, or not allowed.
      CheckpointError: files of the folder are missing or changed.

    Example:
      >>> push_to_hub("FOLDER", "OWNER/NAME", private=True)
      'https://huggingface.co/OWNER/NAME'
    """
    check_name(name)
    check_flag("private", private)
    if not isinstance(message, str):
        raise ValueError(f"message={message!r} must be a text")
    if hasattr(source, "save"):
        with tempfile.TemporaryDirectory() as place:
            saved = source.save(Path(place) / name.rpartition("/")[2])
            return push_to_hub(saved, name, private=private, message=message, api=api)
    check_path("source", source, ", or a loaded pipeline")
    folder = expanded(source)
    if read_manifest(folder) is None:
        raise HubError(
            f"{folder} is no shared folder; write one: python -m paella_jax.export --checkpoint "
            f"{folder} --out FOLDER"
        )
    check_files(folder)
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi(library_name="paella_jax")
    from huggingface_hub import errors

    try:
        with _errors_name(name):
            api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=str(folder), commit_message=message)
    except _NoNetwork as error:
        raise HubError(f"no network: {folder} was not uploaded to {name}; try again") from error
    except errors.LocalTokenNotFoundError as error:
        raise HubError(f"not logged in to the hub: {LOG_IN}") from error
    return f"https://huggingface.co/{name}"
