"""The CLIP prior: sizes, sampler formula, training on a known mapping, broken inputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from safetensors.numpy import save_file

from paella_jax.config import ConfigError, to_json
from paella_jax.convert.paella import CLIP_PRIOR, infer_clip_prior
from paella_jax.data.embeddings import EmbeddingSource
from paella_jax.families.clip_prior import (
    ClipPriorSampler,
    clip_prior_method,
    load_clip_prior,
    make_clip_prior,
    mean_cosine,
)
from paella_jax.models.clip_prior import ClipPrior
from paella_jax.noise.gaussian import CosineSchedule, diffuse, gaussian_noise, p2_weight
from paella_jax.noise.tokens import sample_keys
from paella_jax.objectives.inputs import StepInputs
from paella_jax.objectives.noise_prediction import clip_prior_objective, drop_embeddings
from paella_jax.registry import build_method
from paella_jax.runs.checkpoint import CheckpointError
from paella_jax.runs.folder import prepare_workdir, read_config, read_metrics
from paella_jax.runs.verify import verify_run
from paella_jax.sampling.diffusion import GaussianRandomness, GaussianStart, sample
from paella_jax.sampling.diffusion_settings import DDPMSettings, segment_times
from paella_jax.sampling.guidance import guide
from paella_jax.training.loop import train

WIDTH = 16


def fresh_parameters(model):
    embedding = jnp.zeros((1, model.clip_width))
    return jax.jit(model.init)(jax.random.key(0), embedding, jnp.zeros((1,)), embedding)["params"]


def quick_sample(denoise, key, shape, settings, **start):
    run = lambda key, start: sample(denoise, key, shape, settings, start=start)
    return jax.jit(run)(key, GaussianStart(**start))


def test_released_size():
    config = small.config_of("clip_prior:released")
    model = make_clip_prior(config)
    assert model == ClipPrior(dtype=jnp.dtype("bfloat16"))
    shapes = CLIP_PRIOR.names.shapes(model)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 899_770_624
    entries = CLIP_PRIOR.names.table(model)
    assert len(entries) == 292 and len({entry.name for entry in entries}) == 292
    with pytest.raises(ValueError, match="unknown preset 'huge'"):
        small.config_of("clip_prior:huge")


def test_fresh_parameters_survive_a_round_trip():
    model = ClipPrior(clip_width=6, width=8, time_width=5, num_blocks=3)
    params = fresh_parameters(model)
    tensors = CLIP_PRIOR.names.save(params, model)
    assert ClipPrior(**infer_clip_prior(tensors)) == model
    jax.tree.map(np.testing.assert_array_equal, CLIP_PRIOR.names.load(tensors, model), dict(params))
    # As the release: U(+-1/sqrt(inputs)), in the blocks' first layer over sqrt(blocks) as well.
    for layer, factor in (("expand", 1 / np.sqrt(3)), ("contract", 1.0)):
        kernel = np.asarray(params["block_0"][layer]["kernel"])
        bound = factor / np.sqrt(kernel.shape[0])
        assert 0.9 * bound < np.abs(kernel).max() <= bound


# --- noise and sampler


def test_conversions_invert_noising_at_every_level():
    t = jnp.linspace(0.0, 1.0, 21)
    alpha_bar = CosineSchedule().alpha_bar(t)
    assert bool((jnp.diff(alpha_bar) < 0).all())
    np.testing.assert_allclose(alpha_bar[jnp.array([0, -1])], [0.9999, 1e-4], rtol=1e-6)
    np.testing.assert_allclose(p2_weight(alpha_bar), 1.0 - alpha_bar, rtol=1e-4)


def test_noise_belongs_to_its_key():
    keys = sample_keys(jax.random.key(3), jnp.arange(4))
    whole, part = gaussian_noise(keys, (5, 2)), gaussian_noise(keys[2:], (5, 2))
    np.testing.assert_array_equal(whole[2:], part)
    assert len(np.unique(np.asarray(whole))) == whole.size


@pytest.mark.parametrize("arguments", [{"offset": -1.0}, {"scaler": 0.0}, {"minimum": 0.5}])
def test_impossible_schedules(arguments):
    with pytest.raises(ValueError, match=f"schedule {next(iter(arguments))}"):
        CosineSchedule(**arguments)


SETTINGS = {
    "from_one": DDPMSettings(num_steps=5),
    "below_one": DDPMSettings(num_steps=5, evaluate_at_one=False),
    "segments": DDPMSettings(time_points=segment_times((1, 2 / 3, 0), (2, 3))),
    "partial": DDPMSettings(time_points=(0.5, 0.25, 0.0), stepper="ddim"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_level_is_evaluated_once(name):
    settings, seen = SETTINGS[name], []

    def denoise(x, t, scale):
        jax.debug.callback(lambda t: seen.append(float(t[0])), t, ordered=True)
        return jnp.zeros_like(x)

    quick_sample(denoise, jax.random.key(0), (2, 3), settings)
    jax.effects_barrier()
    wanted = {
        "from_one": np.linspace(1, 0, 6)[:-1],
        "below_one": np.linspace(1, 0, 7)[1:-1],
        "segments": [1, 5 / 6, 2 / 3, 4 / 9, 2 / 9],
        "partial": [0.5, 0.25],
    }[name]
    np.testing.assert_allclose(seen, wanted, atol=1e-6)


def test_perfect_prediction_recovers_the_clean_values():
    """A denoiser that knows the truth leads there, up to the trace of noise alpha_bar(0) leaves."""
    clean = jax.random.normal(jax.random.key(0), (3, 4, 2))
    schedule = CosineSchedule()

    def denoise(x, t, scale):
        alpha_bar = schedule.alpha_bar(t).reshape(-1, 1, 1)
        return (x - jnp.sqrt(alpha_bar) * clean) / jnp.sqrt(1 - alpha_bar)

    for stepper in ("ddpm", "ddim"):
        settings = DDPMSettings(num_steps=10, stepper=stepper)
        drawn = quick_sample(denoise, jax.random.key(1), clean.shape, settings)
        np.testing.assert_allclose(drawn, clean, atol=0.05)


def test_ddpm_keeps_unit_noise_as_it_is():
    """The data are unit noise: the exact prediction is x sqrt(1 - alpha_bar), samples stay N(0, 1).

    Checks the size of the fresh noise, which the perfect prediction above does not see.
    """
    schedule = CosineSchedule()
    denoise = lambda x, t, scale: x * jnp.sqrt(1 - schedule.alpha_bar(t))[:, None]
    settings = DDPMSettings(num_steps=200, evaluate_at_one=False)
    drawn = quick_sample(denoise, jax.random.key(0), (8, 4096), settings)
    assert abs(float(drawn.std()) - 1.0) < 0.05
    start = gaussian_noise(sample_keys(jax.random.key(0), jnp.arange(8)), (4096,))
    randomness = GaussianRandomness(start, jnp.zeros((200, *start.shape)))
    silent = quick_sample(denoise, jax.random.key(0), start.shape, settings, randomness=randomness)
    assert float(silent.std()) < 0.5


def test_guidance_reaches_the_prediction():
    ones = lambda x, t: jnp.ones_like(x)
    zeros = lambda x, t: jnp.zeros_like(x)
    draw = lambda denoise, scale: quick_sample(
        denoise, jax.random.key(0), (2, 3), DDPMSettings(num_steps=4, guidance_scale=scale)
    )
    triple = lambda x, t: jnp.full_like(x, 3.0)
    np.testing.assert_allclose(draw(guide(ones, zeros), 3.0), draw(guide(triple, None), 1.0), 1e-5)
    np.testing.assert_array_equal(draw(guide(ones, zeros), 1.0), draw(guide(ones, None), 1.0))


def test_starting_from_given_values():
    clean = jax.random.normal(jax.random.key(0), (2, 3))
    settings = DDPMSettings(time_points=(0.5, 0.0), stepper="ddim")
    start = diffuse(clean, jnp.zeros_like(clean), CosineSchedule().alpha_bar(jnp.float32(0.5)))
    zeros = lambda x, t, scale: jnp.zeros_like(x)
    drawn = quick_sample(zeros, jax.random.key(0), (2, 3), settings, initial=start)
    np.testing.assert_allclose(drawn, clean * np.sqrt(0.9999), rtol=1e-5)


BAD_SETTINGS = {
    "num_steps=0": DDPMSettings(num_steps=0),
    "guidance_scale=-1": DDPMSettings(guidance_scale=-1.0),
    "stepper='euler'": DDPMSettings(stepper="euler"),
    r"time_points=\(1.0,\)": DDPMSettings(time_points=(1.0,)),
    r"time_points=\(0.5, 0.5, 0": DDPMSettings(time_points=(0.5, 0.5, 0.0)),
    r"time_points=\(1.5, 0": DDPMSettings(time_points=(1.5, 0.0)),
}


@pytest.mark.parametrize("message", BAD_SETTINGS)
def test_impossible_settings(message):
    with pytest.raises(ValueError, match=f"sampler setting {message}"):
        sample(lambda x, t, scale: x, jax.random.key(0), (1, 2), BAD_SETTINGS[message])


def test_segments_need_a_count_each():
    with pytest.raises(ValueError, match="1 step counts need 2 edges, got 3"):
        segment_times((1, 0.5, 0), (4,))


# --- objective


def test_objective_is_the_noise_error_with_its_weight():
    schedule, settings = CosineSchedule(), small.config_of("clip_prior:tiny").objective.unlock()
    settings.text_drop, batch = 0.0, 32
    text, image = jax.random.normal(jax.random.key(0), (2, batch, WIDTH))
    keys = sample_keys(jax.random.key(1), jnp.arange(batch))
    inputs = StepInputs(
        {"text_embedding": text, "image_embedding": image}, keys, jnp.int32(0), {}, {}
    )
    seen = {}

    def predict(params, noised, t, text):
        jax.debug.callback(lambda **values: seen.update(values), noised=noised, t=t, text=text)
        return jnp.zeros_like(noised)

    losses = {}
    for weighted in (False, True):
        settings.loss_weight = "p2" if weighted else "none"
        objective = clip_prior_objective(predict, schedule, settings)
        losses[weighted], (metrics, _) = jax.jit(objective)({}, inputs)
        jax.effects_barrier()
        np.testing.assert_allclose(metrics["noise_mse"], losses[False], rtol=1e-6)
    alpha_bar = schedule.alpha_bar(seen["t"])
    scale = jnp.sqrt(alpha_bar)[:, None]
    noise = (seen["noised"] - scale * image) / jnp.sqrt(1 - alpha_bar)[:, None]
    error = jnp.square(noise).mean(-1)
    np.testing.assert_allclose(losses[False], error.mean(), rtol=1e-4)
    np.testing.assert_allclose(losses[True], (error * (1 - alpha_bar)).mean(), rtol=1e-4)
    np.testing.assert_array_equal(seen["text"], text)
    assert 0.2 < float(seen["t"].std()) < 0.4  # uniform: 0.29


def test_dropped_texts_are_zero():
    texts = jnp.ones((400, 3))
    keys = sample_keys(jax.random.key(0), jnp.arange(400))
    kept = np.asarray(drop_embeddings(keys, texts, 0.25))
    assert set(kept.sum(1).tolist()) == {0.0, 3.0}
    assert 0.15 < (kept[:, 0] == 0).mean() < 0.35
    np.testing.assert_array_equal(drop_embeddings(keys, texts, 0.0), texts)


# --- a run


def write_rotation(folder, count=4000):
    """Image embedding = a fixed rotation of the text embedding."""
    rng = np.random.default_rng(0)
    text = rng.normal(size=(count, WIDTH)).astype(np.float32)
    rotation, _ = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))
    image = (text @ rotation).astype(np.float32)
    np.savez(folder / "embeddings.npz", text_embedding=text, image_embedding=image)
    return rotation


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of the `tiny` preset, and the rotation it should have learnt."""
    folder = tmp_path_factory.mktemp("embeddings")
    rotation = write_rotation(folder)
    config = small.config_of("clip_prior:tiny", data__folder=folder, log__validation_images=32)
    workdir = prepare_workdir(tmp_path_factory.mktemp("prior"), config)
    train(config, workdir, build_method(config, workdir))
    return workdir, rotation


