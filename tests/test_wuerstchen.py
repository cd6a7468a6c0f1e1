"""Würstchen's stages end to end at a tiny size: training, the pipeline, what does not fit."""

from __future__ import annotations

import shutil
from dataclasses import replace

import held_narrow
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from PIL import Image
from small_judges import shrinking_judges

import paella_jax
from paella_jax.config import ConfigError
from paella_jax.data.sources import ShapesSource
from paella_jax.encoders.byte_tokenizer import PromptError
from paella_jax.families import abstract
from paella_jax.families.direct_decoder import load_direct_decoder
from paella_jax.families.stage_b import StageBNetworks, load_stage_b
from paella_jax.families.text_side import TextSide
from paella_jax.models.compressor import Compressor
from paella_jax.models.stage_b import StageB
from paella_jax.models.vqgan import VQGAN
from paella_jax.noise.gaussian import (
    MOST_CLEAN_WEIGHT,
    CosineSchedule,
    clean_from_noise,
    loss_weight,
)
from paella_jax.noise.tokens import sample_keys
from paella_jax.objectives.noise_prediction import noise_prediction_loss
from paella_jax.objectives.wuerstchen import disturb_guide, drop_text
from paella_jax.pipelines.wuerstchen_programs import spread_steps
from paella_jax.registry import build_method
from paella_jax.reports.run_scores import score_run
from paella_jax.reports.scored_run import Asked
from paella_jax.reports.stages import compare_decoders, show_decoders
from paella_jax.runs.checkpoint import CheckpointError
from paella_jax.runs.digests import noting
from paella_jax.runs.folder import prepare_workdir, read_metrics
from paella_jax.runs.frozen import compressor_variables
from paella_jax.runs.weights import save_tree
from paella_jax.training.loop import train

pytestmark = pytest.mark.devices(8)
RED, BLUE = "a large red circle at the top left", "a large blue circle at the top right"


def run(workdir, config, *, tokenizer=True):
    prepare_workdir(workdir, config)
    if tokenizer:
        small.carry_random_tokenizer(workdir)
    with small.devices_shown():
        train(config, workdir, build_method(config, workdir))
    return workdir


def small_stage_b(**overrides):
    values = {
        "batch_size": 8, "num_steps": 12, "model__widths": "(16,)", "model__depths": "(1,)",
        "model__cond_width": 16, "optim__warmup_steps": 1, "log__every": 1,
        "compressor__head_channels": 16, "sampler__num_steps": 2, "log__preview_images": 2,
        "log__validation_images": 8,
        "optim__learning_rate": 0.005, "compressor__stages":
        "(('fused',1,3,1,8,8,1),('fused',2,3,2,8,8,1),('mb',2,3,2,8,16,1))",
    } | overrides  # fmt: skip
    return small.config_of("stage_b:tiny", **values)


def small_stage_c(stage_b, **overrides):
    values = {
        "batch_size": 8, "num_steps": 12, "model__width": 32, "model__depth": 1,
        "stage_b": stage_b, "text__width": 32, "text__hidden_dim": 32, "text__num_layers": 1,
        "optim__warmup_steps": 1, "log__every": 1, "sampler__segments": "(2,1)",
        "optim__learning_rate": 0.005, "log__preview_images": 2, "log__validation_images": 8,
    } | overrides  # fmt: skip
    return small.config_of("stage_c:tiny", **values)


@pytest.fixture(scope="module")
def stage_b(tmp_path_factory):
    return run(tmp_path_factory.mktemp("b"), small_stage_b())


