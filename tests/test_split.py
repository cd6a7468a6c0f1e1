"""Which images and files are held back: names in usual ways, links, and what is told."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import small_records

from paella_jax.data.build import make_records
from paella_jax.data.files_of_records import choose_files, find_files
from paella_jax.data.folder import FolderRecords
from paella_jax.data.listing import has_images, list_files
from paella_jax.data.split import Held
from paella_jax.data.split_names import find_pair, split_of

PNG = small_records.png(0, (4, 4))


def fill(folder, count=4, captions=True):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i}.png").write_bytes(PNG)
        if captions:
            (folder / f"{i}.txt").write_text("x")
    return folder


def both(place, **held):
    """The images for training and for validation, below the folder."""
    parts = (FolderRecords(str(place), s, Held(**held)).samples for s in ("train", "validation"))
    return [{sample.image for sample in part} for part in parts]


def test_names_of_splits():
    for name in ("Train", "train2017", "TRAIN_SET", "train-set2", "trainset", "train_01"):
        assert split_of(name) == "train"
    assert [split_of(n) for n in ("Val2014", "validation_set", "test_set")] == [
        "val", "validation", "test",
    ]  # fmt: skip
    assert not any(map(split_of, ("", "2017", "set", "trains", "reset", "photos", "my_train")))


@pytest.mark.parametrize(
    "train, other",
    [
        ("Train", "Validation"),
        ("train2017", "val2017"),
        ("training_set", "validation_set"),
        ("images/train", "images/val"),
        ("data/Train2", "data/Test2"),
    ],
)
def test_folders_of_splits_in_usual_names(tmp_path, capsys, train, other):
    fill(tmp_path / train), fill(tmp_path / other, 2)
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "0.txt").write_text("0 1 1")
    trained, held = both(tmp_path)
    assert {i.parent for i in trained} == {tmp_path / train} and len(trained) == 4
    assert {i.parent for i in held} == {tmp_path / other} and len(held) == 2
    assert f"(its folder {train}/)" in capsys.readouterr().out


def test_a_column_without_training_images_is_named(tmp_path):
    fill(tmp_path, 4, captions=False)
    rows = [{"file_name": f"{i}.png", "text": "x", "part": "foo" if i else "val"} for i in range(4)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    match = r"metadata\.jsonl, column 'part': no image is in split 'train'; found 'foo' \(3\), "
    with pytest.raises(ValueError, match=match):
        both(tmp_path, column="part")
    trained, held = both(tmp_path, column="", fraction=0.25)  # as the advice has it
    assert (len(trained), len(held)) == (3, 1)


def test_names_that_are_not_used_are_told(tmp_path, capsys):
    for part in ("train2014", "train2017", "val2017"):  # which of two is not for us to say
        fill(tmp_path / "coco" / part)
    trained, held = both(tmp_path / "coco", fraction=0.25)
    assert (len(trained), len(held)) == (9, 3)
    told = capsys.readouterr().out
    assert "evenly spaced; not used as splits: train2014/, train2017/, val2017/)" in told
    fill(tmp_path / "mixed" / "photos" / "train"), fill(tmp_path / "mixed" / "photos" / "val")
    fill(tmp_path / "mixed" / "more")  # would be left out
    assert find_pair(tmp_path / "mixed") is None
    both(tmp_path / "mixed")
    assert "not used as splits: photos/train/, photos/val/)" in capsys.readouterr().out
    both(fill(tmp_path / "plain"))
    assert "not used" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "rows",
    [
        [("Train2017/0.png", ""), ("Val2017/0.png", "")],
        [("images/train/0.png", ""), ("images/val/0.png", "")],
        [("a/0.png", "Training_Set"), ("b/0.png", "val2017")],
    ],
)
def test_splits_of_a_table_in_usual_names(tmp_path, rows):
    for name, _ in rows:
        fill((tmp_path / name).parent, 1, captions=False)
    lines = [json.dumps({"file_name": n, "text": "t", "split": s}) for n, s in rows]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert both(tmp_path) == [{tmp_path / name} for name, _ in rows]


def test_folders_of_splits_behind_links(tmp_path):
    """A pair of folders has what the lister finds in them."""
    for part, name in (("train", "a"), ("val", "b")):
        fill(tmp_path / name)
        (tmp_path / "set" / part).mkdir(parents=True)
        (tmp_path / "set" / part / "images").symlink_to(tmp_path / name)
    trained, held = both(tmp_path / "set")
    assert {i.parent.parent.name for i in trained} == {"train"} and len(trained) == 4
    assert {i.parent.parent.name for i in held} == {"val"} and len(held) == 4
    (tmp_path / "empty" / ".hidden").mkdir(parents=True)
    (tmp_path / "empty" / ".hidden" / "0.png").write_bytes(PNG)
    (tmp_path / "empty" / "loop").symlink_to(tmp_path / "empty")
    assert not has_images(tmp_path / "empty") and not list_files(tmp_path / "empty", Counter())


def test_a_validation_folder_of_links_takes_its_images_out(tmp_path, capsys):
    pool, held = fill(tmp_path / "pool", 6), tmp_path / "held"
    held.mkdir()
    for name in ("1.png", "1.txt", "4.png", "4.txt"):
        (held / name).symlink_to(pool / name)
    trained, validation = both(pool, folder=str(held))
    assert sorted(i.name for i in trained) == ["0.png", "2.png", "3.png", "5.png"]
    assert len(validation) == 2 and "2 in data.validation_folder" in capsys.readouterr().out
    for file in pool.iterdir():
        (held / file.name).exists() or (held / file.name).symlink_to(file)
    with pytest.raises(ValueError, match="holds all images of the training; give a folder of"):
        both(pool, folder=str(held))


def shard(file, prefix, count=4):
    file.parent.mkdir(parents=True, exist_ok=True)
    members = [(f"{prefix}{i}.{kind}", data) for i in range(count)
               for kind, data in (("png", PNG), ("txt", b"x"))]  # fmt: skip
    return small_records.pack(file, members)


def names_in(place, training, **options):
    from test_sources import config_of

    config = config_of("webdataset", place, **options)
    records = make_records(config.data, training)
    return sorted(records.name(i).rpartition(":")[2] for i in range(len(records)))


@pytest.mark.parametrize(
    "train, other",
    [
        ("train/part0/0.tar", "val/part0/0.tar"),
        ("train2017-0.tar", "val2017-0.tar"),
        ("Training_Set/0.tar", "Test_Set/0.tar"),
        ("train/dev-clean/0.tar", "val/dev-clean/0.tar"),
        ("a/set-Train.tar", "a/set-Val.tar"),
    ],
)
def test_files_of_splits_in_usual_names(tmp_path, monkeypatch, train, other):
    files = [shard(tmp_path / train, "t"), shard(tmp_path / other, "v")]
    assert choose_files(files, [], True, Counter()).files == files[:1]
    assert choose_files(files, [], False, Counter()).files == files[1:]
    monkeypatch.chdir(tmp_path)
    mixed = find_files("x", f"{train}::{tmp_path / other}", "tar$")
    assert len(choose_files(mixed, [], True, Counter()).files) == 1


def test_files_of_one_split_alone_are_told(tmp_path, capsys):
    shard(tmp_path / "val-0.tar", "v"), shard(tmp_path / "0.tar", "t")
    assert len(names_in(tmp_path, True, data__split=0.25)) == 6
    assert "evenly spaced; files of val alone: not used as splits)" in capsys.readouterr().out


def test_a_link_beside_its_file_doubles_nothing(tmp_path, capsys):
    whole = shard(tmp_path / "set" / "b.tar", "k", 20)
    (tmp_path / "set" / "a_latest.tar").symlink_to(whole)
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set")
    parts = [names_in(tmp_path / "set", training) for training in (True, False)]
    assert [len(part) for part in parts] == [19, 1] and not set(parts[0]) & set(parts[1])
    assert "1 links to files that are there already" in capsys.readouterr().out
    globbed = find_files("x", f"{tmp_path}/set/*.tar::{tmp_path}/set/again/*.tar", "tar$")
    assert globbed == [whole]
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "link.tar").symlink_to(whole)
    assert find_files("x", str(tmp_path / "alone"), "tar$") == [tmp_path / "alone" / "link.tar"]
