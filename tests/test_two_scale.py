"""Two scales: a base's small pictures enlarged, what an image depends on, editing, bad pairs."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import small
from PIL import Image

from paella_jax.families.tokens import load_networks
from paella_jax.pipelines import editing
from paella_jax.pipelines.geometry import touched
from paella_jax.pipelines.prompts import Condition
from paella_jax.pipelines.run_digests import run_digest
from paella_jax.pipelines.tokens import TokenPipeline
from paella_jax.pipelines.two_scale import TwoScalePipeline
from paella_jax.runs.weights import load_tree, save_tree
from paella_jax.sampling.token_loop import Known

pytestmark = pytest.mark.devices(8)
RED, BLUE = "a large red circle at the top left", "a large blue circle at the bottom right"
SIDE, CELL, LOW_CELL = 32, 4, 8  # pixels of the picture, of a token, of a small picture's token


def config_of(name, **changes):
    values = {
        "model__codebook_size": 32,
        "transformer__width": 32,
        "transformer__depth": 1,
        "transformer__num_heads": 2,
        "transformer__feed_forward_width": 32,
        "super_resolution__width": 32,
        "super_resolution__depth": 2,
        "super_resolution__low_depth": 1,
        "super_resolution__low_grid": 4,
        "super_resolution__num_heads": 2,
        "super_resolution__feed_forward_width": 32,
        "super_resolution__block_size": 2,
        "text__width": 32,
        "text__hidden_dim": 32,
        "text__num_layers": 1,
        "sampler__num_steps": 2,
        "sampler__guidance_scale": "(3.0,3.0)",
    }
    return small.config_of(f"muse:{name}", **(values | changes))


def pipeline(config, workdir, seed):
    """A run with random weights, large enough that every input has a say."""
    networks, frozen = load_networks(config, workdir)
    grid = config.data.image_size // networks.vqgan.downsampling
    shapes = jax.eval_shape(lambda key: networks.init(key, grid), jax.random.key(0))
    params = jax.tree.map(lambda x: 2.0 * x, small.random_values(shapes, seed))
    return TokenPipeline(networks, params, frozen, config)


def change_codebook(workdir):
    file = workdir / "frozen" / "vqgan.safetensors"
    variables = load_tree(file)
    params = dict(variables["params"])
    params["codebook"] = params["codebook"][::-1].copy()
    save_tree(file, dict(variables) | {"params": params})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """16x16 pixels, 4x4 tokens."""
    workdir = tmp_path_factory.mktemp("base")
    small.carry_random_tokenizer(workdir)
    return pipeline(config_of("tiny", data__image_size=16), workdir, 0)


@pytest.fixture(scope="module")
def enlarger(tmp_path_factory):
    """32x32 pixels, 8x8 tokens of another tokenizer; the base's is its low one."""
    workdir = tmp_path_factory.mktemp("super_resolution")
    small.carry_random_tokenizer(workdir)
    change_codebook(workdir)
    small.carry_random_tokenizer(workdir / "frozen" / "low")
    config = config_of("super_resolution_tiny", data__image_size=SIDE, low_tokenizer="base")
    return pipeline(config, workdir, 5)


@pytest.fixture(scope="module")
def pipe(base, enlarger):
    return TwoScalePipeline(base, enlarger)


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).random((SIDE, SIDE, 3)).astype(np.float32)


def test_call_returns_large_pictures(pipe):
    assert pipe.side == SIDE
    images = pipe(RED, seed=1)
    assert len(images) == 1 and isinstance(images[0], Image.Image)
    assert images[0].size == (SIDE, SIDE)
    seen = []
    note = lambda step, total, images: seen.append((step, total, [x.size for x in images]))
    arrays = pipe([RED, BLUE], output_type="array", callback=note, super_resolution_steps=3)
    assert arrays.shape == (2, SIDE, SIDE, 3) and arrays.dtype == np.float32
    assert seen == [(n, 5, [(16, 16)] * 2) for n in (1, 2)] + [
        (n, 5, [(SIDE, SIDE)] * 2) for n in (3, 4, 5)
    ]


def test_the_call_takes_images_and_embeddings_and_stops(pipe, picture):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:, :8] = True
    drawn = pipe(RED, image=picture, mask=mask, output_type="np")
    np.testing.assert_array_equal(drawn[0][~mask], picture[~mask])
    assert (drawn[0][mask] != picture[mask]).any()
    started = pipe([RED, BLUE], image=picture[:20], strength=0.5, num_steps=4, seed=2)
    plain = pipe([RED, BLUE], num_steps=4, seed=2)
    assert (started.generation.low.tokens != plain.generation.low.tokens).any()
    same = pipe(prompt_embeds=pipe.embed([RED, BLUE]), num_steps=4, seed=2)
    np.testing.assert_array_equal(same.generation.tokens, plain.generation.tokens)
    seen = []
    stopped = pipe(RED, callback=lambda step, total, images: seen.append(images) or False)
    assert stopped.stopped and len(seen) == 1 and stopped[0].size == (SIDE, SIDE)
    small_one = np.asarray(seen[0][0]).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(np.asarray(stopped[0]), small_one)
    strip = np.asarray(plain.strip([1, -1]))
    np.testing.assert_array_equal(strip[:SIDE, SIDE:], np.asarray(plain[0]))
    assert pipe.defaults["height"] == SIDE and pipe.defaults["super_resolution_steps"] > 0
    assert f"{SIDE}x{SIDE} pixels" in repr(pipe)


