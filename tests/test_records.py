"""ArrayRecord, parquet and TFDS: fields, damages, what is not there; JPEGs decoded in part."""

from __future__ import annotations

import builtins
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small
import small_records
from PIL import Image

from paella_jax.benchmark import reading_report
from paella_jax.config import ConfigError
from paella_jax.data.array_records import ArrayRecords, write_array_record
from paella_jax.data.build import make_source
from paella_jax.data.captioned import CaptionedImages
from paella_jax.data.cropping import Cropping
from paella_jax.data.fields import Wanted, choose_fields, find, names_of
from paella_jax.data.folder import FolderSource
from paella_jax.data.records import Record
from paella_jax.files.examples import decode_example, encode_example
from paella_jax.images.decode import Encoded
from paella_jax.reports.reading_speed import reading_cost


def test_examples_are_those_of_protocol_buffers():
    """Bytes as the format's description has them: tags, lengths, a map's entries."""
    message = encode_example({"b": [b"x", "yz"], "a": "ä"})
    entry = b"\x0a\x01a\x12\x06\x0a\x04\x0a\x02\xc3\xa4"
    other = b"\x0a\x01b\x12\x09\x0a\x07\x0a\x01x\x0a\x02yz"
    inner = b"\x0a" + bytes([len(entry)]) + entry + b"\x0a" + bytes([len(other)]) + other
    assert message == b"\x0a" + bytes([len(inner)]) + inner
    assert decode_example(message) == {"a": ["ä".encode()], "b": [b"x", b"yz"]}
    long = {"image": bytes(70_000), "text": []}
    assert decode_example(encode_example(long)) == {"image": [bytes(70_000)], "text": []}
    # An int64 list beside them: field 3 of a feature.
    number = b"\x0a\x0b\x0a\x09\x0a\x01n\x12\x04\x1a\x02\x08\x07"
    assert decode_example(number) == {"n": None}


def test_damaged_examples_are_errors():
    message = encode_example({"image": b"i" * 200, "caption": "c"})
    for bad in (b"", b"hello there", message[:-1], message[:100], b"\xff" * 20, bytes(30)):
        with pytest.raises(ValueError, match=r"no tf\.train\.Example"):
            decode_example(bad)


