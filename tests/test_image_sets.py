"""Captions of folders that are scored: read where they are judged, and no hindrance elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from small_judges import shrinking_judges

from paella_jax.encoders.clip_judge import ClipJudge
from paella_jax.reports.folder_scores import score_folders
from paella_jax.reports.gathered import Judges, ScoreError
from paella_jax.reports.image_sets import open_images

COUNT = 20


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for n in range(COUNT):
        pixels = draw.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{n:03}.png")
    return tmp_path / "images"


@pytest.fixture
def judges():
    """A CLIP model that sees small images and of a text its length."""
    network = shrinking_judges().network
    lengths = lambda texts: [np.array([[len(text)] for text in texts])]
    embed = lambda ids: np.tile(ids, network.width)
    return Judges(network, ClipJudge(network, 1.0, lengths, embed))


def caption(folder, numbers, text="a caption"):
    for n in numbers:
        (folder / f"{n:03}.txt").write_text(text)


def licence(folder):
    (folder / "LICENSE.txt").write_text("MIT")


def prompts_of_save_images(folder):
    (folder / "prompts.txt").write_text("a\nb\n")


def table_without_captions(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "000.png", "label": 1}')


def no_text(folder):
    caption(folder, range(COUNT), "")


def other_encoding(folder):
    for n in range(COUNT):
        (folder / f"{n:03}.txt").write_bytes("ein schöner Hund".encode("latin-1"))


@pytest.mark.parametrize(
    "lay", [licence, prompts_of_save_images, table_without_captions, no_text, other_encoding]
)
@pytest.mark.parametrize("captions", [False, True])
def test_texts_that_are_no_captions_are_no_hindrance(folder, lay, captions):
    lay(folder)
    images = open_images("--images", str(folder), captions=captions)
    assert len(images) == len(list(images.images())) == COUNT and not images.unreadable
    assert images.read_captions() == [] and images.uncaptioned() == "000.png"


def test_captions_are_read_where_they_are_asked_for(folder):
    caption(folder, range(COUNT))
    images = open_images("--images", str(folder), captions=True)
    assert images.uncaptioned() == "" and len(list(images.images())) == COUNT
    assert images.read_captions() == ["a caption"] * COUNT
    (folder / "007.txt").write_text(" \n")
    images = open_images("--images", str(folder), captions=True)
    assert images.uncaptioned() == "007.png" and len(list(images.images())) == COUNT
    assert images.read_captions() == []


def test_a_judge_of_captions_needs_one_for_each_image(folder, judges, tmp_path):
    caption(folder, range(COUNT - 1))
    looked = []
    seen = Judges(replace(judges.network, prepare=looked.append), judges.clip)
    score = lambda judges, **options: score_folders(
        str(folder), str(folder), judges, tmp_path, paired=True, **options
    )
    with pytest.raises(ScoreError, match=r"019\.png of --images .*/images has none: put a text"):
        score(seen)
    assert not looked
    score(shrinking_judges())  # nobody reads a caption
    (tmp_path / "prompts").write_text("a prompt\n" * COUNT)
    page = score(judges, prompts=str(tmp_path / "prompts"))
    assert "019.png of the reference has no caption" in page
    row, floor = json.loads((tmp_path / "scores.json").read_text())["rows"]
    assert "clip_score" in row and "clip_score" not in floor
