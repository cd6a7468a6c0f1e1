"""Files from outside run nothing, wait for nothing, and cost no more than what they hold."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paella_jax.data.captions import read_text
from paella_jax.data.files_of_records import find_files
from paella_jax.data.folder import FolderRecords
from paella_jax.files.examples import decode_example
from paella_jax.files.tar import TarError, list_members
from paella_jax.images.decode import Encoded, ImageError
from paella_jax.images.png import read_png_texts
from paella_jax.images.read import read_classes, read_mask, read_rgb

RED = Image.new("RGB", (8, 8), (255, 0, 0))


def encoded(image, form):
    file = io.BytesIO()
    image.save(file, form)
    return Encoded(f"a.{form.lower()}", file.getvalue())


def test_formats_that_run_programs_are_not_opened(monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("was run"))
    words = r"readable image \(of PNG, JPEG, .*\); convert it to PNG"
    for form in ("EPS", "PCX", "TGA", "SGI", "ICNS", "PDF"):
        with pytest.raises(ImageError, match=words):
            read_rgb(encoded(RED, form))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM",
                                  "ICO", "AVIF"])  # fmt: skip
def test_usual_formats_are_read(form):
    if form not in Image.SAVE:
        pytest.skip(f"this PIL writes no {form}")
    image = Image.new("RGB", (16, 16), (255, 0, 0))
    colour = np.asarray(read_rgb(encoded(image, form)))[4, 4].astype(int)
    assert np.abs(colour - [255, 0, 0]).max() < 4


@pytest.fixture
def pipe(tmp_path, monkeypatch):
    """A function: a pipe of that name, which may not be opened."""
    real = io.open

    def opened(file, *args, **kwargs):
        if not isinstance(file, int) and Path(file).is_fifo():
            pytest.fail(f"{file} was opened")
        return real(file, *args, **kwargs)

    def make(name):
        (tmp_path / "set").mkdir(exist_ok=True)
        os.mkfifo(tmp_path / "set" / name)
        return tmp_path / "set" / name

    monkeypatch.setattr(io, "open", opened)
    monkeypatch.setattr("builtins.open", opened)
    return make


def test_pipes_are_not_waited_for(pipe, tmp_path):
    image = pipe("0.png")
    for read in (read_rgb, read_mask, read_classes):
        with pytest.raises(ImageError, match=r"0\.png is not a readable image: it is a folder, pi"):
            read(image)
    assert read_png_texts(image) == {}
    RED.save(tmp_path / "set" / "1.png")
    text = pipe("1.txt")
    with pytest.raises(ValueError, match=r"1\.txt is a folder, pipe or device"):
        read_text(text)
    (tmp_path / "set" / "0.txt").write_text("x")
    records = FolderRecords(str(tmp_path / "set"))
    assert list(records.missing()) == [
        (0, "no such file"), (1, "no caption: 1.txt is a folder, pipe or device"),
    ]  # fmt: skip
    pipe("a.tar")
    with pytest.raises(ValueError, match=r"a\.tar is a folder, pipe or device; leave it out"):
        find_files("data.shards", str(tmp_path / "set"), "tar$")


def test_long_texts_are_no_captions(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 2**20)
    assert len(read_text(tmp_path / "a.txt")) == 2**20
    (tmp_path / "a.txt").write_text("x" * (2**20 + 1))
    with pytest.raises(ValueError, match=r"a\.txt has 1048577 bytes; a caption has 1048576 at mo"):
        read_text(tmp_path / "a.txt")


def test_numbers_without_end_are_damages():
    with pytest.raises(ValueError, match=r"damaged one \(a number of too many bytes"):
        decode_example(b"\xff" * 400_000)  # of 20 seconds, once


def pax(file, content):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(content)
    plain = tarfile.TarInfo("a.png").tobuf(tarfile.USTAR_FORMAT)
    header = info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)
    file.write_bytes(header + plain + bytes(1024))
    return file


def test_pax_records_cost_their_size(tmp_path):
    file = pax(tmp_path / "a.tar", b"5 a=\n" * (2**20 // 5))
    assert [member.name for member in list_members(file)[0]] == ["a.png"]  # of 20 seconds, once
    assert list_members(pax(file, b"9 path=b\n10 size=0\n"))[0][0].name == "b"


SIZE = b"size=" + b"1" * 5000 + b"\n"


@pytest.mark.parametrize(
    "content",
    [
        "11 size=²\n".encode(),
        b"5005 " + SIZE,
        b"0 a=b\n",
        b"2 a=b\n",
        b"99 a=b\n",
        b"9" * 5000 + b" a=b\n",
        b"30 size=" + b"9" * 21 + b"\n",
        b"a=b\n",
    ],
)
def test_damaged_pax_records_name_their_file(tmp_path, content):
    with pytest.raises(TarError, match=r"a\.tar (is damaged|is cut off inside of)"):
        list_members(pax(tmp_path / "a.tar", content))


def test_few_bytes_do_not_become_gigabytes(tmp_path, monkeypatch):
    """A value that comes again costs nothing in a file; rows are read in slices of few."""
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    from paella_jax.data import parquet

    monkeypatch.setattr(parquet, "LARGEST_GROUP", 2**22)
    file = tmp_path / "a.parquet"
    blob = encoded(RED, "PNG").data + bytes(200_000)
    table = arrow.table({"image": [blob] * 400, "text": ["x"] * 400})
    pyarrow.parquet.write_table(table, file, compression="zstd")
    assert file.stat().st_size < 2**17
    usual = arrow.default_memory_pool()
    pool = arrow.proxy_memory_pool(usual)
    arrow.set_memory_pool(pool)
    try:
        with pytest.raises(ValueError, match=r"a\.parquet cannot be read: its group of rows 0 bec"):
            parquet.TableRecords("x", [file]).read(0)
    finally:
        arrow.set_memory_pool(usual)
    assert pool.max_memory() < 2**25  # all rows have 80 MB
    pyarrow.parquet.write_table(table.slice(0, 15), file, compression="zstd")
    assert parquet.TableRecords("x", [file]).read(14).captions == ["x"]


def png(depth, kind, row, key):
    """A PNG of one row with a transparent colour."""
    chunk = lambda name, data: (struct.pack(">I", len(data)) + name + data
                                + struct.pack(">I", zlib.crc32(name + data)))  # fmt: skip
    width = len(row) * 8 // depth // (3 if kind == 2 else 1)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0)),
             (b"tRNS", struct.pack(f">{len(key)}H", *key)),
             (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]  # fmt: skip
    return Encoded("a.png", b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


@pytest.mark.parametrize(
    "image, expected",
    [
        (png(1, 0, b"\x40", [1]), [0, 255, 0, 0, 0, 0, 0, 0]),
        (png(2, 0, b"\x1b", [1]), [0, 255, 170, 255]),
        (png(2, 0, b"\x1b", [0]), [255, 85, 170, 255]),
        (png(4, 0, b"\x1e", [1]), [255, 238]),
        (png(4, 0, b"\x1e", [14]), [17, 255]),
        (png(8, 0, b"\x07\x08", [7]), [255, 8]),
        (png(16, 2, struct.pack(">6H", 0x1234, 0, 0, 0x4321, 0, 0), [0x1234, 0, 0]), [255, 67]),
        (png(16, 2, struct.pack(">6H", 0x1234, 0, 0, 0x4321, 0, 0), [0x4321, 0, 0]), [18, 255]),
        (png(8, 2, b"\1\2\3\4\5\6", [1, 2, 3]), [255, 4]),
    ],
)
def test_transparent_colours_of_every_depth(image, expected):
    assert np.asarray(read_rgb(image))[0, :, 0].tolist() == expected