def test_a_record_has_the_settings_of_both_scales(pipe, base, tmp_path):
    images = pipe(RED, num_steps=np.int64(3), super_resolution_guidance=[9.0, 1.0])
    settings, used = images.settings, pipe.defaults
    assert settings["num_steps"] == 3 and settings["super_resolution_steps"] == 2
    assert settings["super_resolution_guidance"] == (9.0, 1.0)
    assert settings["guidance_scale"] == used["guidance_scale"] == (3.0, 3.0)
    assert (settings["height"], used["height"]) == (SIDE, SIDE)
    assert images.records()[0]["run"] == run_digest(pipe.parts()) != base.run_name()
    images.save(tmp_path)


def test_the_small_picture_is_the_base_s_own(pipe, base):
    result = pipe.generate(RED, seed=3, num_images_per_prompt=2, num_steps=3)
    alone = base.generate(RED, seed=3, num_images_per_prompt=2, num_steps=3)
    np.testing.assert_array_equal(result.low.tokens, alone.tokens)
    assert result.tokens.shape == (2, 8, 8) and result.low.tokens.shape == (2, 4, 4)


def test_image_depends_on_prompt_seed_and_number_only(pipe):
    draw = lambda *args, **kwargs: pipe.generate(*args, **kwargs).tokens
    alone = draw(RED, seed=7, num_images_per_prompt=2)
    together = draw([BLUE, RED], seed=[3, 7], num_images_per_prompt=2)
    np.testing.assert_array_equal(alone, together[2:])
    cut = draw([BLUE, RED], seed=[3, 7], num_images_per_prompt=2, batch_size=1)
    np.testing.assert_array_equal(together, cut)
    assert (alone[0] != alone[1]).any()
    assert (draw(RED, seed=8) != alone[:1]).any()


def test_copies_do_not_share_the_second_scale_s_noise(pipe, base, enlarger):
    """With equal small pictures a prompt's images must still differ."""
    low = base.generate(RED, seed=7).tokens
    one = np.zeros((1, 4, 4), bool)
    one[0, 0, 0] = True  # a single token is drawn
    result = pipe.generate(RED, seed=7, num_images_per_prompt=2, known=Known(low, one))
    np.testing.assert_array_equal(result.low.tokens[:, 1:], low[:, 1:].repeat(2, 0))
    assert (result.tokens[0] != result.tokens[1]).mean() > 0.3
    own = enlarger.generate([RED], low_tokens=result.low.tokens[:1], seed=7)
    assert (own.tokens != result.tokens[:1]).any()


def test_small_picture_and_settings_of_both_scales_count(pipe, enlarger):
    result = pipe.generate(RED, seed=0, num_images_per_prompt=8)
    same_low = {
        "super_resolution_steps": 4,
        "super_resolution_guidance": 9.0,
        "super_resolution_temperature": (3.0, 3.0),
    }
    for name, value in same_low.items():
        other = pipe.generate(RED, seed=0, num_images_per_prompt=8, **{name: value})
        np.testing.assert_array_equal(other.low.tokens, result.low.tokens)
        assert (other.tokens != result.tokens).any(), name
    for change in ({"num_steps": 3}, {"guidance_scale": 9.0}, {"temperature": (3.0, 3.0)}):
        other = pipe.generate(RED, seed=0, num_images_per_prompt=8, **change)
        assert (other.low.tokens != result.low.tokens).any(), change
    maps = [np.full((1, 4, 4), n) for n in (0, 17)]
    enlarged = [enlarger.generate([RED], low_tokens=m, seed=0).tokens for m in maps]
    assert (enlarged[0] != enlarged[1]).any()


@pytest.mark.slow
def test_mixing(pipe):
    """All the weight on one condition is that condition, in both scales; so is a map of ones."""
    single = pipe.generate(RED, seed=4)
    regions = np.zeros((1, 2, 4, 4), np.float32)
    regions[:, 0] = 1.0
    for weights in ([1.0, 0.0], [[1.0, 0.0]], regions):
        mixed = pipe.generate([[RED, BLUE]], weights=weights, seed=4)
        np.testing.assert_array_equal(mixed.low.tokens, single.low.tokens)
        np.testing.assert_array_equal(mixed.tokens, single.tokens)


def test_regions_are_enlarged(pipe):
    regions = np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4)
    large = pipe._enlarge(regions, 2)
    assert large.shape == (2, 2, 8, 8)
    np.testing.assert_array_equal(large[1, :, ::2, 1::2], regions[0])
    np.testing.assert_array_equal(large[1, :, 1::2, ::2], regions[0])


