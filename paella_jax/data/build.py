"""From a config's data block to a source of captioned images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from paella_jax.config import IMPLIED, ConfigError
from paella_jax.data.array_records import ArrayRecords
from paella_jax.data.buckets import BucketedImages
from paella_jax.data.captioned import CaptionedImages
from paella_jax.data.cropping import Cropping
from paella_jax.data.encoded import EncodedSource
from paella_jax.data.fields import Wanted
from paella_jax.data.files_of_records import choose_files, find_files
from paella_jax.data.folder import FolderRecords
from paella_jax.data.loader import Source
from paella_jax.data.one_image import OneImageSource
from paella_jax.data.parquet import TableRecords
from paella_jax.data.records import Records, hold_back, tell
from paella_jax.data.shapes import get_spec
from paella_jax.data.sources import ShapesSource
from paella_jax.data.split import Held
from paella_jax.data.tfds_records import TfdsRecords, find_builder, validation_split
from paella_jax.data.webdataset import ShardRecords

CROPPING = ("crop", "resize", "flip", "background", "draft")
# Fields of `Held` and of a config's data block.
HELD = {"folder": "validation_folder", "fraction": "split", "seed": "split_seed",
        "column": "split_column"}  # fmt: skip
# Sources of files of many records: the field that names them, and what their names end with.
FILES = {
    "webdataset": ("shards", r"\.tar$"),
    "array_record": ("array_record", r"\.array_?record(-\d+-of-\d+)?$"),
    "parquet": ("parquet", r"^(?!cache-).*\.(parquet|arrow)$"),  # datasets keeps caches there
}
SOURCES = ("shapes", *IMPLIED.values())
# Fields that some sources alone read.
READ_BY = {
    "validation_folder": ("folder",),
    "validation_files": tuple(FILES),
    "validation_split": ("tfds",),
    "tfds_folder": ("tfds",),
}


def make_source(data: ConfigDict, split: str, seed: int) -> Source:
    """The training or validation source.

    Raises:
      ConfigError: unknown source or spec, wrong image size, data without images or captions, or
        an unfit single image or its caption.
    """
    if data.get("encoded"):
        return EncodedSource(data.encoded, split)
    # Old runs lack settings that came later.
    cropping = {name: data[name] for name in CROPPING if name in data}
    try:
        _refuse_unused(data)
        if data.source == "one_image":
            cropping.pop("draft", None)
            return OneImageSource(data.image_file, data.caption, data.image_size, **cropping)
        if data.source == "shapes":
            return _shapes(data, split, seed)
        if data.source not in SOURCES:
            raise ValueError(
                f"data.source must be one of {', '.join(SOURCES)}, got {data.source!r}"
            )
        checked = Cropping(data.image_size, **cropping)  # before anything is listed
        records, lines = make_records(data, split == "train"), data.get("caption_lines", False)
        if data.buckets and split == "train":
            return BucketedImages(records, data.buckets, lines, **cropping)
        return CaptionedImages(records, checked, lines)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def make_records(data: ConfigDict, training: bool) -> Records:
    """The records that a data block names, of any format, for training or for validation.

    Raises:
      ValueError: there are none, they are damaged, or lack images or captions.
    """
    held = Held(**{own: data[name] for own, name in HELD.items() if name in data})
    if data.source == "folder":
        texts = {name: data[name] for name in ("captions", "caption_lines") if name in data}
        part, group = "train" if training else "validation", data.get("group_field", "")
        return FolderRecords(data.folder, part, held, **texts, group_column=group)
    if data.source != "tfds" and data.source not in FILES:
        raise ValueError(f"data.source {data.source!r} has no records of captioned images")
    left_out: Counter[str] = Counter()
    read = _tfds if data.source == "tfds" else _files
    records, how, note = read(data, training, left_out)
    if not how:
        records, how = hold_back(records, held, training)
    tell(records.owner, len(records), training, how + note, left_out)
    return records


def _files(data: ConfigDict, training: bool, left_out: Counter[str]) -> tuple[Records, str, str]:
    """The records of the files that are for a split, how they were chosen, and what to add."""
    field, pattern = FILES[data.source]
    given, owner = data[field], f"data.{field} {data[field]}"
    if not given:
        raise ValueError(f"data.{field} is empty; give the files of data.source={data.source}")
    files = find_files(f"data.{field}", given, pattern, left_out)
    held: list[Path] = []
    if data.validation_files:
        held = find_files("data.validation_files", data.validation_files, pattern)
    chosen = choose_files(files, held, training, left_out)
    records = open_files(data.source, owner, chosen.files, _wanted(data), left_out)
    return records, chosen.how, chosen.note


def open_files(
    source: str, owner: str, files: Sequence[Path], wanted: Wanted, left_out: Counter[str]
) -> Records:
    """The records of files of one of the kinds in `FILES`.

    Args:
      source: the kind.
      owner: what they are, in messages.
      files: all to be read.
      wanted: which of their fields to read.
      left_out: gets the number of what is not used, by kind.

    Raises:
      ValueError: damaged files, no records, or none with such fields.
    """
    if source == "webdataset":
        return ShardRecords(owner, files, wanted, left_out)
    kind = ArrayRecords if source == "array_record" else TableRecords
    return kind(owner, files, wanted)


def _tfds(data: ConfigDict, training: bool, _: Counter[str]) -> tuple[Records, str, str]:
    """The same of a data set of TFDS."""
    if not data.tfds:
        raise ValueError("data.tfds is empty; give a data set's name, or its folder")
    builder, owner = find_builder(data.tfds, data.tfds_folder), f"data.tfds {data.tfds}"
    other = data.validation_split or validation_split(builder)
    split = data.training_split if training or not other else other
    how = f"split {split}" if other else ""
    return TfdsRecords(owner, builder, split, _wanted(data)), how, ""


def _wanted(data: ConfigDict) -> Wanted:
    """Which fields of records are read. `group_field` is asked for by scores alone."""
    return Wanted(
        data.image_field,
        data.caption_field,
        data.captions,
        data.caption_lines,
        data.get("group_field", ""),
    )


def _shapes(data: ConfigDict, split: str, seed: int) -> ShapesSource:
    spec = get_spec(data.spec)
    if spec.image_size != data.image_size:
        raise ValueError(
            f"data.image_size {data.image_size} does not fit spec {spec.name!r}, whose "
            f"images have {spec.image_size} pixels"
        )
    return ShapesSource(data.spec, split, data.size, seed)


def _refuse_unused(data: ConfigDict) -> None:
    """Raises ConfigError for images that are given and would not be read."""
    for name, source in IMPLIED.items():
        given = data.get(name.removeprefix("data."))
        if given and data.source in SOURCES and data.source != source:
            raise ConfigError(
                f"{name} is {given!r}, but data.source {data.source!r} would not read it: give "
                f"--config.data.source={source}, or leave {name} out"
            )
    for name, sources in READ_BY.items():
        if data.get(name) and data.source in SOURCES and data.source not in sources:
            raise ConfigError(
                f"data.{name} is {data[name]!r}, but data.source {data.source!r} does not read it "
                f"({', '.join(sources)}); leave it out"
            )
