"""A comparison on own captioned images: which are taken, and how what is drawn is marked."""

from __future__ import annotations

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from test_comparison_report import make_row

from paella_jax.comparison import own_images
from paella_jax.comparison.own_images import OwnImages
from paella_jax.comparison.report import markdown
from paella_jax.comparison.verdict import verdict
from paella_jax.config import ConfigError, load_config
from paella_jax.encoders.feature_network import Features

COUNT = 254


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images whose colour, half above and half below, follows from their caption's number."""
    root = tmp_path_factory.mktemp("images")
    for number in range(1, COUNT + 1):
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[:4] = number, (number * 91) % 256, (number * 37) % 256
        Image.fromarray(pixels).save(root / f"{number:03}.png")
        (root / f"{number:03}.txt").write_text(f"thing {number // 2 if number < 40 else number}")
    return root


class MeanColour:
    def __init__(self, name):
        self.name = name

    def extract(self, images):
        """Features that tell apart what the images below differ in: their mean colour."""
        return Features(np.stack([image.mean((0, 1)) for image in images]), None)


@pytest.fixture
def subject(folder, monkeypatch):
    monkeypatch.setattr(own_images, "load_features", lambda kind, file: MeanColour(kind))
    return lambda **measure: make(folder, **measure)


def make(folder, **measure):
    config = load_config("compare:folder", [f"--config.data.folder={folder}"])
    data = load_config(
        "paella:folder32",
        [
            f"--config.data.folder={folder}",
            "--config.data.image_size=8",
            "--config.data.split=0.46",
        ],
    ).data
    sizes = {"images": 64, "tuning_images": 30, "token_images": 5, "real_images": 20} | measure
    return OwnImages(data, ConfigDict(config.measure.to_dict() | sizes))


def test_no_image_is_measured_that_something_was_chosen_on(subject):
    own = subject()
    seen, heldout, tuning, tokens = own.samples()
    search = own.search_tokens()
    sizes = [len(part[1]) for part in (seen, heldout, tuning, tokens, search)]
    assert sizes == [64, 64, 60, 5, 5] and len(own.real_images()) == 20
    assert not set(tuning[1]) & set(seen[1])
    assert not set(search[1]) & ({*tokens[1]} | {*heldout[1]})
    for images, captions in (seen, heldout, tuning):
        assert len(set(captions)) == len(captions)
        numbers = [int(text.split()[1]) for text in captions]
        for number, image in zip(numbers, images, strict=True):
            assert number < 40 or image[0, 0, 0] == number
    parts = [set(part[1]) for part in (seen, heldout, tuning)]
    assert len(set.union(*parts)) == sum(map(len, parts)), "some captions are of images of each"
    pixels = lambda parts: {image.tobytes() for part in parts for image in part[0]}
    assert not pixels([seen, tuning]) & pixels([heldout, tokens])
    assert not pixels([seen]) & pixels([search])
    reals = {image.tobytes() for image in own.real_images()}
    assert not reals & pixels([seen, heldout]), "an image among them would be at no distance"


def test_an_image_is_right_if_its_own_true_one_is_the_nearest(subject):
    own = subject()
    images, captions = own.samples().seen
    drawn = images.astype(np.float32) / 255
    marks = own.mark(drawn, captions)
    assert marks.exact.all() and marks[1:] == (1.0, 1.0)
    wrong = np.roll(drawn, 1, axis=0)
    marks = own.mark(wrong, captions)
    assert marks.exact.mean() < 0.1 and marks.clean < 0.1
    half = np.where(np.arange(64)[:, None, None, None] < 32, drawn, wrong)
    found = own.mark(half, captions).exact
    assert found[:32].all() and found[32:].mean() < 0.1
    few = own.mark(half[28:36], captions[28:36]).exact
    assert few.tolist() == found[28:36].tolist(), "a part is marked as the whole"


def test_captions_of_several_parts_are_marked_together(subject):
    own = subject()
    parts = own.samples()[:2]
    images = np.concatenate([images[:5] for images, _ in parts])
    captions = [text for _, texts in parts for text in texts[:5]]
    assert own.mark(images, captions).exact.all()
    assert own.mark(images[::-1], captions).exact.tolist() != [True] * 10
    assert np.array_equal(own.true_images(captions), images)


def test_a_blank_image_is_not_clean(subject):
    own = subject()
    images, captions = own.samples().heldout
    blank = np.broadcast_to(images.mean((1, 2), keepdims=True) / 255, images.shape)
    marks = own.mark(blank, captions)
    assert marks.exact.all() and marks.clean == 0.0, "as near as the true ones, and nothing in them"


def test_too_few_images_are_told_before_anything_is_trained(subject):
    with pytest.raises(ConfigError, match=r"the train images have \d+ .*, but 140 are to be"):
        subject(images=140, tuning_images=64).check()
    with pytest.raises(ConfigError, match=r"measure\.tuning_images must be at least 64, got 30"):
        subject().check()


def test_the_page_says_what_its_numbers_are_of():
    rows = [
        make_row(cell) | {"marked_by": "retrieval"}
        for cell in (("uniform", "unet", "random"), ("mask", "unet", "confidence"))
    ]
    text = markdown(rows)
    assert "seen R@1" in text and "held-out R@5" in text and "of 64 captions" in text
    assert "exact match" not in text and "attributes" not in text.lower()
    assert any("R@1" in sentence for sentence in verdict(rows))
    with pytest.raises(ValueError, match="marked differently"):
        markdown([rows[0], make_row(("mask", "unet", "confidence"))])
