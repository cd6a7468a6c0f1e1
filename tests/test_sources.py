"""Every format of captioned images: the same samples, order, splits and errors; exact resume."""

from __future__ import annotations

import json
import pickle
from collections import Counter

import jax
import numpy as np
import pytest
import small
import small_records

from paella_jax.config import ConfigError, from_json, load_config, to_json
from paella_jax.data.build import make_records, make_source
from paella_jax.data.files_of_records import choose_files
from paella_jax.data.loader import make_iterator
from paella_jax.registry import build_method
from paella_jax.runs.checkpoint import CheckpointError
from paella_jax.runs.folder import check_same_run, prepare_workdir
from paella_jax.training.looked_at import describe_cut
from paella_jax.training.loop import train

COUNT = 24
FORMATS = list(small_records.FIELD)
RESUMED = ["webdataset", "array_record", "tfds"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A function: what a format's setting is given, written once."""
    made, base = {}, tmp_path_factory.mktemp("formats")

    def of(kind):
        if kind not in made:
            made[kind] = small_records.write(kind, base / kind, COUNT)
        return made[kind]

    return of


def config_of(kind, given, **overrides):
    """A tokenizer's config whose source is implied."""
    return small.config_of(
        "vqgan:tiny", **{f"data__{small_records.FIELD[kind]}": given} | overrides
    )


def source_of(kind, given, split="train", **overrides):
    options = {"data__crop": "random", "data__flip": True} | overrides
    return make_source(config_of(kind, given, **options).data, split, 0)


def batches(source, count, **options):
    """Images, captions and micro-conditions."""
    keep = lambda s: {"image": s["image"], "conds": s["micro_conds"],
                      "text": np.array(s["caption"].ljust(12))}  # fmt: skip
    stream = make_iterator(source, keep, batch_size=4, seed=3, **options)
    return [next(stream) for _ in range(count)]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("kind", FORMATS[1:])
def test_every_format_gives_the_folder_s_samples(written, kind):
    """In order and drawn, with threads, for a process's rows, resumed, and after pickling."""
    folder, source = source_of("folder", written("folder")), source_of(kind, written(kind))
    assert len(source) == len(folder) == COUNT - 1
    for position in (0, 11, COUNT - 2):
        assert source[position]["caption"] == folder[position]["caption"]
        np.testing.assert_array_equal(source[position]["image"], folder[position]["image"])
    expected = batches(folder, 12)
    assert len({str(t) for batch in expected for t in batch["text"]}) > COUNT  # both captions
    assert_same(batches(source, 12, threads=4), expected)
    assert_same(batches(pickle.loads(pickle.dumps(source)), 3, start=9), expected[9:])
    for whole, part in zip(expected, batches(source, 3, rows=[1, 3]), strict=False):
        np.testing.assert_array_equal(part["image"], whole["image"][[1, 3]])


@pytest.mark.parametrize("kind", FORMATS[1:])
def test_a_fraction_is_held_back_alike(written, capsys, kind):
    options = {"data__split": 0.25, "data__captions": False}
    train, held = (source_of(kind, written(kind), s, **options) for s in ("train", "validation"))
    blue = lambda source: {int(source[i]["image"][5, 5, 2]) for i in range(len(source))}
    assert blue(held) == set(range(3, COUNT, 4)) and len(train) == 18
    assert not blue(train) & blue(held) and train[0]["caption"] == ""
    told = capsys.readouterr().out
    assert f"data.{small_records.FIELD[kind]} {written(kind)}: 18 images for training" in told
    drawn = {frozenset(blue(source_of(kind, written(kind), "validation", data__split_seed=seed,
                                      **options))) for seed in (1, 2)}  # fmt: skip
    assert len(drawn) == 2 and all(len(part) == 6 for part in drawn)


def method_of(kind, given, workdir, **overrides):
    """A tiny token predictor's config, folder and method."""
    values = {f"data__{small_records.FIELD[kind]}": given, "model__patterns": "('CT',)",
              "data__flip": True} | overrides  # fmt: skip
    config = small.small_paella(**values)
    workdir = prepare_workdir(workdir, config)
    if not (workdir / "frozen").exists():
        small.carry_random_tokenizer(workdir)
    method = build_method(config, workdir)
    object.__setattr__(method, "preview", None)
    return config, workdir, method


def trained(*given, **overrides):
    """The same after so many steps."""
    return train(*method_of(*given, **overrides))


@pytest.fixture(scope="module")
def uninterrupted(written, tmp_path_factory):
    """Four steps on the folder, without a pause."""
    return trained("folder", written("folder"), tmp_path_factory.mktemp("whole")).state


@pytest.mark.parametrize("kind", RESUMED)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(written, uninterrupted, tmp_path, kind):
    """And that of the folder, as all formats hold the same images."""
    trained(kind, written(kind), tmp_path, num_steps=2)
    result = trained(kind, written(kind), tmp_path)
    assert result.step == 4
    assert_same(result.state, uninterrupted)


def test_data_of_another_length_is_refused(written, tmp_path, capsys):
    """With both lengths and the ways out. Where captions are cut, that is told too."""
    run, other = tmp_path / "run", small_records.write("folder", tmp_path / "other", 12)
    trained("folder", written("folder"), run, num_steps=1)
    assert "captions:" not in capsys.readouterr().out
    assert json.loads((run / "data.json").read_text()) == {"samples": COUNT - 1}
    with pytest.raises(ConfigError, match=r"begun on 23 training samples, the data has 12 now"):
        trained("folder", other, run, num_steps=2)
    (run / "data.json").unlink()
    table = other / "metadata.jsonl"
    table.write_text(table.read_text().replace("another 7", "seven" + " and" * 29))
    assert trained("folder", other, run, num_steps=2).step == 2
    cut = "captions: 1 of 24 looked at are longer than the 24 ids that are read (text.max_length"
    assert cut in capsys.readouterr().out
    (run / "data.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"data\.json is cut short"):
        trained("folder", other, run, num_steps=3)


def test_captions_that_are_cut_are_counted(written, tmp_path):
    """Of bytes: "caption 7" and the end mark are 10 ids, "caption 12" 11 as 13 of 23."""
    of_bytes = {"text__units": "bytes", "text__values_from": "states"}

    def lines(limit):
        workdir = tmp_path / str(limit)
        options = of_bytes | {"text__max_length": limit}
        return describe_cut(method_of("folder", written("folder"), workdir, **options)[2])

    told = (
        "captions: 26 of 46 looked at are longer than the 10 ids that are read "
        "(text.max_length and text.pad_to) and are cut; the longest has 11"
    )
    assert lines(10) == [told] and lines(11) == []


def test_what_is_given_is_the_source(written):
    given = written("webdataset")
    assert config_of("webdataset", given).data.source == "webdataset"
    assert load_config("vqgan:tiny", [f"config.data.shards={given}"]).data.source == "webdataset"
    assert small.config_of("vqgan:f4", data__shards=given).data.source == "webdataset"
    assert small.config_of("clip_prior:tiny", data__shards="x").data.source == "embeddings"
    with pytest.raises(ConfigError, match=r"data\.shards and data\.tfds are given"):
        small.config_of("vqgan:tiny", data__shards="x", data__tfds="y")
    for options, words in (
        ({"data__source": "tfds"}, r"data\.tfds is empty"),
        ({"data__source": "parquet"}, r"data\.parquet is empty"),
        ({"data__source": "webdata"}, r"data\.source must be one of shapes, folder"),
        ({"data__source": "shapes", "data__shards": "x"}, r"data\.shards is 'x', but data\.source"),
        ({"data__shards": "x", "data__validation_folder": "y"}, r"does not read it \(folder\)"),
        ({"data__folder": "x", "data__validation_files": "y"}, r"does not read it \(webdataset,"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_source(small.config_of("vqgan:tiny", **options).data, "train", 0)
    with pytest.raises(ValueError, match="'shapes' has no records"):
        make_records(small.config_of("vqgan:tiny").data, True)


def test_files_are_named_in_several_ways(written, tmp_path):
    folder = written("webdataset")
    count = lambda given: len(
        make_records(config_of("webdataset", given, data__split=0.0).data, True)
    )
    assert count(folder) == count(f"{folder}/*.tar") == count(f"{folder}/**/*.tar") == COUNT
    assert count(f"{folder}/shard-{{000..001}}.tar") == COUNT
    assert count(f"{folder}/shard-{{000,001}}.tar") == COUNT
    both = f"{folder}/shard-000.tar::{folder}/shard-001.tar"
    assert count(both) == COUNT and count(f"{folder}/shard-001.tar") == COUNT // 2
    (tmp_path / "a.tar.gz").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for given, words in (
        (f"{folder}/shard-{{000..009}}.tar", r"there is no .*002.*003.*004\.tar and 5 more"),
        (f"{folder}/none-*.tar", "names no files of its kind"),
        (tmp_path / "empty", "names no files of its kind"),
        (tmp_path / "absent", "there is no"),
        (tmp_path / "a.tar.gz", "compressed archive cannot be read by position"),
        (f"{folder}/x{{0..99999999999}}.tar", "names more than"),
        ("https://example.org/0.tar", "is an address; copy the files"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_source(config_of("webdataset", given).data, "train", 0)


def test_files_kept_back_may_be_named_in_another_way(written, tmp_path):
    first, second = sorted(written("webdataset").glob("*.tar"))
    (tmp_path / "link").symlink_to(first.parent, target_is_directory=True)
    chosen = choose_files([first, second], [tmp_path / "link" / second.name], True, Counter())
    assert chosen.files == [first]


def test_splits_by_files(written, tmp_path, capsys):
    first, second = sorted(written("webdataset").glob("*.tar"))
    for name in ("train-0", "heldout-0", "notes-0"):
        (tmp_path / f"{name}.tar").hardlink_to(first if name == "heldout-0" else second)
    captions = lambda source: [source[i]["caption"] for i in (0, len(source) - 1)]
    both = [source_of("webdataset", tmp_path, split) for split in ("train", "validation")]
    assert [captions(source) for source in both] == [["caption 12", "caption 23"],
                                                     ["caption 0", "caption 11"]]  # fmt: skip
    told = capsys.readouterr().out
    assert "12 images for training (1 files named train); left out: 12 .cls, 1 files of" in told
    given = {"data__validation_files": second}
    both = [source_of("webdataset", second.parent, split, **given) for split in ("train", "rest")]
    assert [captions(source)[0] for source in both] == ["caption 0", "caption 12"]
    with pytest.raises(ConfigError, match="names all files of the training"):
        source_of("webdataset", second, **given)


def test_runs_older_than_the_sources_resume(tmp_path):
    config = small.config_of("vqgan:tiny", data__folder="x")
    old = config.copy_and_resolve_references().unlock()
    for name in ("shards", "array_record", "parquet", "tfds", "tfds_folder", "validation_files",
                 "training_split", "validation_split", "image_field", "caption_field",
                 "draft"):  # fmt: skip
        del old.data[name]
    prepare_workdir(tmp_path, from_json(to_json(old)))
    check_same_run(tmp_path, config)
    with pytest.raises(ConfigError, match=r"data\.draft: '\(absent\)' -> True"):
        check_same_run(tmp_path, small.config_of("vqgan:tiny", data__folder="x", data__draft=True))
    small_records.write("folder", tmp_path / "y", 3)
    old.data.folder = str(tmp_path / "y")
    assert len(make_source(old.data, "train", 0)) == 3
