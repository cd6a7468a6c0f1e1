"""Damages to files: of their bytes, of the values in them, and of the file system around them.

Every function takes a file's bytes and a generator and gives other bytes. Containers are damaged
inside and packed again as they were, so that the damage gets past their outer checks.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Mutation = Callable[[bytes, np.random.Generator], bytes]
PATHS = ("../../outside", "/etc/hostname", "..", ".", "", "a/../../b", "C:\\x", "\\\\host\\x",
         "~/x", "a/b", "file:///etc/hostname", "x" * 300)  # fmt: skip
TEXTS = ("\x1b[31mred", "two\nlines", "\r", "\0", "\u202eback", "\ud800", "é", "a" * 5000, "%s{}",
         "-1", "NaN", "1e999", "0x10", "[" * 300, "<script>", "\ufeff", "🙂")  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3.5, 1e308, -1e308, float("nan"), float("inf"), 2**31, 2**63,
    -(2**63), 2**64, 10**30, [], {}, [[]], [None], {"a": 1}, [1, 2, 3], [[1], [2, 3]],
)  # fmt: skip
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)


# --- bytes


def flip(data: bytes, draw: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(draw.integers(1, 4))):
        changed[draw.integers(len(changed))] ^= 1 << int(draw.integers(8))
    return bytes(changed)


def cut(data: bytes, draw: np.random.Generator) -> bytes:
    return data[: draw.integers(len(data))]


def insert(data: bytes, draw: np.random.Generator) -> bytes:
    place = draw.integers(len(data) + 1)
    return data[:place] + draw.bytes(int(draw.integers(1, 20))) + data[place:]


def remove(data: bytes, draw: np.random.Generator) -> bytes:
    first, last = _span(data, draw)
    return data[:first] + data[last:]


def repeat(data: bytes, draw: np.random.Generator) -> bytes:
    first, last = _span(data, draw)
    return data[:last] + data[first:last] * int(draw.integers(1, 30)) + data[last:]


def zero(data: bytes, draw: np.random.Generator) -> bytes:
    first, last = _span(data, draw)
    return data[:first] + bytes(last - first) + data[last:]


def number(data: bytes, draw: np.random.Generator) -> bytes:
    """A number of the format in another one's place."""
    size = int(draw.choice([1, 2, 4, 8]))
    value = int(NUMBERS[draw.integers(len(NUMBERS))]) % 2 ** (8 * size)
    place = int(draw.integers(max(len(data) - size, 0) + 1))
    order = "little" if draw.random() < 0.7 else "big"
    return data[:place] + value.to_bytes(size, order) + data[place + size :]


def text(data: bytes, draw: np.random.Generator) -> bytes:
    """A text somewhere that means something to a terminal, a shell or a parser."""
    words = (*TEXTS, *PATHS)
    word = words[draw.integers(len(words))].encode("utf-8", "surrogatepass")
    first, last = _span(data, draw) if draw.random() < 0.5 else (draw.integers(len(data) + 1),) * 2
    return data[:first] + word + data[last:]


def _span(data: bytes, draw: np.random.Generator) -> tuple[int, int]:
    first = int(draw.integers(len(data) + 1))
    return first, min(len(data), first + int(draw.integers(1, 64)))


BYTES: tuple[Mutation, ...] = (flip, flip, cut, insert, remove, repeat, zero, number, number, text)


def mutate_bytes(data: bytes, draw: np.random.Generator) -> bytes:
    return BYTES[draw.integers(len(BYTES))](data or b"\0", draw)


# --- values


def nasty(draw: np.random.Generator) -> Any:
    kind = draw.integers(4)
    if kind == 0:
        return PATHS[draw.integers(len(PATHS))]
    if kind == 1:
        return TEXTS[draw.integers(len(TEXTS))]
    if kind == 2 and draw.random() < 0.1:
        nested: Any = 1
        for _ in range(int(draw.choice([50, 400, 990]))):
            nested = [nested] if draw.random() < 0.5 else {"a": nested}
        return nested
    return VALUES[draw.integers(len(VALUES))]


def mutate_value(value: Any, draw: np.random.Generator) -> Any:
    """A value with one of its parts replaced, renamed, doubled or left out."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        changed, keys = dict(value), list(value)
        key = keys[draw.integers(len(keys))]
        how = draw.integers(8)
        if how == 0:
            del changed[key]
        elif how == 1:
            changed[str(nasty(draw))] = changed.pop(key)
        elif how == 2:
            changed[str(nasty(draw))] = nasty(draw)
        else:
            changed[key] = mutate_value(value[key], draw)
        return changed
    if isinstance(value, list) and value and draw.random() < 0.8:
        place, how = int(draw.integers(len(value))), draw.integers(5)
        rest = value[:place], value[place + 1 :]
        inner = [mutate_value(value[place], draw)]
        return rest[0] + ([] if how == 0 else [value[place]] * 3 if how == 1 else inner) + rest[1]
    return nasty(draw)


def mutate_json(data: bytes, draw: np.random.Generator) -> bytes:
    try:
        value = json.loads(data)
    except ValueError:
        return mutate_bytes(data, draw)
    return as_json(mutate_value(value, draw), draw)


def as_json(value: Any, draw: np.random.Generator) -> bytes:
    written = json.dumps(value)
    if draw.random() < 0.02:
        written = written.replace("1", "1" * 5000, 1)
    return written.encode()


def mutate_rows(data: bytes, draw: np.random.Generator) -> bytes:
    """Lines of JSON, one of them damaged."""
    lines = data.split(b"\n")
    place = int(draw.integers(len(lines)))
    lines[place] = mutate_json(lines[place] or b"{}", draw)
    return b"\n".join(lines)


def mutate_table(data: bytes, draw: np.random.Generator) -> bytes:
    """A cell, a separator or a line of a table."""
    lines = data.decode("utf-8", "replace").split("\n")
    place = int(draw.integers(len(lines)))
    mark = "\t" if "\t" in lines[0] else ","
    cells = lines[place].split(mark)
    cells[draw.integers(len(cells))] = str(nasty(draw))
    quote = '"' if draw.random() < 0.1 else ""
    lines[place] = quote + mark.join(cells)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def mutate_overrides(data: bytes, draw: np.random.Generator) -> bytes:
    """One override of a few, with another value or another name."""
    lines = data.decode("utf-8", "replace").split("\n")
    name, _, value = lines[draw.integers(len(lines))].partition("=")
    how = draw.integers(4)
    if how == 0:
        name = name + str(nasty(draw))
    elif how == 1:
        value = mutate_bytes(value.encode() or b"0", draw).decode("utf-8", "replace")
    else:
        value = str(nasty(draw))
    return f"{name}={value}".encode("utf-8", "surrogatepass")


# --- inside of containers


def in_safetensors(data: bytes, draw: np.random.Generator) -> bytes:
    """The header's values, with a length that fits it."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header = mutate_value(header, draw)
    written = as_json(header, draw)
    written += b" " * (-len(written) % 8)
    return len(written).to_bytes(8, "little") + written + data[8 + length :]


