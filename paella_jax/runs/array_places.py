"""Where the arrays of a checkpoint lie in its files, as orbax's index (OCDBT) has it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Part = tuple[str, int, int]  # file, first byte, number of bytes


def array_places(state: Path, name: str) -> dict[str, list[Part]]:
    """{array: its parts}, without arrays so small that they are in the index.

    Args:
      state: folder of the arrays.
      name: of that folder, in front of the files' names.

    Returns:
      Nothing where it is no such index: who asks then takes whole files.
    """
    import tensorstore as ts

    store = ts.KvStore.open({"driver": "file", "path": f"{state}/"}).result()
    places: dict[str, list[Part]] = {}
    try:
        for key, place in _values(store):
            file, start, length = place.rsplit(":", 2)  # "value:FOLDER/:d/NAME:START:LENGTH"
            parts = places.setdefault(key.rpartition("/")[0], [])
            file = file.partition(":")[2].replace(":", "")
            parts.append((f"{name}/{file}", int(start), int(length)))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return {}
    return places


def between(file: str, size: int, arrays: Mapping[str, list[Part]]) -> list[Part]:
    """The parts of a file of `size` bytes that belong to no array."""
    taken = [part for parts in arrays.values() for part in parts if part[0] == file]
    found: list[Part] = []
    end = 0
    for _, start, length in sorted(taken):
        if start > end:
            found.append((file, end, start - end))
        end = max(end, start + length)
    return [*found, (file, end, size - end)] if size > end else found


def _values(store: Any) -> Iterator[tuple[str, str]]:
    """(key, where its value is) of the newest version of an OCDBT database."""
    root = _dumped(store)["versions"][-1]["root"]["location"]
    nodes = [(str(root), "")]
    while nodes:
        node, prefix = nodes.pop()
        for entry in _dumped(store, node)["entries"]:
            key = prefix + entry["key"].decode()
            if "location" in entry:
                below = prefix + entry["subtree_common_prefix"].decode()
                nodes.append((entry["location"], below))
            elif "indirect_value" in entry:
                yield key, entry["indirect_value"]


def _dumped(store: Any, *node: str) -> Any:
    """A node of the index.

    tensorstore never frees what is in the dicts that it gives (seen up to 0.1.86). They are copied
    and emptied, which leaves half of it: 600 bytes an array and save.
    """
    import tensorstore as ts

    given = ts.ocdbt.dump(store, *node).result()
    own = copy.deepcopy(given)
    _empty(given)
    return own


def _empty(given: Any) -> None:
    for below in given.values() if isinstance(given, dict) else given:
        if isinstance(below, dict | list):
            _empty(below)
    given.clear()
