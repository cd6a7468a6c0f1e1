"""What `encode` stores: ArrayRecord shards of samples, and one manifest that says what they are.

A folder has `manifest.json`, `empty.safetensors` (what encoders make of the empty text) and, for
each split, `train-00000-of-00004.array_record`. The records of a split follow one another through
its shards: all samples of the first variant, then all of the second. A shard's last record is its
seal, which ties it to the manifest and to its place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from paella_jax.config import ConfigError
from paella_jax.outside import parse_object

VERSION = 1
MOST_SHARDS = 10**6
MANIFEST, EMPTY = "manifest.json", "empty.safetensors"
TOLD = "told_when_encoded"  # in a manifest's data: lines on its captions and its tokenizer
# Rows of padding are not stored: the mask beside them says how many are text.
ROWS_OF = {"text_states": "text_mask"}
PROBES = (
    "", "a", "a small red circle above a large blue square", "Two cats, one dog; 3.14159!",
    "éàü ñ ß", "\u65e5\u672c\u8a9e \u4e2d\u6587", "naive cafe\u0301", "\U0001f600 emoji",
    "UPPER lower MiXeD", "http://example.org/?q=1&r=2", "tab\tand  two spaces",
    "[V] \"quoted\" 'x'",
    " ".join(f"word{i}" for i in range(200)), "".join(map(chr, range(32, 127))),
)  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """One array of every sample.

    Attributes:
      dtype: as it lies in the file.
      shape: of one sample.
      used_as: what it is read as.
    """

    dtype: str
    shape: tuple[int, ...]
    used_as: str


@dataclass(frozen=True)
class Split:
    """Samples of one split, how often each is there, and how many records a shard has."""

    count: int
    variants: int
    per_shard: int
    fields: dict[str, Stored]

    @property
    def records(self) -> int:
        """Of all shards."""
        return self.count * self.variants

    @property
    def shards(self) -> int:
        """How many files."""
        return -(-self.records // self.per_shard)

    def range_of(self, shard: int) -> range:
        """The records of a shard."""
        return range(shard * self.per_shard, min((shard + 1) * self.per_shard, self.records))

    def place(self, index: int, variant: int) -> tuple[int, int]:
        """Shard, and record in it, of a sample."""
        return divmod(variant * self.count + index, self.per_shard)


@dataclass(frozen=True)
class Manifest:
    """What an encoded data set is.

    Attributes:
      method: whose training it is for.
      networks: digests of the weights of the networks it was made with.
      tokenizers: digests of what the tokenizers of texts make of `PROBES`.
      settings: config fields, and other numbers, that the arrays depend on.
      data: the config's data block: where the images came from, and how they were cropped; and
        what was told of them when they were encoded (`TOLD`).
      seed: of crops, flips and drawn captions.
      empty: digest of what the encoders make of the empty text.
      splits: "train", and "validation" where there is one.
    """

    method: str
    networks: dict[str, str]
    tokenizers: dict[str, str]
    settings: dict[str, Any]
    data: dict[str, Any]
    seed: int
    empty: str
    splits: dict[str, Split]

    def to_json(self) -> str:
        """As the file has it; the same for the same contents."""
        written = {"format": "paella_jax encoded data", "version": VERSION, **asdict(self)}
        return json.dumps(written, indent=2, sort_keys=True) + "\n"

    @property
    def digest(self) -> str:
        """What the seals of its shards say."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def describe(self) -> str:
        """One line."""
        parts = [
            f"{split.count} x {split.variants} for {name} in {split.shards} shards"
            for name, split in self.splits.items()
        ]
        return f"method {self.method}, data.source={self.data['source']}, {', '.join(parts)}"


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of an encoded data set.

    Raises:
      ConfigError: no such folder, a damaged manifest, or one of another version.
    """
    file = Path(folder) / MANIFEST
    if not file.is_file():
        raise ConfigError(
            f"data.encoded {str(folder)!r} holds no {MANIFEST}; give the --out of "
            "python -m paella_jax.encode"
        )
    try:
        stored = parse_object(file.read_bytes())
        version = stored.pop("version")
        if version == VERSION:
            stored.pop("format")
            stored["splits"] = {n: _split(s) for n, s in stored["splits"].items()}
            manifest = Manifest(**stored)
            _check(manifest)
            return manifest
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{file} is damaged ({error!r}); encode the data again") from error
    raise ConfigError(
        f"{file} is of version {version}, this program reads version {VERSION}: encode the data "
        "again"
    )


def _check(manifest: Manifest) -> None:
    """Raises ValueError where a part is of another kind than its name says."""
    kinds = {"method": str, "networks": dict, "tokenizers": dict, "settings": dict, "data": dict,
             "seed": int, "empty": str}  # fmt: skip
    for name, kind in kinds.items():
        if not isinstance(getattr(manifest, name), kind):
            raise ValueError(f"{name} is no {kind.__name__}")
    size, source = manifest.data.get("image_size"), manifest.data.get("source")
    if type(size) is not int or size < 1 or not isinstance(source, str):
        raise ValueError("data does not say its source and image_size")
    for name, split in manifest.splits.items():
        counts = (split.count, split.variants, split.per_shard)
        if any(type(count) is not int or count < 0 for count in counts) or not split.per_shard:
            raise ValueError(f"{name} does not say how many samples it has")
        if split.shards > MOST_SHARDS:
            raise ValueError(f"{name} is said to have {split.shards} shards")
        for stored in split.fields.values():
            dtype_of(stored.dtype), dtype_of(stored.used_as)
            if any(type(side) is not int or side < 0 for side in stored.shape):
                raise ValueError(f"{name} has an array of shape {stored.shape}")


def _split(stored: dict[str, Any]) -> Split:
    fields = {n: Stored(**f | {"shape": tuple(f["shape"])}) for n, f in stored["fields"].items()}
    return Split(**stored | {"fields": fields})


def shard_name(name: str, split: Split, shard: int) -> str:
    """The file of a split's shard."""
    return f"{name}-{shard:05d}-of-{split.shards:05d}.array_record"


