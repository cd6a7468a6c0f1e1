"""What belongs to a folder of images: files, captions, splits; what is left out is told."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import small
from PIL import Image

from paella_jax.config import ConfigError, from_json, to_json
from paella_jax.data import captioned, cropping
from paella_jax.data.build import make_source
from paella_jax.data.folder import FolderSource
from paella_jax.data.loader import make_iterator
from paella_jax.data.split import Held
from paella_jax.runs.folder import check_same_run, prepare_workdir


def put(file, caption=None, value=0, **options):
    """An image, and a text file beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (value, 0, 0)).save(file, **options)
    if caption is not None:
        file.with_suffix(".txt").write_text(caption)


def fill(folder, count, start=0):
    for number in range(start, start + count):
        put(folder / f"{number:03d}.png", f"caption {number}", number)
    return folder


def source_of(folder, split="train", **options):
    held = Held(**{k: options.pop(k) for k in ("fraction", "seed", "column") if k in options},
                folder=str(options.pop("validation", "")))  # fmt: skip
    return FolderSource(str(folder), 16, split, held=held, **options)


def names(source, folder):
    return [str(file.relative_to(folder)) for file in source.files]


def captions(source):
    return [source[i]["caption"] for i in range(len(source))]


def write_rows(folder, rows):
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_what_systems_leave_in_a_folder_is_left_out_and_counted(tmp_path, capsys):
    fill(tmp_path, 3)
    for extra in (".ipynb_checkpoints/0-checkpoint.png", ".Trash-0/files/z.png", ".hidden.png",
                  "__MACOSX/0.png", "@eaDir/0.png"):  # fmt: skip
        put(tmp_path / extra, "old")
    (tmp_path / "sub").mkdir()
    for fork in ("._000.png", "sub/._a.png"):
        (tmp_path / fork).write_bytes(b"Mac OS X")
    (tmp_path / "photo.heic").write_bytes(b"")
    (tmp_path / "notes.md").write_text("")
    (tmp_path / "orphan.txt").write_text("a caption without an image")
    assert names(source_of(tmp_path), tmp_path) == ["000.png", "001.png", "002.png"]
    told = capsys.readouterr().out
    assert told.startswith(f"data.folder {tmp_path}: 3 images for training (")
    for part in ("4 hidden", "2 macOS forks", "2 of the system", "1 .heic (not read; convert",
                 "1 .md", "1 .txt"):  # fmt: skip
        assert part in told, part
    # The folder itself may be hidden.
    assert len(source_of(fill(tmp_path / ".cache" / "set", 2))) == 2


def test_every_format_that_is_read_belongs(tmp_path):
    kinds = {"png": "PNG", "tif": "TIFF", "gif": "GIF", "jfif": "JPEG", "JPG": "JPEG", "ppm": "PPM"}
    for suffix, kind in kinds.items():
        put(tmp_path / f"{suffix}.{suffix}", suffix, format=kind)
    assert sorted(captions(source_of(tmp_path))) == sorted(kinds)


def test_links_are_followed_once(tmp_path, capsys):
    fill(tmp_path / "elsewhere", 3)
    data = fill(tmp_path / "data", 1, start=7)
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "again").symlink_to(tmp_path / "elsewhere")
    (data / "linked" / "loop").symlink_to(data)
    (data / "copy.png").symlink_to(data / "007.png")
    put(tmp_path / "far.png", value=9)
    (data / "far.png").symlink_to(tmp_path / "far.png")
    (data / "far.txt").write_text("linked file")
    source = source_of(data)
    assert names(source, data) == ["007.png", "again/000.png", "again/001.png", "again/002.png",
                                   "far.png"]  # fmt: skip
    assert captions(source)[-1] == "linked file" and source[4]["image"][0, 0, 0] == 9
    told = capsys.readouterr().out
    assert "1 links to images that are there already" in told
    assert "2 links to folders that are read already" in told


def test_dangling_links_are_missing_images(tmp_path, capsys):
    fill(tmp_path, 4)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "gone.txt").write_text("a")
    assert len(source_of(tmp_path).broken) == 1
    assert "gone.png: no such file" in capsys.readouterr().out


@pytest.mark.parametrize("empty", [b"", b"\n", b"\xef\xbb\xbf", b" " * 90])
def test_empty_captions_count_as_missing(tmp_path, capsys, empty):
    fill(tmp_path, 30)
    (tmp_path / "004.txt").write_bytes(empty)
    source = source_of(tmp_path)
    assert source[4]["caption"] == "caption 5" and source.broken == {4}
    assert "004.txt is empty" in capsys.readouterr().out
    for number in range(30):
        (tmp_path / f"{number:03d}.txt").write_bytes(empty)
    with pytest.raises(ValueError, match=r"003\.png.*is empty"):
        source_of(tmp_path)
    assert len(source_of(tmp_path, captions=False)) == 29


