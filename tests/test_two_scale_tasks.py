"""Mask-free editing and strips at two scales, and the command line's tasks with two runs."""

from __future__ import annotations

import numpy as np
import pytest
import small
from PIL import Image
from test_two_scale import RED, SIDE, change_codebook, config_of, pipeline

from paella_jax.images.write import save_strip
from paella_jax.pipelines import editing
from paella_jax.pipelines.two_scale import TwoScalePipeline

pytestmark = pytest.mark.devices(8)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """4x4 tokens of 16x16 pixels, enlarged to 8x8 tokens of 32x32."""
    first, second = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("super_resolution")
    small.carry_random_tokenizer(first)
    small.carry_random_tokenizer(second)
    change_codebook(second)
    small.carry_random_tokenizer(second / "frozen" / "low")
    large = config_of("super_resolution_tiny", data__image_size=SIDE, low_tokenizer="base")
    base = pipeline(config_of("tiny", data__image_size=16), first, 0)
    return TwoScalePipeline(base, pipeline(large, second, 5))


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)


@pytest.fixture(scope="module")
def files(picture, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:16] = 255
    arrays = {"IMAGE": picture, "PART": picture[:24], "MASK": mask}
    for name, array in arrays.items():
        Image.fromarray(array).save(folder / f"{name}.png")
    return {name: str(folder / f"{name}.png") for name in arrays}


def test_editing_changes_the_small_picture_and_enlarges_it_once(pipe, picture):
    options = {"rounds": 2, "share": 0.1, "seed": 1}
    result = editing.edit(pipe, picture, RED, frames=2, **options)
    low = pipe.encode_low(picture[None] / 255.0)
    assert 1 <= (result.low.tokens != low).sum() <= 4  # 2 of 16 in a round
    assert result.low.trace.shape == (2, 1, 4, 4) and result.trace.shape == (2, 1, 8, 8)
    strip = pipe.strip(result)
    assert strip.shape == (4, 1, SIDE, SIDE, 3)
    small_picture = pipe.base.decode(result.low.tokens)
    np.testing.assert_array_equal(strip[1][:, ::2, ::2], small_picture)
    np.testing.assert_array_equal(strip[1][:, 1::2, 1::2], small_picture)
    np.testing.assert_allclose(strip[-1], result.images, atol=1e-5)


def test_editing_a_part_keeps_the_rest_at_both_scales(pipe, picture):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:, 16:] = True
    result = editing.edit(pipe, picture, RED, mask=mask, rounds=4, share=0.5)
    low, high = pipe.encode_low(picture[None] / 255.0), pipe.super_resolution.encode(picture[None])
    np.testing.assert_array_equal(result.low.tokens[..., :2], low[..., :2])
    np.testing.assert_array_equal(result.tokens[..., :4], high[..., :4])
    assert (result.low.tokens != low).any() and (result.tokens != high).any()
    assert result.trace is None


def command_line(monkeypatch, pipe, files, flags):
    flags = [files.get(flag, flag) for flag in flags]
    more = ("--super_resolution", "RUN", "--prompt", RED)
    return small.sample_by_flags(monkeypatch, pipe, *more, *flags)


COMMANDS = {
    "text-to-image": (["--num_images_per_prompt", "2", "--sampler", "random", "--strip"], 2),
    "mixing": (["--mix", "a blue square", "--weights", "0.3,0.7"], 1),
    "inpainting": (["--image", "IMAGE", "--mask", "MASK"], 1),
    "outpainting": (["--image", "PART", "--outpaint", "8,0,0,0"], 1),
    "editing": (["--image", "IMAGE", "--edit", "2", "--share", "0.2", "--strip"], 1),
}


@pytest.mark.parametrize("task", COMMANDS)
def test_every_task_from_the_command_line(pipe, files, monkeypatch, tmp_path, task):
    flags, count = COMMANDS[task]
    result, titles = command_line(monkeypatch, pipe, files, flags)
    assert result.images.shape == (count, SIDE, SIDE, 3) and len(titles) == count
    assert (result.trace is not None) == ("--strip" in flags)
    if "--strip" in flags:
        strip = pipe.strip(result)
        save_strip(tmp_path / "grid.png", strip, titles)
        assert (tmp_path / "grid.png").is_file()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--image", "IMAGE"], "needs --mask, --outpaint or --edit"),
        (["--image", "IMAGE", "--strength", "0.5"], "--strength has no effect with --super_res"),
        (["--to", "a blue square"], "--to has no effect with --super_resolution"),
        (["--emphasis", "red=2"], "--emphasis has no effect"),
        (["--image", "IMAGE", "--mask", "MASK", "--prompt", "another"], "one --prompt, got 2"),
        (["--image", "PART", "--edit", "2", "--width", "24"], "width is 24; these runs draw"),
        (["--image", "PART", "--outpaint", "16,16,0,0"], "leaves nothing of the image"),
        (["--image", "IMAGE", "--edit", "0"], "--edit must be from 1"),
    ],
)
def test_commands_that_make_no_sense(pipe, files, monkeypatch, flags, words):
    with pytest.raises(ValueError, match=words):
        command_line(monkeypatch, pipe, files, flags)
