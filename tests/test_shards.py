"""Tar shards: what is a sample, the index and when it is made again, damaged archives."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from small_records import pack, png

from paella_jax.data import shard_index
from paella_jax.data.captioned import BrokenDataError, CaptionedImages
from paella_jax.data.cropping import Cropping
from paella_jax.data.fields import Wanted
from paella_jax.data.webdataset import ShardRecords
from paella_jax.files import ranges
from paella_jax.files.tar import list_members


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def records_of(*shards, left_out=None, **wanted):
    return ShardRecords(
        "shards", shards, Wanted(**wanted), Counter() if left_out is None else left_out
    )


def read(records):
    """{name: captions}"""
    return {records.name(i): records.read(i).captions for i in range(len(records))}


def plain(count, start=0):
    members = []
    for i in range(start, start + count):
        members += [(f"{i:03d}.png", png(i)), (f"{i:03d}.txt", f"caption {i}".encode())]
    return members


def test_samples_are_files_of_one_name(tmp_path):
    """Wherever they stand, by the first dot; a later file of the same name counts."""
    other = io.BytesIO()
    Image.new("RGB", (20, 20)).save(other, "JPEG")
    shard = pack(tmp_path / "a.tar", [
        ("d/b.seg.png", png(9)), ("d/b.JPG", other.getvalue()), ("a.png", png(1)),
        ("a.txt", b"old"), ("d/b.json", json.dumps({"caption": ["x", " ", "y"], "n": 1}).encode()),
        ("a.txt", b"\xef\xbb\xbf new \n"), ("a.cls", b"0"), ("c.json", b"{}"), ("._a.png", b"Mac"),
        (".hidden.png", png(2)), ("README", b""), ("e.heic", b"?"), ("e.txt", b"e"),
    ])  # fmt: skip
    left_out = Counter()
    records = records_of(shard, left_out=left_out)
    assert read(records) == {"a.tar:d/b": ["x", "y"], "a.tar:a": ["new"]}
    assert np.asarray(Image.open(records.read(1).image.open()))[0, 0, 2] == 1
    assert left_out == {
        ".seg.png": 1, ".cls": 1, "files of a name that comes again": 1, "macOS forks (._*)": 1,
        "hidden": 1, "without suffix": 1, "samples without an image": 2,
        ".heic (not read; convert to PNG or JPEG)": 1,
    }  # fmt: skip


def test_a_sample_that_comes_again_is_a_new_one(tmp_path):
    """No image gets the caption of another; a text alone may be renewed."""
    members = [
        ("a.png", png(1)), ("a.txt", b"first"), ("a.png", png(2)), ("a.json", b'{"text":"second"}'),
        ("b.png", png(1)), ("b.txt", b"first"), ("c.png", png(1)), ("c.txt", b"first"),
        ("d.seg.png", png(9)), ("d.png", png(3)), ("d.txt", b"old"), ("e.png", png(1)),
        ("e.txt", b"first"), ("b.jpg", png(2)), ("b.txt", b"second"), ("c.png", png(2)),
        ("d.txt", b"new"), ("e.txt", b"second"), ("e.webp", png(2)),
    ]  # fmt: skip
    left_out = Counter()
    records = records_of(pack(tmp_path / "a.tar", members), left_out=left_out)
    blue = lambda record: np.asarray(Image.open(record.image.open()))[0, 0, 2]
    found = {}
    for position in range(len(records)):
        name = records.name(position).rpartition(":")[2]
        try:
            record = records.read(position)
            found[name] = blue(record), *record.captions
        except ValueError as error:
            found[name] = str(error)
    assert found.pop("c").startswith("no caption")
    assert found == {"a": (2, "second"), "b": (2, "second"), "d": (3, "new"), "e": (2, "second")}
    assert left_out == {"files of a name that comes again": 10}


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_long_and_foreign_names_in_every_kind_of_archive(tmp_path, format):
    long = "folder/" * 12 + ("x" * 90 if format == tarfile.USTAR_FORMAT else "ü" * 120)
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w", format=format) as opened:
        opened.add(tmp_path, "folder", recursive=False)
        for name, content in ((f"{long}.png", png(3)), (f"{long}.txt", b"long"), *plain(1)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "y" * 120 if len(long) > 180 else "y"
        opened.addfile(link)
    assert read(records_of(file)) == {f"a.tar:{long}": ["long"], "a.tar:000": ["caption 0"]}
    with tarfile.open(file) as opened:
        expected = [(m.name, m.offset_data, m.size) for m in opened if m.isreg()]
    assert [tuple(m) for m in list_members(file)[0]] == expected


def test_captions_of_json(tmp_path):
    rows = [{"caption": "a"}, {"alt": "b", "caption": "c"}, {"text": "d", "alt": "e\nf"}]
    members = [(f"{i}.png", png(i)) for i in range(3)]
    members += [(f"{i}.json", json.dumps(row).encode()) for i, row in enumerate(rows)]
    shard = pack(tmp_path / "a.tar", [*members, ("1.txt", b"of the text")])
    assert list(read(records_of(shard)).values()) == [["a"], ["of the text"], ["d"]]
    wanted = records_of(shard, caption="alt", lines=True)
    assert [wanted.read(i).captions for i in (1, 2)] == [["b"], ["e", "f"]]
    with pytest.raises(ValueError, match="no caption: none in alt of caption"):
        wanted.read(0)
    assert list(read(records_of(shard, captions=False)).values()) == [[""]] * 3


def test_broken_samples_are_counted_and_replaced(tmp_path, capsys):
    members = dict(plain(80))
    members["002.txt"], members["003.txt"] = b"", b" \n"
    members["004.png"], members["005.png"] = b"", b"no image"
    members["006.txt"] = "ä".encode("latin-1")
    del members["007.txt"]
    members["008.txt"] = b""
    members["008.json"] = b'{"caption": "\\ud83d"}'  # half a character
    shard = pack(tmp_path / "a.tar", members.items())
    source = CaptionedImages(records_of(shard), Cropping(16))
    told = capsys.readouterr().out
    for part in ("002: no caption", "003: no caption", "004: its image is empty", "005: is not",
                 "006: a caption is not UTF-8", "007: no", "008: 'utf-8' codec"):  # fmt: skip
        assert f"skipping broken sample a.tar:{part}" in told
    assert source.broken == {2, 3, 4, 5, 6, 7, 8} and source[2]["caption"] == "caption 9"


def test_too_many_broken_samples_end_before_the_first_step(tmp_path):
    shard = pack(tmp_path / "a.tar", [(n, b"" if n.endswith("t") else c) for n, c in plain(9)])
    with pytest.raises(ValueError, match=r"lack their image or caption, .*003 \(no caption"):
        CaptionedImages(records_of(shard), Cropping(16))
    shard = pack(tmp_path / "b.tar", [(n, c if n.endswith("t") else b"?") for n, c in plain(9)])
    with pytest.raises(BrokenDataError, match="4 of 9 samples in shards are broken"):
        CaptionedImages(records_of(shard), Cropping(16))
    with pytest.raises(ValueError, match="no images in 1 shards"):
        records_of(pack(tmp_path / "c.tar", [("a.txt", b"a")]))


def test_the_index_is_made_once_and_again_when_a_shard_changes(tmp_path, monkeypatch):
    shard = pack(tmp_path / "a.tar", plain(3))
    made = []
    monkeypatch.setattr(shard_index, "list_members", lambda f: made.append(f) or list_members(f))
    assert len(records_of(shard)) == len(records_of(shard)) == 3 and len(made) == 1
    index = tmp_path / "a.tar.index.npz"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.tar", index.name]
    pack(shard, plain(2, start=5))
    assert read(records_of(shard)) == {"a.tar:005": ["caption 5"], "a.tar:006": ["caption 6"]}
    index.write_bytes(index.read_bytes()[:100])
    assert len(records_of(shard)) == 2 and len(made) == 3
    index.write_bytes(b"")
    assert len(records_of(shard)) == len(records_of(shard)) == 2 and len(made) == 4


def test_the_index_of_a_read_only_folder_is_kept_in_the_cache(tmp_path, monkeypatch, cache):
    """Read-only folders are not so for everybody: writing beside the shard fails here."""
    shard, atomic = pack(tmp_path / "a.tar", plain(3)), shard_index.atomic_path

    def refuse(target):
        if target.parent == tmp_path:
            raise PermissionError(target)
        return atomic(target)

    monkeypatch.setattr(shard_index, "atomic_path", refuse)
    assert len(records_of(shard)) == 3
    assert len(list(cache.rglob("*.npz"))) == 1 and list(tmp_path.iterdir()) == [shard]
    monkeypatch.setattr(shard_index, "list_members", None)  # it is not listed again
    assert len(records_of(shard)) == 3


def cut(whole):
    return whole[: whole.index(b"002.png") + 600]


def damage(whole):
    """Another byte in the third file's header."""
    place = whole.index(b"001.png") + 3
    return whole[:place] + b"x" + whole[place + 1 :]