def in_zip(data: bytes, draw: np.random.Generator) -> bytes:
    """One entry's bytes, name or absence."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(made, "w") as target:
        names = source.namelist()
        chosen = names[draw.integers(len(names))]
        pickles = [name for name in names if name.endswith(".pkl")]
        chosen = pickles[0] if pickles and draw.random() < 0.7 else chosen
        how = draw.integers(12)
        for name in names:
            content = source.read(name)
            if name == chosen and how == 0:
                continue
            if name == chosen and how == 1:
                name = f"archive/{PATHS[draw.integers(len(PATHS))]}"
            elif name == chosen:
                content = mutate_bytes(content, draw)
            target.writestr(name, content)
    return made.getvalue()


def in_png(data: bytes, draw: np.random.Generator) -> bytes:
    """One chunk's bytes, with a checksum that fits them."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    if not chunks:
        return mutate_bytes(data, draw)
    chosen = int(draw.integers(len(chunks)))
    kind, content = chunks[chosen]
    chunks[chosen] = (kind, mutate_bytes(content, draw))
    made = data[:8]
    for kind, content in chunks:
        check = zlib.crc32(kind + content)
        made += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)
    return made


def in_tar(data: bytes, draw: np.random.Generator) -> bytes:
    """A field of one header, with a checksum that fits it."""
    headers, place = [], 0
    while place + 512 <= len(data) and data[place : place + 512].strip(b"\0"):
        headers.append(place)
        size = int(data[place + 124 : place + 136].strip(b" \0") or b"0", 8)
        place += 512 + -(-size // 512) * 512
    at = headers[draw.integers(len(headers))]
    block = bytearray(data[at : at + 512])
    field = [(0, 100), (124, 136), (156, 157), (257, 265), (345, 500)][draw.integers(5)]
    inner = mutate_bytes(bytes(block[slice(*field)]), draw)
    if draw.random() < 0.3:
        words = (*TEXTS, *PATHS)
        inner = words[draw.integers(len(words))].encode("utf-8", "surrogatepass")
    block[slice(*field)] = inner[: field[1] - field[0]].ljust(field[1] - field[0], b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return data[:at] + bytes(block) + data[at + 512 :]


def in_npy(data: bytes, draw: np.random.Generator) -> bytes:
    """The header of an array, with a length that fits it."""
    length = int.from_bytes(data[8:10], "little")
    header = data[10 : 10 + length].rstrip(b" \n")
    if draw.random() < 0.5:
        shapes = ("(True, None)", "(2**40,)", "(1099511627776, 4)", "(-1, 4)", "(1e3,)", "4", "()",
                  "(0, 0)", "(4, 4, 4)")  # fmt: skip
        kinds = ("'|O'", "'<U3'", "[('a', '<i4')]", "'<f8'", "'<c16'", "'|V4'", "3", "'x'", "'<M8'")
        dtype, shape = kinds[draw.integers(len(kinds))], shapes[draw.integers(len(shapes))]
        header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    else:
        header = mutate_bytes(header, draw)
    header = (header + b" " * (-(len(header) + 11) % 64) + b"\n")[:65535]
    return data[:8] + struct.pack("<H", len(header)) + header + data[10 + length :]


# --- the file system


OTHERS = ("gone", "a folder", "a link to elsewhere", "a link to itself", "a dangling link", "empty")


def misplace(file: Path, draw: np.random.Generator) -> str:
    """Puts something else in a file's place; what, in words."""
    how = int(draw.integers(6))
    if file.is_file():
        file.unlink()
    if how == 1:
        file.mkdir()
    elif how == 2:
        file.symlink_to("/etc/hostname")
    elif how == 3:
        file.symlink_to(file.name)
    elif how == 4:
        file.symlink_to(file.with_name("nothing"))
    elif how == 5:
        file.write_bytes(b"")
    return OTHERS[how]


def put_back(file: Path, data: bytes) -> None:
    """What was there before."""
    if file.is_dir() and not file.is_symlink():
        os.rmdir(file)
    file.unlink(missing_ok=True)
    file.write_bytes(data)