def test_byte_order_marks_and_other_encodings(tmp_path):
    fill(tmp_path, 30)
    (tmp_path / "002.txt").write_bytes(b"\xef\xbb\xbfa red square\r\n")
    (tmp_path / "003.txt").write_bytes("a café".encode("utf-16"))
    source = source_of(tmp_path)
    assert source[2]["caption"] == "a red square" and source.broken == {3}
    for number in range(30):
        (tmp_path / f"{number:03d}.txt").write_bytes("a square".encode("utf-16"))
    config = small.config_of("vqgan:tiny", data__folder=tmp_path)
    with pytest.raises(ConfigError, match=r"are broken, the last: .*\.txt is not UTF-8"):
        make_source(config.data, "train", 0)


def test_headers_are_looked_at_before_the_first_step(tmp_path):
    fill(tmp_path, 30)
    for number in range(10):
        (tmp_path / f"{number:03d}.png").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"4 of 29 samples .* are broken"):
        source_of(tmp_path)


def test_missing_captions_elsewhere_do_not_count_among_those_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(captioned, "PROBED", 10)
    fill(tmp_path, 60)
    for number in (5, 6, 7, 8):
        (tmp_path / f"{number:03d}.txt").unlink()
    (tmp_path / "000.png").write_bytes(b"no image")
    assert source_of(tmp_path).broken == {0, 5, 6, 7, 8}


def test_tables_of_other_encodings_and_long_fields(tmp_path):
    fill(tmp_path, 1)
    table = tmp_path / "metadata.csv"
    table.write_bytes("file_name,text\n000.png,café\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"metadata\.csv is not UTF-8 \(byte 0xe9\)"):
        source_of(tmp_path)
    usual = csv.field_size_limit()
    table.write_text("file_name,text,thumb\n000.png,x," + "A" * 140_000 + "\n")
    assert captions(source_of(tmp_path)) == ["x"] and csv.field_size_limit() == usual
    table.write_text("file_name,text,thumb\n000.png,x," + "A" * (2**24 + 1) + "\n")
    with pytest.raises(ValueError, match=r"metadata\.csv, line 2: field larger"):
        source_of(tmp_path)
    table.unlink()
    (tmp_path / "metadata.jsonl").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"metadata\.jsonl, row 1 is not JSON"):
        source_of(tmp_path)


def drawn_captions(source, count=60):
    """What each epoch of an endless stream shows, as (index, caption)."""
    keep = lambda s: {"index": np.int32(s["index"]), "text": np.array(s["caption"].ljust(9))}
    stream = make_iterator(source, keep, batch_size=len(source), seed=3)
    return [{int(i): str(t).strip() for i, t in zip(b["index"], b["text"], strict=True)}
            for b in (next(stream) for _ in range(count))]  # fmt: skip


def test_one_of_several_captions_is_drawn_in_each_epoch(tmp_path):
    """A list in the table, several rows of one image, and lines of a text file."""
    fill(tmp_path, 3)
    write_rows(tmp_path, [{"file_name": "000.png", "text": ["a", " ", "b"]},
                          {"file_name": "001.png", "caption": "c"},
                          {"file_name": "002.png", "text": "d"},
                          {"file_name": "001.png", "text": "e"}])  # fmt: skip
    source = source_of(tmp_path)
    assert captions(source) == ["a", "c", "d"]
    epochs = drawn_captions(source)
    seen = [[epoch[i] for epoch in epochs] for i in range(3)]
    assert {*seen[0]} == {"a", "b"} and {*seen[1]} == {"c", "e"} and {*seen[2]} == {"d"}
    assert 15 < seen[0].count("a") < 45
    assert epochs == drawn_captions(source_of(tmp_path))


def test_lines_of_a_text_file(tmp_path, capsys):
    put(tmp_path / "a.png", "first\n\n second \n")
    source = source_of(tmp_path)
    assert source[0]["caption"] == "first\n\n second"
    assert "data.caption_lines=True" in capsys.readouterr().out
    lines = source_of(tmp_path, caption_lines=True)
    assert lines[0]["caption"] == "first"
    drawn = {lines.draw(0, np.random.default_rng(seed))["caption"] for seed in range(20)}
    assert drawn == {"first", "second"}


def test_a_single_caption_uses_no_chance(tmp_path):
    """Crops and flips of other samples stay as they were before there could be several."""
    fill(tmp_path, 1)
    rng, other = np.random.default_rng(0), np.random.default_rng(0)
    source_of(tmp_path).draw(0, rng)
    assert rng.random() == other.random()


