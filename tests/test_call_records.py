"""What a call's records say, what warm_up compiles, which wrong arguments are one clear line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import small
from PIL import Image

import paella_jax
from paella_jax import Condition
from paella_jax.images.png import read_png_texts
from paella_jax.pipelines.run_digests import run_digest

RED, BLUE = "a large red circle at the top left", "a large blue circle at the bottom right"
PHOTO = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    config = small.small_paella(sampler__num_steps=3, model__num_classes=4)
    return paella_jax.load(small.untrained(tmp_path_factory.mktemp("run"), config))


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    config = small.small_paella(**small.TINY_TRANSFORMER, cell__sampler="confidence")
    return paella_jax.load(small.untrained(tmp_path_factory.mktemp("masked"), config))


def record(images, tmp_path):
    """The record in the first image's file, as it comes back from JSON."""
    return json.loads(read_png_texts(images.save(tmp_path, overwrite=True)[0])["record"])


def test_numbers_of_numpy_and_lists_are_recorded(pipe, tmp_path):
    images = pipe(RED, num_steps=np.int64(2), guidance_scale=np.float32(3),
                  temperature=[1.0, 0.5], renoise_steps=np.int64(1))  # fmt: skip
    settings = record(images, tmp_path)["settings"]
    assert (settings["num_steps"], settings["renoise_steps"]) == (2, 1)
    assert settings["guidance_scale"] == 3.0 and settings["temperature"] == [1.0, 0.5]
    given = pipe(RED, image=PHOTO, strength=np.float32(0.5))
    settings = record(given, tmp_path)["settings"]
    assert settings["strength"] == settings["t_start"] == 0.5, "the level it started from"


def test_the_sampler_that_drew_is_recorded(pipe, masked):
    assert pipe(RED).settings["renoise_choice"] == "random"
    chosen = pipe(RED, sampler="confidence").settings
    assert (chosen["sampler"], chosen["renoise_choice"]) == ("confidence", "confidence")
    assert "choice_temperature" in masked(RED).settings
    other = masked(RED, sampler="random").settings
    assert "choice_temperature" not in other and other["renoise_choice"] == "random"


def test_conditions_and_what_is_mixed_are_recorded(pipe, tmp_path):
    first, second = (
        record(pipe(Condition(RED, label=label, emphasis={"red": np.float32(2)})), tmp_path)
        for label in (np.int64(1), 2)
    )
    assert (first["label"], second["label"], first["emphasis"]) == (1, 2, {"red": 2.0})
    images = pipe([[RED, Condition(BLUE, label=3)]], weights=[0.75, 0.25])
    mixed = record(images, tmp_path)
    assert mixed["prompt"] == f"{RED} + {BLUE}" and mixed["weights"] == [0.75, 0.25]
    assert mixed["mixed"] == [{"prompt": RED}, {"prompt": BLUE, "label": 3}]
    embeds = pipe.embed([RED, BLUE])
    half = pipe(prompt_embeds=embeds[0].towards(embeds[1], 0.25))
    assert half.prompts == [f"{RED} (0.75) + {BLUE} (0.25)"]


def test_a_record_names_the_run(pipe, tmp_path):
    assert record(pipe(RED), tmp_path)["run"] == run_digest(pipe.parts())
    params, frozen = pipe.parts()[""][1]
    moved = dict(params) | {"predictor": {"moved": np.ones(3)}}
    before = pipe.run_name()
    try:
        pipe.set_params(moved, frozen)
        assert pipe.run_name() != before
    finally:
        pipe.set_params(params, frozen)
    assert pipe.run_name() == before


def test_a_strip_is_of_the_prompts_that_were_drawn(pipe):
    prompts = [RED, BLUE]
    images = pipe(prompts)
    prompts.append(RED)
    assert images.strip([-1]).size == (32, 64)


