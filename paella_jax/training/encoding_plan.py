"""What `encode` is to write: checks, the manifest, and which process writes which shards."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from paella_jax.config import ConfigError, flatten_config
from paella_jax.data.build import make_source
from paella_jax.data.captioned import CaptionedImages
from paella_jax.data.encoded import HOW_READ
from paella_jax.data.encoded_format import (
    EMPTY,
    MANIFEST,
    TOLD,
    Manifest,
    Split,
    Stored,
    dtype_of,
    read_manifest,
    tree_digest,
)
from paella_jax.data.loader import BatchwiseSource, Source
from paella_jax.data.shapes_maps import ShapesWithMaps
from paella_jax.data.sources import ShapesSource
from paella_jax.files.atomic import write_atomically
from paella_jax.files.safetensors_file import write_safetensors
from paella_jax.outside import say
from paella_jax.training.distributed import first_alone
from paella_jax.training.encode_shards import (
    IMAGE,
    Encoder,
    ShardWriter,
    sample_of,
    stored_fields,
)
from paella_jax.training.from_encoded import (
    NOTHING,
    encoding_of,
    network_digests,
    nothing_to_encode,
    tokenizer_digests,
)
from paella_jax.training.looked_at import told_of_data
from paella_jax.training.method import Encoding, Method
from paella_jax.training.metrics import report

TEXT_DTYPES = ("float32", "float16", "bfloat16")
NAMES = "names_of_samples"  # in a manifest's data, beside the fields of the config's
TRIES = 16  # draws that show whether variants differ


@dataclass(frozen=True)
class EncodeOptions:
    """How a data set is encoded.

    Attributes:
      variants: of each training sample.
      batch_size: samples at once, per process.
      shard_size: records per file.
      validation: the most validation samples that are stored, with their images; 0 for none.
      text_dtype: of frozen text states; empty for what the encoder gives.
    """

    variants: int = 1
    batch_size: int = 64
    shard_size: int = 4096
    validation: int = 256
    text_dtype: str = ""

    def check(self) -> None:
        """Raises ConfigError for what cannot be."""
        for name, least in (("variants", 1), ("batch_size", 1), ("shard_size", 1),
                            ("validation", 0)):  # fmt: skip
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        if self.text_dtype not in ("", *TEXT_DTYPES):
            raise ConfigError(
                f"--text_dtype must be one of {', '.join(TEXT_DTYPES)}, got {self.text_dtype!r}"
            )


def check_folder(config: ConfigDict, out: Path, options: EncodeOptions) -> None:
    """Raises ConfigError where nothing of a config can be encoded into a folder; reads no data."""
    if config.method in NOTHING:
        raise nothing_to_encode(config)
    if config.data.get("encoded"):
        raise ConfigError(
            f"data.encoded is {config.data.encoded!r}: encode reads images; leave it out"
        )
    if len(config.data.get("buckets", ())):
        raise ConfigError(
            "data.buckets gives images of several shapes, chosen batch by batch; encoded samples "
            "have one: leave data.buckets empty"
        )
    file = out / MANIFEST
    if not file.is_file():
        if out.is_dir() and any(out.glob("*.array_record")):
            raise ConfigError(f"{out} has shards but no {MANIFEST}; choose another --out")
        return
    found = read_manifest(out)
    data = {n: v for n, v in found.data.items() if n in config.data}
    changes = _changes({"method": found.method, "seed": found.seed, **_named(data)},
                       {"method": config.method, "seed": config.seed,
                        **_named(_data_block(config, data))})  # fmt: skip
    train = found.splits["train"]
    changes += _changes(
        {"--variants": train.variants, "--shard_size": train.per_shard},
        {"--variants": options.variants, "--shard_size": options.shard_size},
    )
    _refuse(out, changes)


@dataclass(frozen=True)
class Planned:
    """A data set that can be encoded, and whose manifest is written: its shards are left to do.

    Attributes:
      out: its folder.
      manifest: what it is.
      sources: of its splits.
      encoder: what runs the networks.
      method: of the config, on its images.
      threads: that read samples.
    """

    out: Path
    manifest: Manifest
    sources: Mapping[str, Source]
    encoder: Encoder
    method: Method
    threads: int

    def write(self, share: tuple[int, int] = (0, 1)) -> Manifest:
        """Writes a process's shards; returns the manifest that they belong to.

        Args:
          share: which process this is, of how many.

        Raises:
          EncodedDataError: a shard that is there is damaged.
        """
        began, (index, count) = time.monotonic(), share
        splits = self.manifest.splits
        own = [(name, s) for name, split in splits.items() for s in range(split.shards)]
        own = own[index::count]
        for number, (name, shard) in enumerate(own, 1):
            source, transform = self.sources[name], self.method.transform
            parts = (self.out, self.manifest, name, source, transform, self.encoder, self.threads)
            line = ShardWriter(*parts).write(shard)
            minutes = (time.monotonic() - began) / 60
            say(f"[{number}/{len(own)}, {minutes:.1f} min] {line}")
        return self.manifest


def plan_data(config: ConfigDict, out: Path, method: Method, options: EncodeOptions) -> Planned:
    """Checks what is to be encoded, tells how its captions and its tokenizer fit, and begins.

    Args:
      config: of a run.
      out: the folder, which exists; gets the manifest, or has it.
      method: of the config, on its images.
      options: checked.

    Raises:
      ConfigError: nothing can be encoded for the method, its variants would all be the same, or
        the folder holds another data set.
    """
    encoding = encoding_of(config, method)
    _check_source(method.source, config.seed, options.variants)
    sources = {"train": method.source}
    if options.validation:
        sources["validation"] = _validation_source(config, method)
    encoder = Encoder(encoding, method.frozen, options.batch_size)
    wanted = _manifest(config, method, encoding, sources, options)
    for line in wanted.data.get(TOLD, ()):
        report(line)
    first_alone("manifest", lambda: _begin(out, wanted, encoder, method))
    return Planned(out, read_manifest(out), sources, encoder, method, config.data.threads)


def _check_source(source: Source, seed: int, variants: int) -> None:
    """Raises ConfigError where the variants of samples would be the same again."""
    assert not isinstance(source, BatchwiseSource)  # `check_folder` refuses buckets
    if variants == 1:
        return
    for index in range(TRIES):
        first, second = (sample_of(source, seed, index % len(source), v) for v in (0, index + 1))
        if first["caption"] != second["caption"] or np.any(first[IMAGE] != second[IMAGE]):
            return
    raise ConfigError(
        f"--variants {variants} would store the same images {variants} times: set "
        "--config.data.crop=random (with data.resize above data.image_size) or "
        "--config.data.flip=True, or leave --variants out"
    )


def _validation_source(config: ConfigDict, method: Method) -> Source:
    source = make_source(config.data, "validation", config.seed)
    if isinstance(method.source, ShapesWithMaps) and isinstance(source, ShapesSource):
        return ShapesWithMaps(source)
    return source


def _manifest(
    config: ConfigDict,
    method: Method,
    encoding: Encoding,
    sources: Mapping[str, Source],
    options: EncodeOptions,
) -> Manifest:
    fields = stored_fields(method, encoding, options.text_dtype)
    size = options.shard_size
    splits = {"train": Split(len(sources["train"]), options.variants, size, fields)}
    if "validation" in sources:
        image = np.asarray(sources["validation"][0][IMAGE])
        shown = fields | {IMAGE: Stored("uint8", image.shape, "uint8")}
        count = min(len(sources["validation"]), options.validation)
        splits["validation"] = Split(count, 1, size, shown)
    told = told_of_data(method)
    return Manifest(
        method=config.method,
        networks=network_digests(encoding),
        tokenizers=tokenizer_digests(encoding),
        settings=dict(encoding.settings),
        data=_data_block(config)
        | _names_of_samples(sources, splits)
        | ({TOLD: told} if told else {}),
        seed=config.seed,
        empty="",
        splits=splits,
    )


def _names_of_samples(
    sources: Mapping[str, Source], splits: Mapping[str, Split]
) -> dict[str, dict[str, str]]:
    """A digest of the names of each split's samples; nothing of data that is made up.

    A stopped call that goes on would else mix samples, where others came and as many went.
    """
    digests = {}
    for split, source in sources.items():
        if isinstance(source, CaptionedImages):
            total = hashlib.sha256()
            for position in range(splits[split].count):
                total.update(source.records.name(position).encode("utf-8", "surrogatepass") + b"\0")
            digests[split] = total.hexdigest()[:16]
    return {NAMES: digests} if digests else {}


def _data_block(config: ConfigDict, names: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The config's data block as JSON has it."""
    block = {n: v for n, v in config.data.to_dict().items() if n not in HOW_READ}
    return {n: list(v) if isinstance(v, tuple) else v for n, v in block.items()
            if names is None or n in names}  # fmt: skip


