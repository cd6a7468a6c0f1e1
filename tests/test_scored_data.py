"""Images that are scored, or scored against, in every form that training reads."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import small
import small_records
from ml_collections import ConfigDict
from small_judges import shrinking_judges

from paella_jax.config import ConfigError
from paella_jax.data.build import make_source
from paella_jax.data.places import field_at
from paella_jax.reports.folder_scores import score_folders
from paella_jax.reports.gathered import ScoreError
from paella_jax.reports.image_sets import open_images
from paella_jax.reports.scored_data import check_enough, is_own, scored_data

COUNT = 24
KINDS = list(small_records.FIELD)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A function: where the same images lie in a format, written once."""
    made, base = {}, tmp_path_factory.mktemp("formats")

    def of(kind):
        if kind not in made:
            made[kind] = str(small_records.write(kind, base / kind, COUNT))
        return made[kind]

    return of


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_a_place_is_found(written, kind):
    assert field_at("--data", written(kind)) == small_records.FIELD[kind]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_run_is_scored_on_any_source(written, kind):
    """The place alone says what it is, and what belonged to the run's own images is forgotten.

    No image of it has to be held back; but a split that is asked for is made.
    """
    config = small.config_of(
        "paella:folder32", data__folder="elsewhere", data__validation_folder="", data__split=0.25,
        data__encoded="arrays", data__caption_field="alt", data__image_field="img",
    )  # fmt: skip
    assert len(make_source(scored_data(config, written(kind)), "validation", 0)) == COUNT
    split = ["--config.data.split=0.25"]
    data = scored_data(config, written(kind), split)
    own = scored_data(config, written("folder"), split)
    held, of_folder = (make_source(d, "validation", 0) for d in (data, own))
    assert len(held) == len(of_folder) == COUNT // 4
    for n in (0, 5):
        assert held[n]["caption"] == of_folder[n]["caption"]
        np.testing.assert_array_equal(held[n]["image"], of_folder[n]["image"])
    by_field = [f"--config.data.{small_records.FIELD[kind]}={written(kind)}"]
    assert scored_data(config, overrides=[*by_field, *split]) == data
    assert not is_own(config, data) and is_own(config, scored_data(config, "", split))
    assert config.data.folder == "elsewhere"


def test_runs_that_are_older_than_a_source_are_scored_on_it(written):
    kept = ("source", "folder", "image_size", "crop", "captions")
    fields = small.config_of("paella:folder32", data__folder="gone").data.to_dict()
    old = ConfigDict({"data": {name: fields[name] for name in kept}})
    fields = ["--config.data.caption_field=caption", "--config.data.split=0.05"]
    data = scored_data(old, written("webdataset"), fields)
    assert make_source(data, "validation", 0)[0]["caption"] == f"caption {COUNT - 5}"
    assert scored_data(old).folder == "gone"


def test_a_place_that_is_the_run_s_own_keeps_its_split(written, monkeypatch):
    """However it is written: its training images are none that the run never saw."""
    folder = Path(written("folder"))
    config = small.config_of("paella:folder32", data__folder=folder, data__split=0.25)
    monkeypatch.chdir(folder.parent)
    for place, overrides in (
        (str(folder), []),
        (f"{folder}/", []),
        (folder.name, []),
        ("", [f"--config.data.folder={folder.name}"]),
    ):
        data = scored_data(config, place, overrides)
        assert is_own(config, data) and len(make_source(data, "validation", 0)) == COUNT // 4


def test_a_place_with_splits_of_its_own_is_scored_by_those(tmp_path):
    for part, count in (("train", 5), ("val", 3)):
        small_records.write("folder", tmp_path / part, count)
    config = small.config_of("paella:folder32", data__folder="elsewhere")
    data = scored_data(config, str(tmp_path))
    assert len(make_source(data, "validation", 0)) == 3


