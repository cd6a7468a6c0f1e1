"""Data sets of TensorFlow Datasets as records, read by `tfds.data_source` without TensorFlow.

They must be prepared in a format of random access: ArrayRecord or parquet.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paella_jax.config import ConfigError
from paella_jax.data.fields import ALL, Fields, Wanted, choose_fields, names_of
from paella_jax.data.records import Record
from paella_jax.data.split_names import TEST, VALIDATION
from paella_jax.data.tfds_features import check_features
from paella_jax.outside import shortened


class TfdsRecords:
    """The examples of one split.

    Args:
      owner: what they are, in messages.
      builder: from `find_builder`.
      split: as TFDS writes it, such as "train" or "train[:90%]".
      wanted: which of their fields to read.

    Raises:
      ValueError: no such split, no examples, not of random access, or no such features.
    """

    def __init__(
        self,
        owner: str,
        builder: Any,
        split: str,
        wanted: Wanted = ALL,
    ) -> None:
        self.owner, self.split = owner, split
        self.source = _open(owner, builder, split)
        if not len(self):
            raise ValueError(f"{owner} has no examples in split {split!r}")
        try:
            names = names_of(self._example(0))
        except OSError as error:
            raise ValueError(f"{owner}: its first example cannot be read: {error}") from error
        self.fields: Fields = choose_fields(owner, names, wanted)

    def __len__(self) -> int:
        return len(self.source)

    def name(self, position: int) -> str:
        """The split and the example's number in it."""
        return f"{self.split}[{position}]"

    def missing(self) -> Iterator[tuple[int, str]]:
        """See `records.Records`; nothing is known without reading."""
        return iter(())

    def read(self, position: int) -> Record:
        """See `records.Records`."""
        record = self._example(position)
        captions = self.fields.captions_of(record)
        image = self.fields.image_of(record, self.name(position))
        return Record(image, captions, self.fields.group_of(record))

    def _example(self, position: int) -> Any:
        try:
            return self.source[position]
        except Exception as error:  # of a damaged file, readers raise nearly anything
            raise OSError(str(error) or type(error).__name__) from error


def find_builder(name: str, folder: str) -> Any:
    """TFDS's builder of a prepared data set.

    Args:
      name: NAME, NAME/CONFIG, NAME:VERSION, or the folder that holds its dataset_info.json.
      folder: where data sets are prepared; empty for TFDS's own.

    Raises:
      ConfigError: without tensorflow-datasets.
      ValueError: there is no such data set, or it would run code of its own.
    """
    tfds = _tfds()
    place = Path(name).expanduser()
    is_folder = (place / "dataset_info.json").is_file()
    for found in [place] if is_folder else _folders_of(name, folder):
        check_features(found)
    try:
        if is_folder:
            return tfds.builder_from_directory(str(place))
        return tfds.builder(name, data_dir=str(Path(folder).expanduser()) if folder else None)
    except Exception as error:  # of a damaged folder, TFDS raises nearly anything
        reason = shortened(str(error).split("\n")[0]) or type(error).__name__
        raise ValueError(
            f"data.tfds {name!r} cannot be read: {reason}; give the folder that holds its "
            "dataset_info.json, or its name and data.tfds_folder"
        ) from error


def _folders_of(name: str, folder: str) -> list[Path]:
    """Where TFDS looks for the versions of a data set, as it may write the name in two ways."""
    places = Path(folder or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    plain = re.split("[/:]", name)[0].replace("_", "").lower()
    try:
        return [p for p in places.iterdir() if p.name.replace("_", "").lower() == plain]
    except OSError:
        return []  # TFDS says so


def validation_split(builder: Any) -> str:
    """The split that is for validation by its name; empty for none."""
    return next((name for name in (*VALIDATION, *TEST) if name in builder.info.splits), "")


def _open(owner: str, builder: Any, split: str) -> Any:
    tfds = _tfds()
    if not builder.info.splits:
        raise ValueError(
            f"{owner} is not prepared in {builder.data_path}; prepare it: "
            f"tfds build {builder.name} --file_format=array_record"
        )
    encoded = {name: tfds.decode.SkipDecoding() for name, feature in builder.info.features.items()
               if isinstance(feature, tfds.features.Image)}  # fmt: skip
    try:
        return builder.as_data_source(split=split, decoders=encoded)
    except NotImplementedError as error:
        raise ValueError(
            f"{owner} in {builder.data_path} is of a format without random access; prepare it "
            f"anew: tfds build {builder.name} --file_format=array_record"
        ) from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{owner}: {error}") from error


def _tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ConfigError("data.source=tfds needs: pip install 'paella_jax[data]'") from error
    return tensorflow_datasets
