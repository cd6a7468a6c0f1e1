"""A folder of many images that says what each of them is, and goes on where it was left.

One PNG per image, with its record in the file's texts, and one line of JSON per image in
`manifest.jsonl`. An image counts as drawn once its line is there; a line that a stop cut in two is
dropped and its image taken over from the file's own texts.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from paella_jax.config import UserError
from paella_jax.images.png import read_png_texts, save_png
from paella_jax.outside import parse_json

MANIFEST = "manifest.jsonl"
RECORD = "record"  # keyword of a PNG's text with all of its record as JSON
MISNAMED = "base."  # what names of settings in older records of two runs begin with
MEASURED = ("score", "number")  # what drawing finds out: no part of what is asked for


class GalleryError(UserError, ValueError):
    """A folder holds images of something else; the message names the file and what differs."""


class Gallery:
    """The folder, open for adding; one process at a time."""

    def __init__(self, folder: Path, run: str) -> None:
        """Opens or makes the folder and reads its manifest.

        Args:
          folder: where to.
          run: digest of what draws; it is in every record.

        Raises:
          GalleryError: another process draws there, another run has, or a line is damaged.
          OSError: the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._run = folder, run
        self._stream: IO[bytes] = (folder / MANIFEST).open("a+b")
        self._known: dict[str, bytes] = {}  # some 100 bytes an image
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._stream.close()
            raise GalleryError(
                f"another process draws into {folder}; choose another --out"
            ) from None
        except OSError:
            pass  # a file system without locks
        try:
            self._read()
        except GalleryError:
            self._stream.close()
            raise

    def __enter__(self) -> Gallery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stream.close()

    def has(self, record: Mapping[str, Any]) -> bool:
        """Whether an image is drawn already, of exactly this record.

        Raises:
          GalleryError: there is an image of the record's file that is something else.
        """
        name = record["file"]
        file = self.folder / name
        if not file.is_file():
            return False
        if name not in self._known:
            found = _parsed(read_png_texts(file).get(RECORD, ""))
            if found is None:
                raise GalleryError(
                    f"{file} is there already and no image of such a call; choose another --out"
                )
            self._refuse_another(found, record)
            self._append(found)
        elif self._known[name] != _digest(record):
            self._refuse_another(self._line(name), record)
        return True

    def add(self, image: np.ndarray, record: Mapping[str, Any]) -> None:
        """Writes an image uint8 [height, width, 3], then its line.

        Raises:
          GalleryError: the disk is full, or the like.
        """
        try:
            save_png(self.folder / record["file"], image, png_texts(record))
            self._append(record)
        except OSError as error:
            raise GalleryError(
                f"cannot write {self.folder / record['file']}: {error.strerror}; what is drawn is "
                "kept, the same call goes on"
            ) from error

    def _append(self, record: Mapping[str, Any]) -> None:
        self._stream.write(_json(record).encode() + b"\n")
        self._stream.flush()
        self._known[record["file"]] = _digest(record)

    def _read(self) -> None:
        """Learns what is drawn, line by line, and cuts off a line without an end."""
        self._stream.seek(0)
        whole = 0
        for number, line in enumerate(self._stream, 1):
            if not line.endswith(b"\n"):
                break
            record = _parsed(line.decode(errors="replace"))
            if record is None:
                raise GalleryError(
                    f"{self.folder / MANIFEST}, line {number} is damaged; remove the line, or "
                    "choose another --out"
                )
            if record.get("run") != self._run:
                raise GalleryError(
                    f"{self.folder} holds images of another run ({record.get('run')}, in line "
                    f"{number} of {MANIFEST}; this one is {self._run}); choose another --out"
                )
            self._known[record["file"]] = _digest(record)
            whole += len(line)
        self._stream.truncate(whole)

    def _line(self, name: str) -> dict[str, Any]:
        """The last record of a file in the manifest."""
        self._stream.seek(0)
        records = (_parsed(line.decode(errors="replace")) for line in self._stream)
        return [record for record in records if record and record["file"] == name][-1]

    def _refuse_another(self, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        before, now = _asked(found), _asked(asked)
        changed = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
        if any(name.startswith(MISNAMED) for name in before):
            raise GalleryError(
                f"{self.folder / asked['file']} was drawn by two runs with an older paella_jax, "
                "which recorded the settings of one under the other's names, so that nobody can "
                "tell whether this call asks for the same; choose another --out"
            )
        if changed:
            name = changed[0]
            raise GalleryError(
                f"{self.folder / asked['file']} was drawn with {name} {before.get(name)!r}, this "
                f"call asks for {now.get(name)!r}; choose another --out"
            )


def png_texts(record: Mapping[str, Any]) -> dict[str, str]:
    """What a PNG says of itself: prompt, negative prompt and seed for people, and the record."""
    own = ("prompt", "negative_prompt", "seed")
    return {name: str(record[name]) for name in own if name in record} | {RECORD: _json(record)}


def _asked(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record asks for, flat, as it comes back from JSON."""
    known = json.loads(_json(record))
    settings = known.pop("settings", {})
    return {name: known[name] for name in known if name not in MEASURED} | settings


def _digest(record: Mapping[str, Any]) -> bytes:
    return hashlib.blake2b(_json(_asked(record)).encode(), digest_size=16).digest()


def _json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, sort_keys=True)


def _parsed(text: str) -> dict[str, Any] | None:
    """A record, or None where the text is none."""
    try:
        record = parse_json(text)
    except (ValueError, RecursionError):
        return None
    named = isinstance(record, dict) and isinstance(record.get("file"), str)
    return record if named else None
