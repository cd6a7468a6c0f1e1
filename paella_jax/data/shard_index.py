"""Where the samples of a tar shard lie, found once and kept beside it.

Samples are files of one name before its first dot, as webdataset has them: NAME.jpg, NAME.txt,
NAME.json. They need not follow each other. The index of SHARD.tar is SHARD.tar.index.npz, or where
that cannot be written a file in the user's cache; it is made again when the shard changes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paella_jax.data.captions import CAPTION_SUFFIXES
from paella_jax.data.listing import UNREAD_IMAGES, suffixes, why_left_out
from paella_jax.files.arrays import read_npz
from paella_jax.files.atomic import atomic_path
from paella_jax.files.tar import Member, list_members
from paella_jax.outside import parse_object

VERSION = 3
SUFFIX = ".index.npz"
# Bytes of a part of a sample: where it begins, and how many. It begins at 0 where there is none.
PARTS = ("image", "text", "json")
ROW = np.dtype([(f"{part}_{what}", np.int64) for part in PARTS for what in ("offset", "size")])
AGAIN = "files of a name that comes again"
NO_END = "archives without an end mark (cut off?)"


class ShardIndex(NamedTuple):
    """The samples of one shard.

    Attributes:
      rows: ROW [samples].
      names: what stands before their first dot, UTF-8, one after the other, uint8 [bytes].
      ends: where each name ends, int64 [samples].
      left_out: number of files and samples that are not used, by kind.
    """

    rows: np.ndarray
    names: np.ndarray
    ends: np.ndarray
    left_out: dict[str, int]

    def name(self, row: int) -> str:
        """A sample's name."""
        begin = int(self.ends[row - 1]) if row else 0
        return self.names[begin : int(self.ends[row])].tobytes().decode("utf-8", "replace")


def index_of(shard: Path) -> ShardIndex:
    """The index of a shard, read where it is kept, else made and kept.

    Raises:
      ValueError: the shard is damaged or cut off, or OSError: it cannot be read.
    """
    mark = _mark(shard)
    for place in _places(shard):
        found = _load(place, mark)
        if found is not None:
            return found
    members, whole = list_members(shard)
    made = make_index(members)
    if not whole:
        made.left_out[NO_END] = 1
    for place in _places(shard):
        if _save(place, mark, made):
            break
    return made


def make_index(members: Iterable[Member]) -> ShardIndex:
    """Groups the files of a shard to samples; of two files of one name the later counts.

    With it a sample begins anew, lest one have the image of the first and the caption of the
    second. Only an image stays where no other follows: texts alone may be renewed.
    """
    left_out: Counter[str] = Counter()
    samples: dict[str, dict[str, Member]] = {}
    before: dict[str, Member] = {}  # images of samples that began anew
    last, run = "", set[str]()  # the suffixes of the name that is being read
    for member in members:
        folder, slash, file = member.name.rpartition("/")
        stem, dot, suffix = file.partition(".")
        why = why_left_out(file) or ("" if dot else "without suffix")
        if why:
            left_out[why] += 1
            continue
        name, suffix = folder + slash + stem, suffix.lower()
        last, run = name, run if name == last else set()
        parts = samples.setdefault(name, {})
        if suffix in parts:
            run = set() if suffix in run else run
            dropped = {kind: parts.pop(kind) for kind in parts.keys() - run}
            left_out[AGAIN] += len(dropped)
            image = _first(dropped, _kinds_of_images())
            before |= {} if image is None else {name: image}
        parts[suffix] = member
        run.add(suffix)
    return _packed(samples, before, left_out)