def test_low_tokens_are_those_of_the_training(pipe, base, picture):
    """The base's tokens of the picture halved as `TokenNetworks.encode_low` does in training."""
    half = jax.image.resize(picture[None], (1, 16, 16, 3), "linear", antialias=True)
    np.testing.assert_array_equal(pipe.encode_low(picture[None]), base.encode(np.asarray(half)))


def test_inpainting_keeps_the_rest_at_both_scales(pipe, picture):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[5:18, 9:20] = True  # tokens 1-4 x 2-4; small tokens 0-2 x 1-2
    low, high = pipe.encode_low(picture[None])[0], pipe.super_resolution.encode(picture[None])[0]
    low_drawn, high_drawn = np.zeros((4, 4), bool), np.zeros((8, 8), bool)
    low_drawn[0:3, 1:3] = high_drawn[1:5, 2:5] = True
    result = editing.inpaint(pipe, picture, mask, RED, num_images_per_prompt=2)
    for tokens, kept, drawn in (
        (result.low.tokens, low, low_drawn),
        (result.tokens, high, high_drawn),
    ):
        assert len(tokens) == 2
        for image in tokens:
            np.testing.assert_array_equal(image[~drawn], kept[~drawn])
            assert (image[drawn] != kept[drawn]).any()


def test_outpainting_keeps_the_image(pipe, picture):
    part = picture[:24, :16]
    result = editing.outpaint(pipe, part, RED, top=8, left=8, right=8)
    assert result.images.shape == (1, SIDE, SIDE, 3)
    canvas = np.pad(part, ((8, 0), (8, 8), (0, 0)), mode="edge")[None]
    kept = pipe.super_resolution.encode(canvas)
    np.testing.assert_array_equal(result.tokens[:, 2:, 2:6], kept[:, 2:, 2:6])
    low = pipe.encode_low(canvas)
    np.testing.assert_array_equal(result.low.tokens[:, 1:, 1:3], low[:, 1:, 1:3])
    assert (result.tokens != kept).any()


def test_touched_tokens():
    mask = np.zeros((6, 6), bool)
    mask[2, 5] = True
    expected = np.zeros((3, 3), bool)
    expected[1, 2] = True
    np.testing.assert_array_equal(touched(mask, (3, 3)), expected)
    # Tokens of 1.5 pixels: the pixel row 2 is in the second alone, 1 in the first and second.
    mask = np.zeros((6, 6), bool)
    mask[1, 0] = True
    expected = np.zeros((4, 4), bool)
    expected[:2, 0] = True
    np.testing.assert_array_equal(touched(mask, (4, 4)), expected)


def test_bad_inputs(pipe, picture):
    empty, some = np.zeros((SIDE, SIDE), bool), np.eye(SIDE, dtype=bool)
    cells = empty.copy()
    cells[::LOW_CELL, ::LOW_CELL] = True
    inpaint, outpaint = editing.inpaint, editing.outpaint
    cases = [
        (lambda: pipe(RED, output_type="tensor"), "output_type must be"),
        (lambda: pipe.generate(RED, height=16), "height is 16; these runs draw 32x32"),
        (lambda: pipe.generate(""), "prompt 0 is empty"),
        (lambda: pipe.generate([Condition(images=(picture,))]), "prompt 0 is empty"),
        (lambda: pipe.generate([RED, BLUE], seed=[1, 2, 3]), "3 values of seed for 2 prompts"),
        (lambda: pipe.generate(RED, seed=-1), "must be a whole number"),
        (lambda: pipe.generate(RED, num_images_per_prompt=0), "must be at least 1"),
        (lambda: pipe.generate(RED, super_resolution_steps=0), "num_steps=0"),
        (lambda: inpaint(pipe, picture, some[:16], RED), "make them equal"),
        (lambda: inpaint(pipe, picture, empty, RED), "marks nothing"),
        (lambda: inpaint(pipe, picture, ~empty, RED), "touches every cell of 8x8"),
        (lambda: inpaint(pipe, picture, cells, RED), "touches every cell of 8x8"),
        (lambda: inpaint(pipe, picture[:16], some[:16], RED), "crop it to 32x32"),
        (lambda: outpaint(pipe, picture, RED), "at least one of"),
        (lambda: outpaint(pipe, picture, RED, left=-4), "left is -4"),
        (lambda: outpaint(pipe, picture, RED, left=8), "make 32x40; these runs draw 32x32"),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words):
            call()


def test_runs_that_do_not_belong_together(base, enlarger, tmp_path):
    with pytest.raises(ValueError, match=r"cell\.network=transformer, which enlarges nothing"):
        TwoScalePipeline(base, base)
    with pytest.raises(ValueError, match="a super-resolution itself"):
        TwoScalePipeline(enlarger, enlarger)
    small.carry_random_tokenizer(tmp_path)
    large = pipeline(config_of("tiny", data__image_size=SIDE), tmp_path, 0)
    with pytest.raises(ValueError, match="base draws 8x8 tokens, the super-resolution enlarges"):
        TwoScalePipeline(large, enlarger)
    change_codebook(tmp_path)
    other = pipeline(config_of("tiny", data__image_size=16), tmp_path, 0)
    with pytest.raises(ValueError, match="is not the one whose tokens"):
        TwoScalePipeline(other, enlarger)
