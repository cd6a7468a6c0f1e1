"""What a shared folder says of itself: `paella_jax.json`, with the digest of every file it needs.

It marks a folder that `paella_jax.export` wrote. What it lists is checked whenever the folder is
read; the card and its pictures are listed apart, since their owner may edit them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from paella_jax.config import CheckpointError
from paella_jax.files.atomic import write_atomically
from paella_jax.files.digests import check_list, describe, in_threads, problem
from paella_jax.files.regular import read_regular
from paella_jax.outside import parse_object

MANIFEST = "paella_jax.json"
FORMAT = 1


def files_of(folder: Path) -> list[str]:
    """All files below a folder, by their paths in it."""
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())


def write_manifest(folder: Path, card: Iterable[str], **told: Any) -> None:
    """Lists and digests what lies in a folder.

    Args:
      folder: with all its files.
      card: those of them that are for people alone.
      **told: further entries.
    """
    names, card = files_of(folder), set(card)
    content = {
        "format": FORMAT, **told,
        "files": {name: describe(folder / name) for name in names if name not in card},
        "card": {name: describe(folder / name) for name in names if name in card},
    }  # fmt: skip
    write_atomically(folder / MANIFEST, json.dumps(content, indent=2))


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """What a folder says of itself; None where it is no shared folder.

    Raises:
      CheckpointError: it is damaged, or of a newer form.
    """
    file = Path(folder) / MANIFEST
    if not file.is_file():
        return None
    try:
        content = parse_object(read_regular(file))
        if not isinstance(content.get("files"), dict):
            raise ValueError("it lists no files")
        if not isinstance(content.get("card", {}), dict):
            raise ValueError("it lists no card")
        if not isinstance(content.get("step", 0), int):
            raise ValueError(f"its step is {content['step']!r}")
        within = content.get("inside", [])
        if not isinstance(within, list):
            raise ValueError("it does not say which runs it holds")
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); download the folder again") from error
    check_list(content, file, FORMAT, [*content["files"], *content.get("card", {}), *within])
    return content


def check_files(folder: str | Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Compares the files of a shared folder with their digests; other folders pass.

    Args:
      folder: run folder.
      wanted: which of the listed files to look at; default all.

    Raises:
      CheckpointError: files are missing, cut short or changed; all are named.
    """
    folder, manifest = Path(folder), read_manifest(folder)
    if manifest is None:
        return
    wrong = differing_listed(folder, manifest, wanted)
    if wrong:
        told = "; ".join(f"{name} {what}" for name, what in wrong.items())
        raise CheckpointError(f"{folder} is not what was shared: {told}. Copy or download it again")


def differing_listed(
    folder: Path, manifest: dict[str, Any], wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, str]:
    """{name: what is wrong} of the files that a manifest lists."""
    listed = {name: known for name, known in manifest["files"].items() if wanted(name)}
    found = in_threads(lambda item: problem(folder / item[0], item[1]), listed.items())
    return {name: what for name, what in zip(listed, found, strict=True) if what}