def _packed(
    samples: dict[str, dict[str, Member]], before: dict[str, Member], left_out: Counter[str]
) -> ShardIndex:
    images = _kinds_of_images()
    texts = [suffix[1:] for suffix in CAPTION_SUFFIXES]
    rows, names, ends, length = [], [], [], 0
    for name, parts in samples.items():
        of_sample = [_first(parts, kinds) for kinds in (images, texts, ["json"])]
        used = {member for member in of_sample if member is not None}
        for suffix, member in parts.items():
            if member not in used:
                advice = " (not read; convert to PNG or JPEG)"
                left_out[f".{suffix}" + advice * (f".{suffix}" in UNREAD_IMAGES)] += 1
        if of_sample[0] is None and name in before:
            of_sample[0] = before[name]
            left_out[AGAIN] -= 1
        if of_sample[0] is None:
            left_out["samples without an image"] += 1
            continue
        rows.append(tuple(v for m in of_sample for v in ((0, 0) if m is None else m[1:])))
        names.append(name.encode("utf-8", "surrogateescape"))
        length += len(names[-1])
        ends.append(length)
    text = np.frombuffer(b"".join(names), np.uint8)
    return ShardIndex(np.array(rows, ROW), text, np.array(ends, np.int64), dict(left_out))


def _kinds_of_images() -> list[str]:
    return [suffix[1:] for suffix in sorted(suffixes())]


def _first(parts: dict[str, Member], kinds: list[str]) -> Member | None:
    return next((parts[kind] for kind in kinds if kind in parts), None)


def _mark(shard: Path) -> list[int]:
    """What changes when a shard does."""
    status = shard.stat()
    return [VERSION, status.st_size, status.st_mtime_ns]


def _places(shard: Path) -> list[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    digest = hashlib.sha256(str(shard.absolute()).encode("utf-8", "surrogateescape")).hexdigest()
    beside = shard.with_name(shard.name + SUFFIX)
    return [beside, cache / "paella_jax" / "shards" / (digest[:32] + SUFFIX)]


def _load(place: Path, mark: list[int]) -> ShardIndex | None:
    """A kept index; None where there is none of this shard as it is."""
    try:
        found = read_npz(place, ("mark",))
        if found["mark"].tolist() != mark:
            return None
        found = read_npz(place)
        left_out = parse_object(found["left_out"].tobytes())
        rows = found["rows"].astype(np.int64, casting="equiv").reshape(-1).view(ROW)
        index = ShardIndex(rows, found["names"], found["ends"], left_out)
        if found["digest"].tobytes() != _digest(index):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index if _is_sound(index, mark[1]) else None


def _is_sound(index: ShardIndex, size: int) -> bool:
    """Whether all that a kept index points to is there."""
    inside = True
    for part in PARTS:
        first, count = index.rows[f"{part}_offset"], index.rows[f"{part}_size"]
        inside = inside and bool((first >= 0).all() and (count >= 0).all())
        inside = inside and bool((first <= size - count).all())
    ends = index.ends
    in_order: Any = ends.dtype == np.int64 and ends.shape == index.rows.shape
    in_order = in_order and index.names.dtype == np.uint8 and index.names.ndim == 1
    in_order = in_order and (np.diff(ends, prepend=0) >= 0).all()
    in_order = in_order and (ends <= len(index.names)).all()
    counts = all(isinstance(count, int) for count in index.left_out.values())
    return bool(inside and in_order and counts)


def _digest(index: ShardIndex) -> bytes:
    """Of all that is kept, as a damaged index would give other samples."""
    sha = hashlib.sha256(json.dumps(index.left_out, sort_keys=True).encode())
    for array in (index.rows, index.names, index.ends):
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.digest()


def _save(place: Path, mark: list[int], index: ShardIndex) -> bool:
    """Keeps an index; whether that could be done."""
    left_out = np.frombuffer(json.dumps(index.left_out).encode(), np.uint8)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(place) as part, part.open("wb") as opened:
            np.savez(
                opened,
                mark=np.array(mark, np.int64),
                digest=np.frombuffer(_digest(index), np.uint8),
                left_out=left_out,
                rows=index.rows.view(np.int64).reshape(-1, len(ROW.names or ())),
                names=index.names,
                ends=index.ends,
            )
    except OSError:
        return False
    return True