@pytest.fixture(scope="module")
def stage_c(stage_b, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("c")
    return run(workdir, small_stage_c(stage_b), tokenizer=False)


@pytest.fixture(scope="module")
def pipe(stage_c):
    return paella_jax.load(stage_c)


@pytest.fixture(scope="module")
def picture():
    return ShapesSource("tiny")[3]["image"].astype(np.float32) / 255.0


def losses(workdir):
    return [row["loss"] for row in read_metrics(workdir / "metrics.jsonl") if "loss" in row]


def held_back(workdir):
    (value,) = [row["validation_loss"] for row in read_metrics(workdir / "metrics.jsonl")
                if "validation_loss" in row]  # fmt: skip
    return value


@pytest.mark.parametrize("stage", ["stage_b", "stage_c"])
def test_loss_falls_and_a_grid_is_drawn(stage, request):
    workdir = request.getfixturevalue(stage)
    values = losses(workdir)
    assert np.mean(values[-4:]) < 0.9 * np.mean(values[:3])
    assert list((workdir / "samples").glob("*.png"))
    assert np.isfinite(held_back(workdir))  # by averaged weights, which lag behind


@pytest.mark.slow
def test_images_without_captions_are_previewed(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(30):
        Image.new("RGB", (32, 32), (8 * number, 0, 0)).save(images / f"{number}.png")
    data = {"data__source": "folder", "data__folder": images, "data__captions": False}
    workdir = run(tmp_path / "b", small_stage_b(num_steps=1, text__kind="none", **data))
    (row,) = [row for row in read_metrics(workdir / "metrics.jsonl") if "validation_mse" in row]
    assert "validation_loss" in row and list((workdir / "samples").glob("*.png"))


def test_a_joint_compressor_is_only_looked_at_without_a_key(stage_b, picture):
    _, networks, params, frozen = load_stage_b(stage_b)
    variables = compressor_variables(stage_b)
    params = {**params, "compressor": variables["params"]}
    state = {"compressor": variables["batch_stats"]}
    joint = replace(networks, joint_compressor=True)
    images = np.stack([picture, picture[::-1]])
    guide, after = joint.compress_in_training(params, frozen, state, images, None)
    assert after is state
    np.testing.assert_array_equal(guide, networks.compress(variables, images))
    trained, updated = joint.compress_in_training(params, frozen, state, images, jax.random.key(0))
    assert np.abs(trained - guide).max() > 0 and updated is not state


def test_guides_are_float32_whatever_the_precision(picture):
    """As published: what the compressor gives is what Stage C learns."""
    variables, guides = None, []
    for precision in ("float32", "bfloat16"):
        config = small_stage_b(precision=precision)
        networks, _ = abstract.stage_b_networks(config)
        if variables is None:
            image = jnp.zeros((1, 32, 32, 3))
            variables = small.random_variables(networks.compressor, image)
        guides.append(networks.compress(variables, picture[None]))
    assert guides[1].dtype == jnp.float32
    np.testing.assert_array_equal(guides[0], guides[1])


def test_a_stage_c_run_is_complete(stage_c, pipe):
    """It holds all stages: nothing is read from the runs it came from."""
    names = {file.name for file in (stage_c / "frozen").iterdir()}
    assert {"stage_b.json", "stage_b.safetensors", "vqgan.json", "compressor.safetensors"} <= names
    result = pipe.generate([RED, BLUE], seed=[1, 2], trace=True)
    assert result.images.shape == (2, 32, 32, 3) and result.latents_b.shape == (2, 8, 8, 4)
    assert result.latents_c.shape == (2, 4, 4, 4) and result.trace.shape == (3, 2, 4, 4, 4)
    np.testing.assert_array_equal(result.trace[-1], result.latents_c)
    assert result.images.min() >= 0 and result.images.max() <= 1


def test_an_image_depends_on_its_own_prompt_and_seed(pipe):
    both = pipe.generate([RED, BLUE], seed=[1, 2]).images
    alone = pipe.generate([BLUE], seed=2).images
    np.testing.assert_allclose(both[1], alone[0], atol=2e-4)
    other = pipe.generate([RED], seed=2).images
    assert np.abs(other[0] - alone[0]).max() > 5e-4  # random weights read the text but faintly
    split = pipe.generate([RED, BLUE], seed=[1, 2], batch_size=1).images
    np.testing.assert_allclose(both, split, atol=2e-4)


def test_stages_apart_equal_the_whole(pipe):
    whole = pipe.generate([RED], seed=5)
    again = pipe.decode(whole.latents_c, prompt=RED, seed=5)
    np.testing.assert_allclose(whole.images, again, atol=2e-4)


def test_copies_are_redrawn_from_their_latents(pipe):
    whole = pipe.generate([RED], seed=5, num_images_per_prompt=2)
    again = pipe.decode(whole.latents_c, prompt=RED, seed=5, number=[0, 1])
    np.testing.assert_allclose(whole.images, again, atol=2e-4)
    assert np.abs(pipe.decode(whole.latents_c, prompt=RED, seed=5)[1] - again[1]).max() > 1e-4


def test_the_command_line(pipe, picture, tmp_path, monkeypatch):
    file = tmp_path / "picture.png"
    Image.fromarray((picture * 255).round().astype(np.uint8)).save(file)

    def draw(*flags):
        return small.sample_by_flags(monkeypatch, pipe, *flags)

    result, titles = draw("--prompt", RED, "--num_images_per_prompt", "2", "--stepper", "ddim")
    assert result.images.shape == (2, 32, 32, 3) and titles == [RED, RED]
    assert draw("--image", str(file))[0].images.shape == (1, 32, 32, 3)
    over = draw("--image", str(file), "--prompt", RED, "--strength", "0.5")[0]
    assert over.images.shape == (1, 32, 32, 3)
    with pytest.raises(ValueError, match="strength must be in"):
        draw("--image", str(file), "--prompt", RED, "--strength", "0")
    with pytest.raises(ValueError, match="--label is of token predictors"):
        draw("--prompt", RED, "--label", "0")


def test_offloaded_stages_draw_the_same(stage_c, pipe):
    offloaded = paella_jax.load(stage_c, offload=True)
    expected = pipe.generate([RED], seed=5).images
    np.testing.assert_array_equal(offloaded.generate([RED], seed=5).images, expected)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(offloaded._weights))


def test_image_to_image_and_reconstruction(pipe, picture):
    drawn = pipe.generate([RED], image=picture, strength=0.5)
    assert drawn.images.shape == (1, 32, 32, 3)
    near = pipe.generate([RED], image=picture, strength=0.005).latents_c
    far = pipe.generate([RED], image=picture, strength=1.0).latents_c
    own = pipe.encode(picture[None])
    assert np.abs(near - own).mean() < 0.5 * np.abs(far - own).mean()
    assert pipe.reconstruct(picture[None]).images.shape == (1, 32, 32, 3)


def test_a_shared_folder_has_all_stages(stage_b, pipe, picture, tmp_path):
    """Stage C's with Stage B, its compressor and Stage A; Stage B's with what trained along."""
    again = paella_jax.load(pipe.save(tmp_path / "c"))
    ours, theirs = (p.generate([RED], seed=4) for p in (pipe, again))
    np.testing.assert_array_equal(ours.images, theirs.images)
    np.testing.assert_array_equal(pipe.encode(picture[None]), again.encode(picture[None]))
    alone = paella_jax.load(stage_b)
    rebuilt = [p.reconstruct(picture[None]).images
               for p in (alone, paella_jax.load(alone.save(tmp_path / "b")))]  # fmt: skip
    np.testing.assert_array_equal(*rebuilt)
    assert str(stage_b) not in (tmp_path / "c" / "frozen" / "stage_b.json").read_text()


def test_other_sizes_steppers_and_guidance(pipe):
    wide = pipe.generate([RED], width=64, num_steps=2, stepper="dpm++", guidance_scale=(1.0, 2.0))
    assert wide.images.shape == (1, 32, 64, 3)
    plain = pipe.generate([RED], guidance_scale=1.0).images
    assert np.abs(plain - pipe.generate([RED], guidance_scale=6.0).images).max() > 1e-4
    guided_b = pipe.generate([RED], stage_b_guidance_scale=3.0, stage_b_num_steps=3)
    assert guided_b.images.shape == (1, 32, 32, 3)
    steps = []
    images = pipe(RED, callback=lambda step, total, seen: steps.append((step, total, len(seen))))
    assert steps == [(n, 5, 1) for n in range(1, 6)] and images[0].size == (32, 32)


def test_the_call_takes_masks_and_embeddings_and_stops(pipe, picture):
    mask = np.zeros((32, 32), bool)
    mask[:, :8] = True
    drawn = pipe(RED, image=picture, mask=mask, output_type="np", seed=1)
    np.testing.assert_array_equal(drawn[0][~mask], picture[~mask])
    some, own = np.eye(4, dtype=bool), pipe.encode(picture[None])[0]
    started = {"image": picture, "strength": 1.0, "generate": np.eye(4, dtype=np.float32)}
    kept = pipe.generate([RED], seed=1, **started).latents_c[0]
    np.testing.assert_array_equal(kept[~some], own[~some])
    assert (kept[some] != own[some]).any()
    embeds = pipe.embed([RED])
    params, frozen = pipe.parts()[""][1]
    moved = jax.tree.map(lambda x: x + 0.5, params["text_encoder"])
    pipe.set_weights("stage_c", (params | {"text_encoder": moved}, frozen))
    with pytest.raises(ValueError, match="another run's text encoders"):
        pipe(prompt_embeds=embeds)
    pipe.set_weights("stage_c", (params, frozen))
    same = pipe(prompt_embeds=embeds, seed=3, output_type="latents")
    np.testing.assert_array_equal(same, pipe(RED, seed=3, output_type="latents"))
    for last in (2, 4):  # in Stage C and in Stage B
        seen = []
        look = lambda step, total, images, last=last, seen=seen: seen.append(images) or step < last
        stopped = pipe(RED, seed=3, callback=look)
        assert stopped.stopped and len(seen) == last
        np.testing.assert_array_equal(np.asarray(stopped[0]), np.asarray(seen[-1][0]))
    whole = pipe(RED, seed=3, negative_prompt="a cat", stage_b_num_steps=3)
    strip = np.asarray(whole.strip())
    assert strip.shape == (32, 96, 3)
    np.testing.assert_allclose(strip[:, 64:].astype(int), np.asarray(whole[0]).astype(int), atol=1)
    with pytest.raises(ValueError, match="latents, not tokens"):
        pipe(RED, output_type="tokens")
    assert pipe.warm_up() > 0 and "32x32 pixels" in repr(pipe)


def test_what_the_pipeline_refuses(pipe, stage_b, picture):
    for options, words in (
        ({"height": 37}, "height 37 must be a positive multiple of 8; use 40"),
        ({"temperature": 1.0}, "no temperature"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"stepper": "euler"}, "stepper"),
        ({"image": picture, "strength": 0.0}, "strength"),
        ({"image": picture[:, :, 0]}, "give \\[height, width, 3\\]"),
        ({"image": picture * 2.0}, "values from"),
        ({"guidance_scale": [1.0, 2.0, 3.0]}, "one number or a pair"),
        ({"stage_b_seed": 1}, "there is no option 'stage_b_seed'"),
        ({"image": picture, "width": 64}, "the size asked for"),
        ({"seed": [1, 2, 3]}, "3 values of seed for 1 prompts"),
        ({"stage_b_num_steps": 0}, "num_steps"),
    ):
        with pytest.raises(ValueError, match=words):
            pipe.generate([RED], **options)
    with pytest.raises(PromptError):
        pipe.generate([])
    long = f"{RED} and {BLUE} " * 4
    for draw in (pipe.generate, lambda texts: pipe.generate([RED], negative_prompt=texts),
                 pipe.text_lengths):  # fmt: skip
        with pytest.raises(PromptError, match=r"words and marks.*\(Stage C's text encoder\)"):
            draw([long])
    assert pipe.text_lengths([pipe.cut_text(long)]) == ()
    with pytest.raises(ValueError, match="latents have shape"):
        pipe.decode(np.zeros((1, 4, 4, 7)))
    with pytest.raises(ValueError, match="latents hold NaN or infinity"):
        pipe.decode(np.full((1, 4, 4, pipe.stage_b.stage_b.guide_channels), np.nan))
    only_b = paella_jax.load(stage_b)
    assert only_b.reconstruct(picture[None]).images.shape == (1, 32, 32, 3)
    with pytest.raises(ValueError, match="holds a Stage B run"):
        only_b.generate([RED])