def both(folder, **options):
    return [names(source_of(folder, split, **options), folder) for split in ("train", "rest")]


def test_a_fraction_is_held_back_evenly_or_by_names(tmp_path, capsys):
    fill(tmp_path, 40)
    train, held = both(tmp_path)
    assert held == ["019.png", "039.png"] and len(train) == 38
    assert both(tmp_path, fraction=0.25)[1] == [f"{i:03d}.png" for i in range(3, 40, 4)]
    train, held = both(tmp_path, fraction=0.25, seed=1)
    assert len(held) == 10 and sorted([*train, *held]) == [f"{i:03d}.png" for i in range(40)]
    assert held != both(tmp_path, fraction=0.25, seed=2)[1]
    assert "10 of 40 are held back, by data.split_seed 1" in capsys.readouterr().out
    # Names decide: most of those that were held back stay so when images come.
    fill(tmp_path, 8, start=40)
    assert len({*both(tmp_path, fraction=0.25, seed=1)[1]} & {*held}) >= 8


def test_too_few_images_or_none_held_back_is_told(tmp_path, capsys):
    fill(tmp_path, 5)
    for options in ({}, {"fraction": 0.0, "seed": 3}):
        train, held = both(tmp_path, **options)
        assert train == held and len(held) == 5
        assert "validation shows images of the training" in capsys.readouterr().out
    assert len(both(tmp_path, fraction=0.05, seed=3)[1]) == 1


def test_a_validation_folder(tmp_path, capsys):
    train, held = fill(tmp_path / "a", 3), fill(tmp_path / "b", 2, start=50)
    assert len(source_of(train, validation=held)) == 3
    assert captions(source_of(train, "rest", validation=held)) == ["caption 50", "caption 51"]
    # Inside of the training folder it is taken out of it.
    inner = fill(train / "kept back", 2)
    assert names(source_of(train, validation=inner), train) == ["000.png", "001.png", "002.png"]
    assert "2 in data.validation_folder" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"contains data\.folder"):
        source_of(train, validation=tmp_path)
    with pytest.raises(ValueError, match=r"data\.validation_folder .* is not a folder"):
        source_of(train, validation=tmp_path / "absent")


def test_a_validation_folder_inside_of_a_training_one(tmp_path, capsys):
    """Nothing of it is trained on, however it is reached."""
    train, held = fill(tmp_path / "train", 3), fill(tmp_path / "train" / "held", 2)
    fill(tmp_path / "val", 2)
    assert names(source_of(tmp_path, validation=held), train) == ["000.png", "001.png", "002.png"]
    assert "2 in data.validation_folder" in capsys.readouterr().out
    assert names(source_of(tmp_path, "rest", validation=held), held) == ["000.png", "001.png"]
    assert len(source_of(tmp_path, validation=tmp_path / "val")) == 5
    with pytest.raises(ValueError, match=r"contains data\.folder .*train"):
        source_of(tmp_path, validation=train)
    outer = fill(tmp_path / "outer", 1, start=7)
    (outer / "link").symlink_to(held, target_is_directory=True)
    assert names(source_of(outer, validation=held), outer) == ["007.png"]


@pytest.mark.parametrize("other", ["validation", "val", "test"])
def test_subfolders_for_training_and_validation(tmp_path, capsys, other):
    fill(tmp_path / "train", 4)
    fill(tmp_path / other, 2, start=10)
    fill(tmp_path / "unused", 3, start=20)
    train, held = both(tmp_path)
    assert train == [f"train/00{i}.png" for i in range(4)]
    assert held == [f"{other}/010.png", f"{other}/011.png"]
    assert f"3 outside of train/ and {other}/" in capsys.readouterr().out
    # The same when one table above them names the files.
    write_rows(tmp_path, [{"file_name": f, "text": f} for f in [*train, *held]])
    assert both(tmp_path) == [train, held]


def test_a_split_column(tmp_path, capsys):
    fill(tmp_path, 6)
    splits = ["train", "val", "Train", "test", "", "dev"]
    rows = [{"file_name": f"00{i}.png", "text": "a", "split": s, "part": "train"}
            for i, s in enumerate(splits)]  # fmt: skip
    write_rows(tmp_path, rows)
    expected = [["000.png", "002.png", "004.png"], ["001.png", "005.png"]]
    assert both(tmp_path) == expected
    assert "1 of split 'test'" in capsys.readouterr().out
    assert both(tmp_path, captions=False) == expected
    assert len(both(tmp_path, column="")[0]) == 6
    assert len(both(tmp_path, column="part", fraction=0.5)[1]) == 3
    drawn = both(tmp_path, column="part", fraction=0.5, seed=1)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert both(moved, column="part", fraction=0.5, seed=1) == drawn
    moved.rename(tmp_path)
    with pytest.raises(ValueError, match="no split in a column 'fold'"):
        source_of(tmp_path, column="fold")
    write_rows(tmp_path, [*rows, rows[0] | {"split": "val"}])
    with pytest.raises(ValueError, match=r"row 7: 000\.png is in split 'val' and in 'train'"):
        source_of(tmp_path)