def test_fields_are_found_or_listed():
    record = {"jpg": {"bytes": b"i"}, "captions": {"text": ["a", "b"], "id": [1, 2]}, "n": 1}
    names = names_of(record)
    fields = choose_fields("x", names, Wanted())
    assert (fields.image, fields.captions) == ("jpg", "captions")
    fields = choose_fields("x", names, Wanted(caption="captions/text"))
    assert fields.captions_of(record) == ["a", "b"] and fields.image_of(record, "r").data == b"i"
    assert find({"objects": [{"text": "a"}, {"text": "b"}]}, "objects/text") == ["a", "b"]
    assert choose_fields("x", ["image"], Wanted(captions=False)).captions_of({}) == [""]
    for wanted, words in (
        (Wanted(image="img"), r"x has the fields jpg, .* 'img' is not among them; .*image_field"),
        (Wanted(caption="alt"), r"'alt' is not among them; .*caption_field=NAME \(a tokenizer"),
    ):
        with pytest.raises(ValueError, match=words):
            choose_fields("x", names, wanted)
    with pytest.raises(ValueError, match=r"none of image, jpg, .*; give .*\.image_field"):
        choose_fields("x", ["pixels"], Wanted())
    for value, words in ((None, "holds nothing"), (np.zeros((2, 2)), "ndarray, not the bytes"),
                         ({"bytes": None, "path": "a.png"}, "holds nothing")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            fields.image_of({"jpg": value}, "r")


def test_array_record_files_of_other_fields_and_damaged_ones(tmp_path):
    images = [small_records.png(i) for i in range(3)]
    file = tmp_path / "a.array_record"
    records = [Record(Encoded("a", image), ["first\nsecond"]) for image in images]
    assert write_array_record(file, records) == 3
    lines = ArrayRecords("x", [file], Wanted(lines=True))
    assert lines.read(2).captions == ["first", "second"]
    assert lines.read(2).image == Encoded("a.array_record[2]", images[2])
    with pytest.raises(ValueError, match="x has the fields caption, image: 'alt'"):
        ArrayRecords("x", [file], Wanted(caption="alt"))
    whole = file.read_bytes()
    bad = tmp_path / "bad.array_record"
    for content in (b"", b"junk" * 100, whole[: len(whole) // 2]):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.array_record is no ArrayRecord file, or a dam"):
            ArrayRecords("x", [file, bad])
    write_array_record(bad, [])
    with pytest.raises(ValueError, match="no records in 1 files"):
        ArrayRecords("x", [bad])
    with pytest.raises(ConfigError, match="has not the suffix of its kind"):
        given = {"data__array_record": tmp_path / "other.txt"}
        (tmp_path / "other.txt").write_text("")
        make_source(small.config_of("vqgan:tiny", **given).data, "train", 0)


def test_nothing_is_left_of_a_write_that_fails(tmp_path):
    records = [Record(Encoded("a", b"i"), ["a"]), Record(Path("/absent.png"), ["b"])]
    with pytest.raises(FileNotFoundError):
        write_array_record(tmp_path / "a.array_record", records)
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_is_no_image_is_counted(tmp_path):
    records = [Record(Encoded("a", small_records.png(i)), [f"caption {i}"]) for i in range(30)]
    records[4] = Record(Encoded("a", b"no image"), ["caption 4"])
    records[5] = Record(records[5].image, [" "])
    file = tmp_path / "a.array_record"
    write_array_record(file, records)
    source = CaptionedImages(ArrayRecords("x", [file]), Cropping(16))
    assert source.broken == {4, 5} and source[4]["caption"] == "caption 6"


def test_parquet_keeps_few_groups_and_names_its_errors(tmp_path, monkeypatch):
    from paella_jax.data import parquet

    folder = small_records.write("parquet", tmp_path / "p", 20, files=2)
    records = parquet.TableRecords("x", sorted(folder.iterdir()))
    assert (
        len(records.ends) == 4 and records.name(7) == "set-00000-of-00002.parquet[group 1, row 2]"
    )
    size = records._group(0).nbytes
    monkeypatch.setattr(parquet, "MOST_CACHED", int(2.5 * size))
    for position in (0, 5, 10, 15, 0, 19):
        assert records.read(position).captions[0] == f"caption {position}"
        assert len(records._cache) <= 2
    import pyarrow.parquet

    plain = pyarrow.table({"png": [small_records.png(1)], "caption": ["of bytes"]})
    pyarrow.parquet.write_table(plain, tmp_path / "b.parquet")
    assert parquet.TableRecords("x", [tmp_path / "b.parquet"]).read(0).captions == ["of bytes"]
    with pytest.raises(ValueError, match=r"b\.parquet has the columns .*, .*set-00000"):
        parquet.TableRecords("x", [*sorted(folder.iterdir()), tmp_path / "b.parquet"])
    (tmp_path / "c.parquet").write_bytes(b"PAR1 junk PAR1")
    with pytest.raises(ValueError, match=r"c\.parquet cannot be read"):
        parquet.TableRecords("x", [tmp_path / "c.parquet"])


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_columns_may_have_slashes_in_their_names(tmp_path, kind):
    """As tables made of tf.Examples have them; what is in such a column is found, too."""
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    from paella_jax.data.parquet import TableRecords

    texts = [{"en/gb": "a colour", "number": 1}]
    image = [small_records.png(1)]
    table = pyarrow.table({"image/encoded": image, "all/texts": texts, "image/width": [40]})
    file = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(table, file)
    else:
        with pyarrow.ipc.new_file(str(file), table.schema) as opened:
            opened.write_table(table)
    records = TableRecords("x", [file], Wanted(caption="all/texts/en/gb", group="image/width"))
    record = records.read(0)
    assert (record.image.data, record.captions, record.group) == (image[0], ["a colour"], "40")


def test_tfds_splits_and_what_is_not_there(tmp_path):
    place = small_records.write("tfds", tmp_path / "t", 20, files=1)

    def source(split="train", **options):
        values = {"data__tfds": place} | options
        return make_source(small.config_of("vqgan:tiny", **values).data, split, 0)

    parts = {"data__training_split": "train[:75%]", "data__validation_split": "train[75%:]"}
    assert [len(source(split, **parts)) for split in ("train", "validation")] == [15, 5]
    by_name = {"data__tfds": "captioned", "data__tfds_folder": tmp_path / "t"}
    assert source(**by_name)[0]["caption"] == "caption 0"
    for options, words in (
        ({"data__training_split": "trian"}, "Unknown split"),
        ({"data__tfds": "captoined", "data__tfds_folder": tmp_path}, "not found.*dataset_info"),
        ({"data__tfds": tmp_path / "absent"}, "cannot be read.*give the folder that holds"),
        ({"data__caption_field": "number/x"}, "has the fields .*captions.*'number/x'"),
        ({"data__tfds": "mnist", "data__tfds_folder": tmp_path}, "not prepared in .*tfds build mn"),
    ):
        with pytest.raises(ConfigError, match=words):
            source(**options)
    (file,) = Path(place).glob("*.array_record*")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="its first example cannot be read"):
        source()


@pytest.mark.parametrize(
    "source, module", [("tfds", "tensorflow_datasets"), ("parquet", "pyarrow")]
)
def test_what_is_not_installed_is_named(tmp_path, monkeypatch, source, module):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == module:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "a.parquet").write_bytes(b"")
    config = small.config_of("vqgan:tiny", **{f"data__{source}": tmp_path})
    with pytest.raises(ConfigError, match=r"needs: pip install 'paella_jax\[data\]'"):
        make_source(config.data, "train", 0)


def test_large_jpegs_may_be_decoded_in_part(tmp_path):
    """Nearly the same pixels, the same micro-conditions; small ones are decoded as always."""
    y, x = np.mgrid[:1200, :800] / 100
    waves = np.stack([np.sin(x * 3 + y), np.cos(y * 2), np.sin(x + y * y / 9)], -1)
    photo = Image.fromarray(np.uint8(127 + 120 * waves))
    exif = photo.getexif()
    exif[0x0112] = 6  # shown lying on its side
    photo.save(tmp_path / "a.jpg", quality=95, exif=exif)
    photo.resize((300, 200)).save(tmp_path / "b.jpg", quality=95)
    photo.convert("CMYK").resize((900, 900)).save(tmp_path / "c.jpg")
    photo.convert("L").save(tmp_path / "d.png")
    options = {"crop": "random", "resize": 96, "captions": False}
    whole, part = (FolderSource(str(tmp_path), 64, draft=d, **options) for d in (False, True))
    for index in range(4):
        a, b = (s.draw(index, np.random.default_rng(1)) for s in (whole, part))
        np.testing.assert_array_equal(a["micro_conds"], b["micro_conds"])
        far = np.abs(a["image"].astype(int) - b["image"])
        assert far.max() <= (6 if index in (0, 2) else 0) and far.mean() < 1
        assert (far.max() > 0) == (index in (0, 2))
    assert list(whole[0]["micro_conds"][:2]) == [1200, 800]


def test_nothing_is_read_any_more_once_reading_was_measured(tmp_path, monkeypatch):
    """The folder of made-up photos is gone then."""
    running, draw = [], CaptionedImages.draw

    def slow(self, index, rng):
        running.append(index)
        time.sleep(0.02)
        sample = draw(self, index, rng)
        running.remove(index)
        return sample

    monkeypatch.setattr(CaptionedImages, "draw", slow)
    folder = small_records.write("webdataset", tmp_path / "w", 24)
    config = small.config_of("vqgan:tiny", data__shards=folder, batch_size=4)
    reading_cost(config, 0.01)
    assert running == []


@pytest.mark.parametrize("given", ["", "20x10"])
def test_reading_is_measured(tmp_path, given):
    folder = small_records.write("webdataset", tmp_path / "w", 24)
    config = small.config_of("vqgan:tiny", data__shards=folder, batch_size=4)
    report = reading_report(config, SimpleNamespace(photos=given, seconds=0.01))
    assert report["images"] == (16 if given else 23)
    assert report["source"] == ("folder" if given else "webdataset")
    for part in ("one thread", "2 threads"):
        assert report[part]["images_per_cpu_second"] > 0
    with pytest.raises(ConfigError, match=r"--photos must be WIDTHxHEIGHT, got '20x'"):
        reading_report(config, SimpleNamespace(photos="20x", seconds=0.01))