def test_stages_that_do_not_belong_together(stage_b, tmp_path):
    for config, words in (
        (small_stage_c(stage_b, model__channels=8), "do not belong together"),
        (small_stage_c(""), "give --config.stage_b"),
        (small_stage_c(stage_b, text__kind="none"), "Stage C draws from a text"),
        (small_stage_c(stage_b, text__kind="clip"), "needs --config.text.folder"),
        (small_stage_b(model__latent_channels=8), "differs from Stage A's"),
        (small_stage_b(compressor__train="False"), "needs --config.compressor.run"),
    ):
        workdir = prepare_workdir(tmp_path / str(abs(hash(words))), config)
        if config.method == "stage_b":
            small.carry_random_tokenizer(workdir)
        with pytest.raises(ConfigError, match=words):
            build_method(config, workdir)
    workdir = prepare_workdir(tmp_path / "vqgan", small.small_vqgan())
    with pytest.raises(CheckpointError, match="not of stage_b"):
        config = small_stage_c(workdir)
        build_method(config, prepare_workdir(tmp_path / "last", config))


def test_a_frozen_compressor_stays_as_it_was(stage_b, tmp_path):
    config = small_stage_b(compressor__train="False", compressor__run=stage_b, num_steps=2)
    workdir = run(tmp_path, config)
    first, second = paella_jax.load(stage_b), paella_jax.load(workdir)
    same = lambda a, b: np.testing.assert_array_equal(a, b)
    jax.tree.map(same, first._weights["compressor"], second._weights["compressor"])