def test_images_that_are_given_are_the_data(tmp_path):
    """`data.folder` without `data.source` never trains on shapes."""
    assert small.config_of("paella:tiny").data.source == "shapes"
    given = small.config_of("paella:tiny", data__folder=fill(tmp_path, 2))
    assert given.data.source == "folder" and len(make_source(given.data, "train", 0)) == 2
    image = tmp_path / "000.png"
    assert small.config_of("vqgan:tiny", data__image_file=image).data.source == "one_image"
    assert small.config_of("muse:style", data__folder="x").data.source == "one_image"
    with pytest.raises(ConfigError, match="are given; leave all but one out"):
        small.config_of("paella:tiny", data__folder="x", data__image_file="y")
    for options in ({"data__source": "shapes", "data__folder": "x"},
                    {"data__source": "folder", "data__image_file": "x"}):  # fmt: skip
        config = small.config_of("paella:tiny", **options)
        with pytest.raises(ConfigError, match=r"data\.\w+ is 'x', but data\.source"):
            make_source(config.data, "train", 0)
    absent = small.config_of("paella:tiny", data__folder=tmp_path / "absent")
    with pytest.raises(ConfigError, match="is not a folder of images"):
        make_source(absent.data, "train", 0)


def test_bad_settings_name_their_field(tmp_path):
    fill(tmp_path, 2)
    for field, value, words in (
        ("background", "zork", r"data\.background 'zork' is no colour"),
        ("background", "#11223344", r"data\.background .* is no colour"),
        ("split", 1.0, r"data\.split must be at least 0 and below 1"),
    ):
        given = {"data__folder": tmp_path, f"data__{field}": value}
        with pytest.raises(ConfigError, match=words):
            make_source(small.config_of("vqgan:tiny", **given).data, "train", 0)


def test_the_background_reaches_the_samples(tmp_path, capsys):
    Image.new("RGBA", (40, 40), (0, 255, 0, 0)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("nothing")
    for overrides, colour in (
        ({}, [255, 255, 255]),
        ({"data__background": "#102030"}, [16, 32, 48]),
    ):
        config = small.config_of("vqgan:tiny", data__folder=tmp_path, **overrides)
        np.testing.assert_array_equal(
            make_source(config.data, "train", 0)[0]["image"][5, 5], colour
        )
        single = config.copy_and_resolve_references()
        single.data.update(source="one_image", image_file=str(tmp_path / "a.png"), caption="x",
                           folder="")  # fmt: skip
        np.testing.assert_array_equal(
            make_source(single.data, "train", 0)[0]["image"][5, 5], colour
        )
    assert capsys.readouterr().out.count("is transparent") == 4


def test_a_long_narrow_image_is_broken_not_a_full_memory(tmp_path, monkeypatch):
    fill(tmp_path, 20)
    monkeypatch.setattr(cropping, "MOST_PIXELS", 100_000)  # or the image must be huge
    Image.new("RGB", (6_000, 2)).save(tmp_path / "000.png")
    source = source_of(tmp_path)
    assert source[0]["caption"] == "caption 1" and source.broken == {0}


def test_runs_older_than_the_settings_resume(tmp_path):
    """A field that an old config lacks may have the value of what was done then, no other."""
    config = small.config_of("vqgan:tiny", data__folder="x")
    old = config.copy_and_resolve_references().unlock()
    for name in ("validation_folder", "split", "split_seed", "split_column", "caption_lines",
                 "background"):  # fmt: skip
        del old.data[name]
    prepare_workdir(tmp_path, from_json(to_json(old)))
    check_same_run(tmp_path, config)
    changed = small.config_of("vqgan:tiny", data__folder="x", data__split=0.1)
    with pytest.raises(ConfigError, match=r"data\.split: '\(absent\)' -> 0\.1"):
        check_same_run(tmp_path, changed)
    # Old configs are read as they are.
    fill(tmp_path / "x", 2)
    old.data.folder = str(tmp_path / "x")
    assert len(make_source(old.data, "train", 0)) == 2