def _named(data: Mapping[str, Any]) -> dict[str, Any]:
    return {f"data.{name}": value for name, value in data.items()}


def _begin(out: Path, wanted: Manifest, encoder: Encoder, method: Method) -> None:
    """Writes the manifest and the empty text's arrays, or checks the manifest that is there."""
    if (out / MANIFEST).is_file():
        return _refuse(out, _all_changes(read_manifest(out), wanted))
    empty = encoder.empty(method)
    kinds = {n: dtype_of(f.used_as) for n, f in wanted.splits["train"].fields.items()}
    empty = {name: array.astype(kinds[name]) for name, array in empty.items()}
    write_safetensors(out / EMPTY, empty)
    write_atomically(out / MANIFEST, replace(wanted, empty=tree_digest(empty)).to_json())
    for name, split in wanted.splits.items():
        sizes = [np.prod(f.shape) * dtype_of(f.dtype).itemsize for f in split.fields.values()]
        say(
            f"{out}: {split.count} x {split.variants} samples for {name}, {int(sum(sizes))} bytes "
            f"each before compression, in {split.shards} shards: {', '.join(split.fields)}"
        )


def _all_changes(found: Manifest, wanted: Manifest) -> list[str]:
    """What a folder's manifest has otherwise than this call's, but for its empty text and what was
    told of it.

    One that was written before the samples' names were has to go without them.
    """
    if NAMES not in found.data:
        wanted = replace(wanted, data={n: v for n, v in wanted.data.items() if n != NAMES})
    flat = []
    for manifest in (found, wanted):
        data = {name: value for name, value in manifest.data.items() if name != TOLD}
        flat.append(flatten_config(asdict(replace(manifest, empty="", data=data))))
    return _changes(*flat)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: {before.get(name)!r} -> {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _refuse(out: Path, changes: list[str]) -> None:
    """Raises ConfigError where a folder holds another data set."""
    if changes:
        raise ConfigError(
            f"{out} holds another encoded data set; choose another --out, or delete it. "
            "Differences (there -> this call):\n  " + "\n  ".join(changes)
        )