def test_warm_up_compiles_what_the_same_call_needs(pipe):
    options = {"sampler": "confidence", "num_inference_steps": 2, "batch_size": 2}
    pipe.warm_up(4, **options)
    before = pipe._advance.count
    pipe(RED, num_images_per_prompt=4, **options)
    assert pipe._advance.count == before
    pipe.warm_up(1, prompt_embeds=pipe.embed(RED))
    for wrong in ({"smapler": "random"}, {"num_inference_steps": "x"}, {"sampler": "none"}):
        with pytest.raises(ValueError, match=r"smapler|num_steps='x'|none"):
            pipe.warm_up(1, **wrong)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image": PHOTO, "t_start": 0.1}, "with an image give strength, not t_start"),
        ({"image": PHOTO, "mask": PHOTO[..., 0], "mask_image": PHOTO[..., 0]}, "are the same"),
        ({"negative_prompt": np.array(["a"])}, "negative_prompt is of type ndarray"),
        ({"prompt": Condition("", label=1.5)}, "label 1.5 must be a whole number"),
        ({"prompt": Condition("", label="3")}, "label '3' must be a whole number"),
        ({"prompt": Condition(RED, emphasis=["red"])}, "emphasis .* give a mapping"),
        ({"prompt": Condition(RED, images=Image.fromarray(PHOTO))}, "images .* give a list"),
        ({"prompt": Condition(RED, images="x.png")}, "images .* give a list"),
    ],
)
def test_wrong_arguments_are_one_clear_line(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(**({"prompt": RED} | options))


def test_a_seed_of_numpy_is_a_seed(pipe):
    assert pipe(RED, seed=np.array(5)).seeds == pipe(RED, seed=np.uint32(5)).seeds == [5]


def test_embeddings_are_picked_and_joined_with_care(pipe):
    embeds = pipe.embed([RED, BLUE])
    assert embeds[np.int64(1)].prompts == (BLUE,)
    with pytest.raises(ValueError, match="hold no prompts"):
        pipe(prompt_embeds=embeds[2:])
    other = paella_jax.PromptEmbeds((RED,), ("",), embeds[0].parts, {"": "another run"})
    with pytest.raises(ValueError, match="another encoder"):
        embeds.and_then(other)
    assert len(embeds.and_then(embeds[0])) == 3


def test_steps_and_columns_are_whole_numbers(pipe):
    images = pipe([RED, BLUE])
    assert images.strip(np.int64(2)).size == (64, 64)
    for wrong in ([1.5], "2", 1.5, True):
        with pytest.raises(ValueError, match=r"whole number|there is no step"):
            images.strip(wrong)
    for wrong in ("2", 1.5, 0):
        with pytest.raises(ValueError, match=r"columns .* must be a whole number of at least 1"):
            images.grid(wrong)


def test_coding_beside_a_call_compiles_nothing_new(pipe):
    """Encoding, decoding and strips go in the batches that drawing has."""
    images = pipe(RED, num_images_per_prompt=3)
    images.strip()
    pipe.encode(np.stack([PHOTO] * 3))
    before = pipe._decode.count, pipe._encode.count
    assert pipe(RED, num_images_per_prompt=4).strip([1]).size == (32, 128)
    tokens = pipe.encode(np.stack([PHOTO] * 4))
    assert pipe.decode(tokens[:3]).shape == (3, 32, 32, 3)
    assert (pipe._decode.count, pipe._encode.count) == before
    np.testing.assert_allclose(pipe.decode(tokens, batch_size=1), pipe.decode(tokens), atol=1e-6)
    np.testing.assert_array_equal(pipe.encode(np.stack([PHOTO])), tokens[:1])


def test_images_as_conditions_share_a_program(tmp_path):
    config = small.small_paella(
        sampler__num_steps=1, image_encoder__kind="joint", image_encoder__width=16,
        image_encoder__num_heads=2, image_encoder__projection=12,
    )  # fmt: skip
    pipe = paella_jax.load(small.untrained(tmp_path, config))
    first = pipe.embed_images(PHOTO[None])
    count = pipe._embed_images._cache_size()
    wide = np.random.default_rng(1).random((2, 40, 70, 3), np.float32)
    embedded = pipe.embed_images(wide)[:1]
    inside = pipe.networks.embed_images(pipe.params, pipe.frozen, wide[:1])
    np.testing.assert_allclose(embedded, inside, atol=1e-5)
    pipe.embed_images(wide[:1, :33])
    assert pipe._embed_images._cache_size() == count + 1, "of two images, whatever their size"
    with pytest.raises(ValueError, match="NaN"):
        pipe(Condition(RED, images=(np.full(12, np.nan, np.float32),)))
    assert first.shape == (1, 12)
