"""The same captioned images in every format that is read."""

from __future__ import annotations

import io
import json
import tarfile
from functools import cache

import numpy as np
import pytest
from PIL import Image

from paella_jax.data.array_records import write_array_record
from paella_jax.data.records import Record
from paella_jax.images.decode import Encoded

FIELD = {"folder": "folder", "webdataset": "shards", "array_record": "array_record",
         "parquet": "parquet", "arrow": "parquet", "tfds": "tfds"}  # fmt: skip
NEEDS = {"parquet": "pyarrow", "arrow": "pyarrow", "tfds": "tensorflow_datasets"}


# The field of each image's group (`group_of`), but TFDS's: there every number is one.
GROUP = dict.fromkeys(FIELD, "kind") | {"array_record": "group", "tfds": "number"}


def group_of(name):
    return "odd" if int(name) % 2 else "even"


def png(number, size=(40, 36)):
    """The bytes of an image of which every crop differs."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.mgrid[: size[0], : size[1]] * 5
    pixels[..., 2] = number
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pairs(count):
    """Names, images and captions; two captions of each image."""
    return [(f"{i:03d}", png(i), [f"caption {i}", f"another {i}"]) for i in range(count)]


def pack(file, members, format=tarfile.PAX_FORMAT):
    """A tar of (name, bytes)."""
    with tarfile.open(file, "w", format=format) as opened:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return file


def write(kind, folder, count, files=2):
    """`count` images in a format, in so many files; what its setting is given."""
    if kind in NEEDS:
        pytest.importorskip(NEEDS[kind])
    folder.mkdir()
    return WRITERS[kind](folder, pairs(count), files) or folder


def _folder(folder, made, _):
    rows = []
    for name, image, captions in made:
        (folder / f"{name}.png").write_bytes(image)
        row = {"file_name": f"{name}.png", "text": captions, "kind": group_of(name)}
        rows.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(rows))


def _webdataset(folder, made, files):
    for number, part in enumerate(_parts(made, files)):
        members = []
        for name, image, captions in part:
            said = {"caption": captions, "width": 40, "kind": group_of(name)}
            text = json.dumps(said).encode()
            members += [(f"{name}.cls", b"3"), (f"{name}.json", text), (f"{name}.png", image)]
        pack(folder / f"shard-{number:03d}.tar", members)


def _array_record(folder, made, files):
    for number, part in enumerate(_parts(made, files)):
        records = (
            Record(Encoded(name, image), captions, group_of(name)) for name, image, captions in part
        )
        file = folder / f"set.array_record-{number:05d}-of-{files:05d}"
        assert write_array_record(file, records) == len(part)


def _parquet(folder, made, files):
    import pyarrow.parquet

    for number, part in enumerate(_parts(made, files)):
        file = folder / f"set-{number:05d}-of-{files:05d}.parquet"
        pyarrow.parquet.write_table(_table(part), file, row_group_size=5)


def _arrow(folder, made, files):
    import pyarrow.ipc

    for number, part in enumerate(_parts(made, files)):
        table = _table(part)
        file = folder / f"data-{number:05d}-of-{files:05d}.arrow"
        with pyarrow.ipc.new_stream(str(file), table.schema) as opened:
            opened.write_table(table, max_chunksize=3)
    (folder / "cache-0a1b.arrow").write_bytes(b"indices")


def _table(part):
    import pyarrow

    images = [{"bytes": image, "path": f"{name}.png"} for name, image, _ in part]
    kinds = [group_of(name) for name, *_ in part]
    return pyarrow.table({"image": images, "text": [texts for *_, texts in part], "kind": kinds})


def _tfds(folder, made, files):
    import tensorflow_datasets as tfds

    builder = _captioned()(data_dir=str(folder), file_format="array_record")
    builder.made = made
    config = tfds.download.DownloadConfig(num_shards=files)
    builder.download_and_prepare(download_config=config)
    return builder.data_path


@cache  # TFDS knows every class by its name, and takes none twice
def _captioned():
    import tensorflow_datasets as tfds

    class Captioned(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            texts = tfds.features.Sequence(tfds.features.Text())
            features = {"image": tfds.features.Image(), "captions": texts, "number": np.int64}
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, (_, image, captions) in enumerate(self.made):
                yield number, {"image": io.BytesIO(image), "captions": captions, "number": number}

    return Captioned


def _parts(made, files):
    each = -(-len(made) // files)
    return [made[i * each : (i + 1) * each] for i in range(files)]


WRITERS = {"folder": _folder, "webdataset": _webdataset, "array_record": _array_record,
           "parquet": _parquet, "arrow": _arrow, "tfds": _tfds}  # fmt: skip