@pytest.mark.slow
def test_both_stages_are_scored_on_held_back_images(stage_b, stage_c, tmp_path):
    for folder, words in ((stage_c, "encoded and decoded"), (stage_b, "PSNR dB")):
        asked = Asked(folder, tmp_path / folder.name, num_images=20, training_images=20)
        page = score_run(asked, shrinking_judges())
        assert words in page and "| FID |" in page and "20 of the training" in page
        assert (asked.out / "scores.png").is_file()
    assert "| steps | guidance |" in (tmp_path / stage_c.name / "scores.md").read_text()


def test_the_direct_decoder(stage_b, stage_c, tmp_path):
    """It learns to decode the compressor's latents, and both decoders are scored."""
    config = small.config_of(
        "direct_decoder:tiny", stage_b=stage_b, num_steps=40, batch_size=8, log__every=1,
        model__width=16, optim__warmup_steps=1, optim__learning_rate=0.005,
        log__validation_images=8,
    )  # fmt: skip
    workdir = run(tmp_path / "direct", config, tokenizer=False)
    values = losses(workdir)
    assert np.mean(values[-5:]) < 0.5 * np.mean(values[:3])
    assert held_back(workdir) < 0.5 * np.mean(values[:3])
    decode = load_direct_decoder(workdir)
    assert decode(np.zeros((2, 4, 8, 4), np.float32)).shape == (2, 32, 64, 3)
    rows = compare_decoders(stage_c, workdir, tmp_path / "out", num_images=16)
    assert len(rows) == 4 and "decoded directly" in show_decoders(rows)
    assert (tmp_path / "out" / "stages.png").is_file()
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(workdir, elsewhere)
    other = jax.tree.map(lambda x: x + 1.0, compressor_variables(stage_b))
    with noting(elsewhere, "frozen/compressor.safetensors") as file:
        save_tree(file, other)
    with pytest.raises(ConfigError, match="another Stage B's compressor"):
        compare_decoders(stage_c, elsewhere, tmp_path / "out", num_images=8)
    with pytest.raises(CheckpointError, match="not of a direct_decoder"):
        load_direct_decoder(stage_b)
    with pytest.raises(ConfigError, match="needs a compressor"):
        config = small.config_of("direct_decoder:tiny")
        build_method(config, prepare_workdir(tmp_path / "none", config))


