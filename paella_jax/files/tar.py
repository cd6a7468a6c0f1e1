"""Where the files of a tar archive lie in it: names, offsets and sizes, without their contents.

Plain, GNU and pax archives. Unlike `tarfile`, which takes a damaged header for the end, everything
that is wrong is told.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, NamedTuple

BLOCK = 512
NAME, SIZE, CHECKSUM, KIND, PREFIX = (
    slice(0, 100), slice(124, 136), slice(148, 156), slice(156, 157), slice(345, 500)
)  # fmt: skip
FILES = (b"0", b"\0", b"7")
LONG_NAME, LONG_LINK, PAX, PAX_FOR_ALL, SPARSE = b"L", b"K", b"x", b"g", b"S"
LONGEST_HEADER = 2**20  # bytes of a long name or of pax records
MOST_DIGITS = 20  # of sizes in pax records
ZEROS = bytes(BLOCK)


class Member(NamedTuple):
    """A regular file in an archive: its name, and where its bytes are."""

    name: str
    offset: int
    size: int


class TarError(ValueError):
    """An archive is damaged or cut off; the message names it and the place."""


def list_members(file: Path) -> tuple[list[Member], bool]:
    """The regular files of an archive in their order, and whether it has its end mark.

    Raises:
      TarError: not a tar archive, damaged, cut off inside of a file, or sparse.
      OSError: it cannot be read.
    """
    length = file.stat().st_size
    with file.open("rb") as opened:
        return _Walk(file, opened, length).members()


class _Walk:
    def __init__(self, file: Path, opened: BinaryIO, length: int) -> None:
        self.file, self.opened, self.length = file, opened, length
        self.place = 0

    def members(self) -> tuple[list[Member], bool]:
        found: list[Member] = []
        name, size = "", -1  # what an entry before says of the next file
        while self.place < self.length:
            block = self._block()
            if block == ZEROS:
                return found, True
            kind, own = block[KIND], self._number(block[SIZE])
            if kind in (LONG_NAME, LONG_LINK, PAX, PAX_FOR_ALL):
                content = self._content(own)
                if kind == LONG_NAME:
                    name = _text(content)
                elif kind == PAX:
                    given = self._pax(content)
                    name = given.get("path", name)
                    size = int(given.get("size", size))
                continue
            if kind == SPARSE:
                raise self._error("holds a sparse file; pack it anew without --sparse")
            # Links and folders have a size in some archives and never content.
            own = (own if size < 0 else size) if kind in FILES else 0
            self._skip(own, name or _name(block))
            if kind in FILES:
                found.append(Member(name or _name(block), self.place - _padded(own), own))
            name, size = "", -1
        if not found:
            raise self._error("is empty")
        return found, False

    def _block(self) -> bytes:
        self.opened.seek(self.place)
        block = self.opened.read(BLOCK)
        if len(block) < BLOCK:
            raise self._error("is cut off")
        if block != ZEROS:
            given = self._number(block[CHECKSUM])
            if given != sum(block) - sum(block[CHECKSUM]) + 8 * ord(" "):
                kind = "is damaged" if self.place else "is not a tar archive"
                raise self._error(kind)
        self.place += BLOCK
        return block

    def _content(self, size: int) -> bytes:
        if size > LONGEST_HEADER:
            raise self._error("is damaged")
        content = self.opened.read(size)
        self._skip(size, "a header")
        return content

    def _skip(self, size: int, name: str) -> None:
        if size < 0 or self.place + size > self.length:
            raise self._error(f"is cut off inside of {name}")
        self.place += _padded(size)

    def _number(self, field: bytes) -> int:
        if field[0] & 0x80:  # large sizes, in binary
            return int.from_bytes(field[1:], "big")
        try:
            return int(field.strip(b" \0") or b"0", 8)
        except ValueError:
            raise self._error("is damaged" if self.place else "is not a tar archive") from None

    def _pax(self, content: bytes) -> dict[str, str]:
        """Records "LENGTH NAME=VALUE\\n"."""
        found, place = {}, 0
        while place < len(content):
            space = content.find(b" ", place, place + MOST_DIGITS + 1)
            length = content[place : max(space, place)]
            end = place + int(length) if length.isdigit() else 0
            if not place < space < end <= len(content):
                raise self._error("is damaged")
            key, _, value = content[space + 1 : end - 1].partition(b"=")
            found[_text(key)] = _text(value)
            place = end
        size = found.get("size", "0")
        if not (size.isascii() and size.isdigit() and len(size) <= MOST_DIGITS):
            raise self._error("is damaged")
        return found

    def _error(self, what: str) -> TarError:
        return TarError(f"{self.file} {what} (at byte {self.place} of {self.length})")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "surrogateescape")


def _name(block: bytes) -> str:
    name = block[NAME].split(b"\0")[0]
    prefix = block[PREFIX].split(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)