def test_too_few_images_are_told_with_what_holds_them_back(written):
    config = small.config_of("paella:folder32", data__folder=written("folder"), data__split=0.1)
    own, other = scored_data(config), scored_data(config, written("webdataset"))
    match = r"at least 20 images, data\.split 0\.1 holds 2 of 24 back: give .*\(--data PLACE\)"
    with pytest.raises(ScoreError, match=match):
        check_enough(own, 2, 256, 0, own=True)
    other.split = 0.1
    match = r"data\.split 0\.1 holds 2 of 24 back: leave --config\.data\.split out"
    with pytest.raises(ScoreError, match=match):
        check_enough(other, 2, 256, 0, own=False)
    other.split = 0.0
    check_enough(other, COUNT, 256, 0, own=False)
    for held, wanted, there in ((3, 256, 3), (COUNT, 7, 7)):  # the split has no part in it
        with pytest.raises(ValueError, match=f"at least 20 images .*there are {there}: draw or"):
            check_enough(other, held, wanted, 0, own=False)


def test_settings_that_do_not_fit(written, tmp_path):
    config = small.config_of("paella:folder32", data__folder="own")
    place, tfds = written("folder"), "--config.data.tfds=x"
    for given, overrides, error, message in (
        (place, [tfds], ScoreError, "given twice, by tfds and folder"),
        ("", [tfds, "--config.data.folder=y"], ScoreError, "twice, by tfds and folder"),
        ("", ["--config.num_steps=3"], ScoreError, "only its data can be another"),
        ("", ["RUN"], ScoreError, "'RUN': a run is scored as it was trained"),
        ("", ["--config.data.foldr=y"], ConfigError, "did you mean 'data.folder'"),
        ("", ["--config.data.split=x"], ConfigError, "must be of type float"),
    ):
        with pytest.raises(error, match=message):
            scored_data(config, given, overrides)


def test_places_that_name_nothing_or_several_things(written, tmp_path):
    both, packed = tmp_path / "both", tmp_path / "packed"
    both.mkdir()
    packed.mkdir()
    (both / "a.png").write_bytes(small_records.png(0))
    small_records.pack(both / "b.tar", [("a.png", small_records.png(0))])
    (packed / "a.tar.gz").write_bytes(b"")
    for place, message in (
        (tmp_path / "absent", "there is no .*absent; a data set that TFDS knows"),
        (packed, "has none of these: images, .tar"),
        (both, "several kinds of data, as a.png and b.tar"),
        (both / "a.png", "names images themselves; give the folder"),
        (both / "*.png", "names images themselves"),
        (both / "c-{0..1}.tar", "there is no .*c-0.tar"),
        ("gs://bucket/a.tar", "is an address"),
    ):
        with pytest.raises(ValueError, match=f"--reference.*{message}"):
            field_at("--reference", str(place))
    assert field_at("--data", f"{both}/b.tar::{written('webdataset')}") == "shards"
    assert field_at("--data", f"{both}/*.tar") == "shards"


@pytest.mark.parametrize("kind", KINDS[1:])
def test_any_source_is_a_reference(written, tmp_path, kind):
    folder, judges = written("folder"), shrinking_judges()
    rows = []
    for reference in (folder, written(kind)):
        score_folders(folder, reference, judges, tmp_path, paired=False)
        rows.append(json.loads((tmp_path / "scores.json").read_text())["rows"])
    assert rows[0] == rows[1] and rows[0][1]["images"] == COUNT
    images = open_images("--reference", written(kind), captions=True)
    pixels = list(images.images())
    assert len(pixels) == COUNT and images.read_captions()[3] == "caption 3"
    assert Counter(int(image[0, 0, 2]) for image in pixels) == Counter(range(COUNT))
    silent = open_images("--reference", written(kind))
    assert next(silent.images()).shape == pixels[0].shape
    silent.take(5)
    assert len(silent) == len(silent.names) == len(list(silent.images())) == 5
    assert silent.read_captions() == []


def test_unreadable_images_are_counted_anew_each_time(tmp_path):
    """A table of manipulations reads all images many times."""
    members = [(f"{n}.png", small_records.png(n) if n else b"no image") for n in range(12)]
    images = open_images("--images", str(small_records.pack(tmp_path / "a.tar", members)))
    for _ in range(5):
        assert len(list(images.images())) == 11 and images.unreadable == [0]