# --- the parts of the objectives

KEYS = sample_keys(jax.random.key(0), jnp.arange(4000))


def test_text_is_dropped_per_sample_at_its_rate():
    ids, mask = jnp.full((4000, 5), 9), jnp.ones((4000, 5), bool)
    empty = (np.array([1, 0, 0, 0, 0]), np.arange(5) < 1)
    new, new_mask = drop_text(KEYS, ids, mask, empty, 0.05)
    gone = np.asarray((new == empty[0][None]).all(1))
    assert abs(gone.mean() - 0.05) < 0.014
    np.testing.assert_array_equal(np.asarray(new_mask.sum(1)), np.where(gone, 1, 5))


def test_the_guide_is_zeroed_and_noised_at_its_rates():
    settings = small.config_of("stage_b:v2").objective
    guide = jnp.ones((4000, 2, 2, 3))
    out = np.asarray(jax.jit(lambda: disturb_guide(KEYS, guide, CosineSchedule(), settings))())
    zero = (out == 0).all((1, 2, 3))
    untouched = (out == 1).all((1, 2, 3))
    assert abs(zero.mean() - 0.05) < 0.014
    assert abs(untouched.mean() - 0.95 * 0.7) < 0.03
    noised = out[~zero & ~untouched]
    # t' ~ U(0, 0.5): the mean of sqrt(alpha_bar) over these levels, and noise around it.
    levels = np.linspace(0, 0.5, 2001)
    expected = np.sqrt(np.asarray(CosineSchedule().alpha_bar(jnp.asarray(levels)))).mean()
    assert abs(noised.mean() - expected) < 0.02 and noised.std() > 0.2