def new_texts(count):
    return np.random.default_rng(1).normal(size=(count, WIDTH)).astype(np.float32)


def test_training_learns_the_rotation(trained):
    workdir, rotation = trained
    rows = read_metrics(workdir / "metrics.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    (score,) = [row["preview_cosine"] for row in rows if "preview_cosine" in row]
    (held,) = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert held < 0.5 * losses[0]
    texts = new_texts(64)
    drawn = load_clip_prior(workdir)(texts, jax.random.key(0))
    cosine = mean_cosine(np.asarray(drawn), texts @ rotation)
    print(
        f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, cosine {score:.3f}, unseen texts {cosine:.3f}"
    )
    assert score > 0.8 and cosine > 0.8
    assert abs(mean_cosine(np.asarray(drawn), texts)) < 0.5


def test_a_run_whose_previews_are_scores_alone_is_sound_and_is_scored_once(trained):
    workdir, _ = trained
    config, rows = read_config(workdir), (workdir / "metrics.jsonl").read_text()
    assert not [found for found in verify_run(workdir) if "samples" in str(found)]
    train(config, workdir, build_method(config, workdir))
    assert (workdir / "metrics.jsonl").read_text() == rows


def test_a_sample_does_not_depend_on_its_batch(trained):
    sampler, texts = load_clip_prior(trained[0]), new_texts(6)
    key = jax.random.key(5)
    whole = sampler(texts, key, num_steps=4, guidance_scale=2.0)
    part = sampler(texts[4:], key, num_steps=4, guidance_scale=2.0, sample_index=jnp.array([4, 5]))
    np.testing.assert_allclose(whole[4:], part, atol=1e-4, rtol=1e-4)
    own = sampler(texts[4:], sample_keys(key, jnp.array([4, 5])), num_steps=4, guidance_scale=2.0)
    np.testing.assert_allclose(own, part, atol=1e-6)
    other = sampler(texts, jax.random.key(6), num_steps=4, guidance_scale=2.0)
    assert float(jnp.abs(other - whole).max()) > 0.1


def test_call_options_override_the_run(trained):
    sampler, texts, key = load_clip_prior(trained[0]), new_texts(2), jax.random.key(0)
    default = sampler(texts, key)
    same = sampler(texts, key, num_steps=20, guidance_scale=1.0)
    np.testing.assert_array_equal(default, same)
    for options in ({"num_steps": 5}, {"guidance_scale": 2.0}):
        assert float(jnp.abs(sampler(texts, key, **options) - default).max()) > 1e-3


def test_sampler_refuses_wrong_inputs():
    config = small.config_of("clip_prior:tiny")
    sampler = ClipPriorSampler(config, {"prior": fresh_parameters(make_clip_prior(config))})
    for texts, message in (
        (np.zeros((2, WIDTH + 1)), r"shape \(2, 17\), this prior needs \[batch, 16\]"),
        (np.zeros(WIDTH), r"shape \(16,\)"),
        (np.full((1, WIDTH), np.nan), "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler(texts, jax.random.key(0))
    with pytest.raises(ValueError, match="num_steps=0"):
        sampler(np.zeros((1, WIDTH)), jax.random.key(0), num_steps=0)


def test_loading_another_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(to_json(small.small_vqgan()))
    with pytest.raises(CheckpointError, match="holds a run of method 'vqgan', not of a clip_prior"):
        load_clip_prior(tmp_path)


# --- embeddings


def pair(rows=40, width=WIDTH):
    return {
        name: np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
        for seed, name in enumerate(("text_embedding", "image_embedding"))
    }


def test_splits_share_no_row_and_both_formats_agree(tmp_path):
    arrays = pair()
    np.savez(tmp_path / "embeddings.npz", **arrays)
    train_rows, validation = (
        EmbeddingSource(str(tmp_path), WIDTH, s) for s in ("train", "validation")
    )
    assert len(train_rows) == 38 and len(validation) == 2
    np.testing.assert_array_equal(validation[0]["text_embedding"], arrays["text_embedding"][19])
    np.testing.assert_array_equal(train_rows[19]["image_embedding"], arrays["image_embedding"][20])
    other = tmp_path / "safetensors"
    other.mkdir()
    halves = {name: array.astype(np.float16) for name, array in arrays.items()}
    save_file(halves, other / "embeddings.safetensors")
    sample_ = EmbeddingSource(str(other), WIDTH)[0]
    assert sample_["text_embedding"].dtype == np.float32
    np.testing.assert_array_equal(sample_["text_embedding"], halves["text_embedding"][0])


def test_few_rows_serve_both_splits(tmp_path):
    np.savez(tmp_path / "embeddings.npz", **pair(rows=3))
    assert len(EmbeddingSource(str(tmp_path), WIDTH, "validation")) == 3


def spoiled(arrays, row=7):
    arrays["image_embedding"][row, 2] = np.inf
    return arrays


BROKEN = {
    "missing": (lambda a: {"text_embedding": a["text_embedding"]}, "no array 'image_embedding'"),
    "rows": (
        lambda a: a | {"image_embedding": a["image_embedding"][:-1]},
        "text_embedding has 40 rows, image_embedding 39",
    ),
    "width": (lambda a: pair(width=12), r"shape \(40, 12\), the model needs \[rows, 16\]"),
    "empty": (lambda a: pair(rows=0), r"shape \(0, 16\)"),
    "ints": (lambda a: {k: v.astype(np.int32) for k, v in a.items()}, "dtype int32; store floats"),
    "infinite": (spoiled, "image_embedding is not finite in 1 of 40 rows, first in row 7"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_embeddings_are_refused(name, tmp_path):
    spoil, message = BROKEN[name]
    np.savez(tmp_path / "embeddings.npz", **spoil(pair()))
    config = small.config_of("clip_prior:tiny", data__folder=tmp_path)
    with pytest.raises(ConfigError, match=message):
        clip_prior_method(config)


@pytest.mark.parametrize("name", ["embeddings.npz", "embeddings.safetensors"])
def test_cut_off_files_are_refused(name, tmp_path):
    file = tmp_path / name
    np.savez(file, **pair()) if name.endswith("npz") else save_file(pair(), file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        EmbeddingSource(str(tmp_path), WIDTH)


def test_registry_knows_the_method(tmp_path):
    np.savez(tmp_path / "embeddings.npz", **pair())
    config = small.config_of("clip_prior:tiny", data__folder=tmp_path)
    assert build_method(config, tmp_path).title == "clip_prior"


def test_config_mistakes_are_refused(tmp_path):
    np.savez(tmp_path / "embeddings.npz", **pair())
    for overrides, message in (
        ({"data__folder": tmp_path / "nowhere"}, "holds neither embeddings.safetensors nor"),
        ({"data__folder": ""}, "data.folder '' holds neither"),
        ({"data__source": "shapes"}, "data.source must be 'embeddings'"),
        ({"schedule__scaler": -1.0}, r"schedule\.scaler must be above 0 .*got -1\.0"),
        ({"sampler__num_steps": 0}, r"sampler\.num_steps must be .*at least 1 .*got 0"),
    ):
        values = {"data__folder": tmp_path} | overrides
        with pytest.raises(ConfigError, match=message):
            clip_prior_method(small.config_of("clip_prior:tiny", **values))