def seal(manifest: Manifest, name: str, shard: int) -> dict[str, Any]:
    """What a whole shard says of itself, but for the digest of its records."""
    records = manifest.splits[name].range_of(shard)
    place = {"split": name, "first": records.start, "records": len(records)}
    return {"manifest": manifest.digest, **place}


# --- records


def pack(sample: Mapping[str, np.ndarray], caption: str, fields: Mapping[str, Stored]) -> bytes:
    """One sample's arrays, by name, then its caption.

    Raises:
      ValueError: an array of another shape, or numbers that the stored type cannot hold.
    """
    parts = []
    for name in sorted(fields):
        field, array = fields[name], np.asarray(sample[name])
        if array.shape != field.shape:
            raise ValueError(f"{name} has shape {array.shape}, expected {field.shape}")
        rows = _rows(name, field, fields, sample)
        stored = array if rows is None else array[:rows]
        with np.errstate(over="ignore"):  # found below
            narrow = stored.astype(dtype_of(field.dtype))
        if narrow.dtype.kind in "iu" and not np.array_equal(narrow, stored):
            raise ValueError(f"{name} holds numbers that {field.dtype} cannot")
        if narrow.dtype.kind not in "biu" and not np.isfinite(narrow.astype(np.float32)).all():
            raise ValueError(f"{name} is not finite as {field.dtype}")
        parts.append(narrow.tobytes())
    return b"".join((*parts, caption.encode()))


def unpack(record: bytes, fields: Mapping[str, Stored]) -> dict[str, Any]:
    """The inverse of `pack`: arrays as they are used, and `caption`; padding is zero.

    Raises:
      ValueError: the record is too short, or its end is no text.
    """
    sample: dict[str, Any] = {}
    at = 0
    for name in sorted(fields):
        field, dtype = fields[name], dtype_of(fields[name].dtype)
        rows = _rows(name, field, fields, sample)
        shape = field.shape if rows is None else (rows, *field.shape[1:])
        size = int(np.prod(shape))
        array = np.frombuffer(record, dtype, size, at).reshape(shape)
        at += size * dtype.itemsize
        if rows is not None:
            padding = [(0, field.shape[0] - rows), *[(0, 0)] * (len(shape) - 1)]
            array = np.pad(array, padding)
        sample[name] = array.astype(dtype_of(field.used_as))
    sample["caption"] = record[at:].decode()
    return sample


def dtype_of(name: str) -> np.dtype:
    """A numpy type by name, bfloat16 too."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _rows(
    name: str, field: Stored, fields: Mapping[str, Stored], sample: Mapping[str, Any]
) -> int | None:
    """How many of an array's rows are stored; None for all."""
    mask = ROWS_OF.get(name)
    return int(np.asarray(sample[mask]).sum()) if mask and mask in fields else None


# --- digests


def tree_digest(leaves: Mapping[str, Any]) -> str:
    """Of named arrays: their names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name in sorted(leaves):
        array = np.ascontiguousarray(leaves[name])
        total.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def tokenizer_digest(
    tokenize: Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]],
) -> str:
    """Of the ids and masks that a tokenizer, which cuts long texts, makes of `PROBES`."""
    ids, mask = tokenize(PROBES)
    return tree_digest({"ids": np.asarray(ids, np.int32), "mask": np.asarray(mask, bool)})