def test_the_weight_of_clean_values_makes_noise_errors_theirs():
    draw = lambda seed: jax.random.normal(jax.random.key(seed), (5, 7))
    noised, wrong, right = draw(0), draw(1), draw(2)
    alpha_bar = jnp.asarray([0.06, 0.2, 0.5, 0.9, 0.99])
    clean = lambda noise: clean_from_noise(noised, noise, alpha_bar)
    expected = jnp.square(clean(wrong) - clean(right)).mean(1)
    weighted = loss_weight("clean", alpha_bar) * jnp.square(wrong - right).mean(1)
    np.testing.assert_allclose(weighted, expected, rtol=1e-4)
    assert loss_weight("clean", jnp.asarray(1e-4)) == MOST_CLEAN_WEIGHT < 1e4


def test_loss_weights_and_noise_levels():
    alpha_bar = jnp.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(loss_weight("p2", alpha_bar), 1 - alpha_bar, rtol=1e-5)
    paper = (1 - alpha_bar) / (1 + alpha_bar)
    np.testing.assert_allclose(loss_weight("p2_paper", alpha_bar), paper, rtol=1e-6)
    with pytest.raises(ValueError, match="loss_weight"):
        loss_weight("p3", alpha_bar)
    settings, clean = small.config_of("stage_c:v2").objective, jnp.zeros((4000, 2))
    perfect = lambda x, t: x / jnp.sqrt(1 - CosineSchedule().alpha_bar(t))[:, None]
    loss, metrics = noise_prediction_loss(perfect, clean, KEYS, CosineSchedule(), settings)
    assert loss < 1e-6 and metrics["noise_mse"] < 1e-6
    nothing = lambda x, t: jnp.zeros_like(x)
    loss, metrics = noise_prediction_loss(nothing, clean, KEYS, CosineSchedule(), settings)
    assert abs(metrics["noise_mse"] - 1) < 0.06
    assert abs(loss - 0.55) < 0.06  # the mean of 1 - alpha_bar over the stretched levels


def test_steps_are_spread_over_the_ranges():
    assert spread_steps(30, (20, 10)) == (20, 10)
    assert spread_steps(12, (20, 10)) == (8, 4)
    assert spread_steps(2, (20, 10)) == (1, 1)
    assert spread_steps(1, (20, 10)) == (1,)


def test_sizes_of_the_released_stages():
    """docs/models/wuerstchen.md 5.5: multiples of 128, 24 latents for 1024 pixels."""
    networks = StageBNetworks(
        StageB(),
        Compressor(),
        VQGAN(),
        TextSide(None, None, 0),
        CosineSchedule(),
        0.75,
        1.0,
        42.0,
        False,
    )
    assert networks.size_divisor == 128
    assert [networks.guide_side(p) for p in (512, 768, 1024, 1152, 1536)] == [12, 18, 24, 27, 36]
    assert networks.latent_side(1024) == 256


def test_weights_held_in_the_types_they_are_used_in_draw_the_same(stage_c, monkeypatch):
    whole, narrowed = held_narrow.both(stage_c, monkeypatch)
    held_narrow.check_same(whole, narrowed, narrowed._weights["stage_c"][0])