@pytest.mark.parametrize(
    "change, words",
    [
        (cut, r"bad\.tar is cut off inside of \d+\.png \(at byte \d+ of \d+\)"),
        (damage, r"bad\.tar is damaged \(at byte \d+ of"),
        (lambda whole: b"PK\3\4" + whole, r"bad\.tar is not a tar archive"),
        (lambda whole: b"", r"bad\.tar is empty"),
        (lambda whole: whole[:300], r"bad\.tar is cut off \(at byte 0 of 300"),
    ],
)
def test_damaged_archives_are_named(tmp_path, change, words):
    good, bad = pack(tmp_path / "good.tar", plain(3)), tmp_path / "bad.tar"
    bad.write_bytes(change(good.read_bytes()))
    with pytest.raises(ValueError, match=f"1 of 2 shards cannot be used: .*{words}"):
        records_of(good, bad)


def test_an_archive_without_its_end_is_told(tmp_path):
    """It may be whole; what it lost cannot be known."""
    shard = pack(tmp_path / "a.tar", plain(2))
    end = list_members(shard)[0][-1]
    shard.write_bytes(shard.read_bytes()[: end.offset + 512])
    left_out = Counter()
    assert len(records_of(shard, left_out=left_out)) == 2
    assert left_out == {"archives without an end mark (cut off?)": 1}


def test_any_bytes_are_an_archive_or_an_error(tmp_path):
    whole = pack(tmp_path / "a.tar", plain(2), tarfile.GNU_FORMAT).read_bytes()
    rng, bad = np.random.default_rng(0), tmp_path / "b.tar"
    for _ in range(200):
        changed = bytearray(whole)
        for place in rng.integers(0, 3000, 3):
            changed[place] = rng.integers(256)
        bad.write_bytes(changed[: rng.integers(len(whole))])
        try:
            members, _ = list_members(bad)
        except ValueError:
            continue
        assert all(m.offset + m.size <= bad.stat().st_size for m in members)


def test_more_shards_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "MOST_OPEN", 2)
    shards = [pack(tmp_path / f"{i}.tar", plain(1, start=i)) for i in range(4)]
    records = records_of(*shards)
    assert [records.read(i).captions[0] for i in (0, 1, 2, 3, 0)] == [
        f"caption {i}" for i in (0, 1, 2, 3, 0)
    ]
    shards[3].write_bytes(b"")
    with pytest.raises(OSError, match=r"3\.tar ends before byte"):
        records.read(3)
