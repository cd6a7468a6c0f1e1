"""One image as a data source: the same sample everywhere, chance in training, clear errors."""

from __future__ import annotations

import numpy as np
import pytest
import small
from PIL import Image

from paella_jax.config import ConfigError
from paella_jax.data.build import make_source
from paella_jax.data.loader import image_transform, make_iterator
from paella_jax.data.one_image import OneImageSource

CAPTION = "a fox in the style of [V]"


@pytest.fixture
def file(tmp_path):
    """64 x 48 pixels, all different."""
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[..., 0], picture[..., 1] = np.mgrid[:48, :64] * 3
    Image.fromarray(picture).save(tmp_path / "style.png")
    return tmp_path / "style.png"


def data_of(file, **overrides):
    values = {"source": "one_image", "image_file": file, "caption": CAPTION} | overrides
    return small.config_of("vqgan:tiny", **{f"data__{k}": v for k, v in values.items()}).data


def test_every_index_is_the_same_sample(file):
    source = make_source(data_of(file, resize=48), "train", 0)
    sample = source[0]
    assert sample["caption"] == CAPTION and sample["image"].dtype == np.uint8
    middle = np.asarray(Image.open(file))[8:40, 16:48]
    np.testing.assert_array_equal(sample["image"], middle)
    for index in (1, 7, 10_000):
        np.testing.assert_array_equal(source[index]["image"], sample["image"])


def test_the_short_side_is_resized(file):
    image = make_source(data_of(file), "train", 0)[0]["image"]
    assert image.shape == (32, 32, 3)
    assert image[:, 0, 0].min() < 5 and image[:, 0, 0].max() > 3 * 46  # all rows are still there


def test_draws_crop_and_flip(file):
    source = make_source(data_of(file, resize=48, crop="random", flip=True), "train", 0)
    images = [source.draw(0, np.random.default_rng(seed))["image"] for seed in range(40)]
    flipped = [int(i[0, 0, 1]) > int(i[0, -1, 1]) for i in images]
    assert 5 < sum(flipped) < 35
    tops = {int(i[0, 0, 0]) for i in images}
    assert len(tops) > 5 and max(tops) <= 3 * 16
    np.testing.assert_array_equal(source.draw(0, np.random.default_rng(3))["image"], images[3])


def test_micro_conditions_are_the_file_s_size_and_the_crop_s_corner(file):
    source = make_source(data_of(file, resize=36, crop="random"), "train", 0)
    np.testing.assert_array_equal(source[0]["micro_conds"], [64, 48, 2, 8, 6])
    corners = set()
    for seed in range(20):
        sample = source.draw(0, np.random.default_rng(seed))
        *size, top, left, score = sample["micro_conds"]
        assert size == [64, 48] and score == 6 and 0 <= top <= 4 and 0 <= left <= 16
        place = source.image.crop((left, top, left + 32, top + 32))
        np.testing.assert_array_equal(sample["image"], np.asarray(place))
        corners.add((top, left))
    assert len(corners) > 8


def test_the_stream_is_endless_and_repeatable(file):
    """One sample fills batches of any size; each place in the stream has its own crop."""
    source = make_source(data_of(file, resize=48, crop="random"), "train", 0)
    batches = lambda seed: make_iterator(source, image_transform, batch_size=8, seed=seed)
    first, again = next(batches(0))["image"], next(batches(0))["image"]
    np.testing.assert_array_equal(first, again)
    assert len({x.tobytes() for x in first}) > 4
    assert not np.array_equal(first, next(batches(1))["image"])


def test_photos_are_turned_upright(tmp_path):
    image = Image.new("RGB", (40, 40))
    image.paste((255, 255, 255), (0, 0, 40, 20))  # white above, before the turn
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    image.save(tmp_path / "a.png", exif=exif)
    pixels = OneImageSource(str(tmp_path / "a.png"), CAPTION, 32)[0]["image"]
    assert pixels[2:12].max() == 0 and pixels[20:30].min() == 255


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"image_file": ""}, "data.image_file '' is no file"),
        ({"image_file": "nowhere.png"}, "data.image_file 'nowhere.png' is no file"),
        ({"caption": "  "}, "data.caption is empty"),
        ({"image_size": 64}, "64x48 pixels, .* asks for 64; give a larger image"),
        ({"resize": 56}, "64x48 pixels, .* asks for 56"),
        ({"resize": 16}, "data.resize 16 is smaller than data.image_size 32"),
        ({"crop": "left"}, "data.crop must be one of center, random, got 'left'"),
        ({"source": "two_images"}, "one_image, .*, got 'two_images'"),
    ],
)
def test_unfit_data(file, overrides, words):
    with pytest.raises(ConfigError, match=words):
        make_source(data_of(file, **overrides), "train", 0)


def test_unreadable_image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(ConfigError, match=r"a.png cannot be used"):
        make_source(data_of(tmp_path / "a.png"), "train", 0)
