"""Requests of the page drawn by a real pipeline: every task, with previews and a stop."""

from __future__ import annotations

import numpy as np
import pytest
import small
from PIL import Image, ImageOps

import paella_jax
from paella_jax.images.png import read_png_texts
from paella_jax.serving.draw import canvas, draw, tasks_of
from paella_jax.serving.limits import IMAGE, INPAINT, OUTPAINT, TASKS, TEXT, VARIATIONS, Ask

pytestmark = [
    pytest.mark.slow,  # tests/test_studio.py asks a pipeline that is none
    pytest.mark.devices(8),  # batches of 1 to 8 images share a program
]
IMAGE_GIVEN = Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    config = small.small_paella(
        sampler__num_steps=3,
        image_encoder__kind="joint",
        image_encoder__width=16,
        image_encoder__num_heads=2,
        image_encoder__projection=12,
    )
    return paella_jax.load(small.untrained(tmp_path_factory.mktemp("run"), config))


def drawn_by(pipe, ask, most=99):
    """The result, and what was told: step, steps, number of images."""
    told = []

    def on_step(step, total, images):
        told.append((step, total, len(images)))
        return step < most

    return draw(pipe, ask, on_step), told


def test_text_is_drawn_and_the_file_says_so(pipe, tmp_path):
    drawn, told = drawn_by(pipe, Ask("a cat", seed=7, count=2))
    assert told == [(1, 3, 2), (2, 3, 2), (3, 3, 2)] and not drawn.stopped
    drawn.images[1].save(tmp_path / "image.png", pnginfo=None)
    assert drawn.images[1].info["prompt"] == "a cat" and drawn.images[1].info["seed"] == "7"
    assert read_png_texts(tmp_path / "image.png") == {}  # the page writes them, PIL does not
    again = pipe("a cat", seed=7, num_images_per_prompt=2)
    assert [np.asarray(x).tolist() for x in again] == [np.asarray(x).tolist() for x in drawn.images]


def test_a_stop_keeps_what_there_is(pipe):
    drawn, told = drawn_by(pipe, Ask("a cat"), most=2)
    assert drawn.stopped and told[-1][0] == 2 and len(drawn.images) == 1


def test_kept_pixels_are_the_image_s_own(pipe):
    mask = Image.new("L", IMAGE_GIVEN.size, 0)
    mask.paste(255, (20, 10, 40, 30))
    drawn, _ = drawn_by(pipe, Ask("a cat", INPAINT, image=IMAGE_GIVEN, mask=mask))
    plain, _ = drawn_by(pipe, Ask("a cat", IMAGE, image=IMAGE_GIVEN, strength=0.9))
    pixels, other = np.asarray(drawn.images[0]), np.asarray(plain.images[0])
    assert pixels.shape == other.shape == (32, 32, 3)
    scaled = np.asarray(ImageOps.fit(IMAGE_GIVEN, (32, 32), Image.Resampling.LANCZOS))
    assert np.abs(pixels[0].astype(int) - scaled[0]).max() <= 1  # outside of the mask
    assert np.abs(other.astype(int) - scaled).mean() > 20


def test_a_canvas_grows_around_the_image(pipe):
    ask = Ask("a cat", OUTPAINT, image=IMAGE_GIVEN, margins=(0.0, 0.5, 0.0, 0.25))
    drawn, _ = drawn_by(pipe, ask)
    image, marked = canvas(pipe, ask)
    assert drawn.images[0].size == image.size == (40, 48)
    np.testing.assert_array_equal(np.asarray(drawn.images[0])[~marked], np.asarray(image)[~marked])


def test_variations_need_no_prompt(pipe):
    assert tasks_of(pipe) == list(TASKS)
    drawn, _ = drawn_by(pipe, Ask("", VARIATIONS, image=IMAGE_GIVEN))
    assert drawn.images[0].size == (32, 32)


def test_what_only_the_run_can_refuse(pipe):
    with pytest.raises(ValueError, match="the limit is 48"):
        drawn_by(pipe, Ask("a cat " * 150, TEXT))
    with pytest.raises(ValueError, match="height 33"):
        drawn_by(pipe, Ask("a cat", height=33))
