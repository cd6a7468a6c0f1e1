"""Every cell of corruption x network x sampler: trains, resumes, samples, edits; bad ones."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

import paella_jax
from paella_jax.config import ConfigError, to_json
from paella_jax.families.cells import check_cell
from paella_jax.families.start import settle_config
from paella_jax.families.tokens import load_networks
from paella_jax.models.conditioning import ConditionInputs
from paella_jax.noise.tokens import sample_keys
from paella_jax.objectives.inputs import StepInputs
from paella_jax.objectives.token_prediction import token_objective
from paella_jax.pipelines import editing
from paella_jax.pipelines.tokens import TokenPipeline
from paella_jax.registry import build_method
from paella_jax.runs.digests import write_noted
from paella_jax.runs.folder import prepare_workdir, read_metrics
from paella_jax.sampling.resample import ResampleSettings
from paella_jax.sampling.token_loop import Known
from paella_jax.training.loop import train

RED, BLUE = "a large red circle at the top left", "a large blue circle at the bottom right"
NETWORKS = ("unet", "transformer", "uvit")
CELLS = [(corruption, network) for corruption in ("uniform", "mask") for network in NETWORKS]
CODES = 32
TINY = {
    "model__num_heads": "(2,)",
    "model__token_width": 8,
    "model__cond_width": 8,
    "model__widths": "(8,)",
    "model__patterns": "('CT',)",
    "transformer__width": 8,
    "transformer__depth": 1,
    "transformer__num_heads": 1,
    "transformer__feed_forward_width": 8,
    "uvit__token_width": 8,
    "uvit__conv_width": 8,
    "uvit__conv_heads": 1,
    "uvit__width": 8,
    "uvit__depth": 1,
    "uvit__num_heads": 1,
    "uvit__feed_forward_width": 8,
    "uvit__micro_width": 4,
    "text__width": 8,
    "text__num_heads": 1,
    "text__hidden_dim": 8,
    "num_steps": 2,
    "checkpoint__every": 1,
    "log__preview_images": 0,
    "sampler__num_steps": 4,
    "uvit__downsample": False,
    "uvit__upsample": False,
    "optim__schedule": "constant",
}
KEYS = sample_keys(jax.random.key(0), jnp.arange(3000))


def config_of(corruption="mask", network="transformer", **changes):
    cell = {"cell__corruption": corruption, "cell__network": network}
    return small.small_paella(**(cell | TINY | changes))


def train_to(step, workdir, corruption, network):
    config = config_of(corruption, network, num_steps=step)
    prepare_workdir(workdir, config)
    if not (workdir / "frozen").exists():
        small.carry_random_tokenizer(workdir)
    method = build_method(config, workdir)
    object.__setattr__(method, "preview", None)
    return train(config, workdir, method)


# Every network, and every corruption; the rest in the lane of long tests.
SUITE = [CELLS[0], *map(small.slow, CELLS[1:4]), *CELLS[4:]]


@pytest.fixture(scope="module", params=SUITE, ids="-".join)
def cell(request, tmp_path_factory):
    """A run of one step that was then resumed for another."""
    corruption, network = request.param
    workdir = tmp_path_factory.mktemp(f"{corruption}_{network}")
    steps = [train_to(step, workdir, corruption, network).step for step in (1, 2)]
    return SimpleNamespace(
        corruption=corruption,
        network=network,
        steps=steps,
        workdir=workdir,
        pipe=paella_jax.load(workdir),
    )


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).random((32, 32, 3)).astype(np.float32)


def test_every_cell_trains_and_resumes(cell):
    rows = [row for row in read_metrics(cell.workdir / "metrics.jsonl") if "loss" in row]
    assert cell.steps == [1, 2] and [row["step"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["loss"]) and row["loss"] > 0 for row in rows)
    assert cell.pipe.networks.predictor.mask_token == (CODES if cell.corruption == "mask" else None)


@pytest.mark.parametrize("sampler", ["random", "confidence"])
def test_every_cell_samples_with_both_samplers(cell, picture, sampler):
    """From half of an image, with guidance and a negative prompt, around tokens that stay."""
    tokens = cell.pipe.encode(picture[None])
    generate = np.zeros((1, 8, 8), bool)
    generate[:, :5] = True
    settings = cell.pipe.settings(sampler=sampler)
    start = "strength" if hasattr(settings, "strength") else "t_start"
    assert (start == "strength") == (cell.corruption == "mask" and sampler == "confidence")
    result = cell.pipe.generate(
        RED,
        negative_prompt=BLUE,
        guidance_scale=5.0,
        sampler=sampler,
        image_tokens=tokens,
        known=Known(tokens, generate),
        num_images_per_prompt=2,
        trace=True,
        **{start: 0.75},
    )
    assert result.images.shape == (2, 32, 32, 3) and np.isfinite(result.images).all()
    for states in (result.tokens, *result.trace):
        assert states.min() >= 0 and states.max() < CODES
        kept = np.broadcast_to(tokens, states.shape)
        np.testing.assert_array_equal(states[:, 5:], kept[:, 5:])
    assert (result.tokens[0] != tokens[0]).any() and (result.tokens[0] != result.tokens[1]).any()


@pytest.fixture(scope="module", params=["mask", "uniform"])
def transformer(request, tmp_path_factory):
    """A network with learned positions; untrained."""
    workdir = tmp_path_factory.mktemp("transformer")
    small.carry_random_tokenizer(workdir)
    config = config_of(request.param, "transformer")
    networks, frozen = load_networks(config, workdir)
    params = small.random_values(jax.eval_shape(lambda key: networks.init(key, 8), KEYS[0]))
    return TokenPipeline(networks, params, frozen, config)


@pytest.mark.parametrize("sampler", ["random", "confidence"])
def test_tasks_with_learned_positions(transformer, picture, sampler):
    """Text-to-image, outpainting to the only size and image-to-image, of either corruption."""
    options = {"sampler": sampler, "guidance_scale": 1.0}
    plain = transformer.generate(RED, seed=3, **options)
    assert plain.tokens.shape == (1, 8, 8) and plain.tokens.max() < CODES
    part = picture[4:24, :16]
    outside = editing.outpaint(transformer, part, RED, top=4, bottom=8, right=16, **options)
    np.testing.assert_array_equal(outside.tokens[0, 1:6, :4], transformer.encode(part[None])[0])
    full = editing.image_to_image(transformer, picture, RED, strength=1.0, seed=3, **options)
    np.testing.assert_array_equal(full.tokens, plain.tokens)


def test_mask_free_editing(transformer, picture):
    """Only some tokens of the marked part change; a frame is a state on the way."""
    tokens, mask = transformer.encode(picture[None]), np.zeros((32, 32), bool)
    mask[:16] = True
    options = {"rounds": 2, "share": 0.1, "guidance_scale": 1.0, "seed": 1}
    result = editing.edit(transformer, picture, RED, mask=mask, frames=2, **options)
    changed = result.tokens != tokens
    assert 1 <= changed.sum() <= 6 and not changed[:, 4:].any()  # 3 of 32 in a round
    assert result.trace.shape == (2, 1, 8, 8) and result.tokens.max() < CODES
    assert (result.trace[0] != tokens).sum() <= 3
    np.testing.assert_array_equal(result.trace[1], result.tokens)


def test_what_a_transformer_cannot_draw(transformer, picture):
    mask = np.eye(32, dtype=bool)
    cases = [
        (lambda: transformer.generate(RED, height=64), "learned positions for 8x8 only"),
        (lambda: transformer.generate(RED, height=16), "height 16 must be a positive multiple"),
        (lambda: editing.image_to_image(transformer, picture[:16], RED), "crop it to 32x32"),
        (
            lambda: editing.outpaint(transformer, picture, RED, top=4, windows=False),
            "make 36x32; this network",
        ),
        (lambda: editing.outpaint(transformer, picture[:10, :8], RED, top=4), "make 14x8; this"),
        (lambda: editing.outpaint(transformer, picture[:30], RED, top=2), "top is 2 pixels"),
        (lambda: editing.inpaint(transformer, picture, mask[:16], RED), "make them equal"),
        (lambda: editing.edit(transformer, picture, RED, mask=mask[:16]), "make them"),
        (lambda: editing.edit(transformer, picture[:16], RED), "crop it to 32x32"),
        (lambda: editing.edit(transformer, picture, RED, rounds=0), "rounds=0"),
        (lambda: editing.edit(transformer, picture, RED, num_steps=3), "no sampler: num"),
        (lambda: transformer.generate(RED, resampling=ResampleSettings()), "give image_tokens"),
        (lambda: transformer.strip(transformer.generate(RED)), "draw it with trace=True"),
    ]
    if transformer.networks.predictor.mask_token is not None:
        cases += [
            (lambda: editing.morph(transformer, picture, RED), "this one was trained with masks"),
            (lambda: transformer.generate(RED, renoise_mode="fresh"), "no setting|must be 'init"),
        ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words):
            call()
    # In windows of its one size it draws a larger canvas after all.
    assert editing.outpaint(transformer, picture, RED, top=4).images.shape == (1, 36, 32, 3)


REFUSED = {
    "cell.corruption must be one of uniform, mask, got 'noise'": {"cell__corruption": "noise"},
    "cell.network must be one of unet, .*, got 'mlp'": {"cell__network": "mlp"},
    "cell.sampler must be one of random, confidence": {"cell__sampler": "best"},
    "set --config.transformer.time_width=64": {
        "cell__corruption": "uniform", "transformer__time_width": 0},
    "set --config.uvit.micro_conds=6": {
        "cell__corruption": "uniform", "cell__network": "uvit", "uvit__micro_conds": 5},
    "uvit.vocabulary_size .* leave it 0": {
        "cell__corruption": "uniform", "cell__network": "uvit", "uvit__vocabulary_size": 40},
    "set --config.super_resolution.time_width=64": {
        "cell__corruption": "uniform", "cell__network": "super_resolution", "low_tokenizer": "x"},
    "model.num_classes, image_encoder.kind: only cell.network=unet": {
        "model__num_classes": 2, "image_encoder__kind": "joint"},
    "unet has none: set --config.text.empty_is_absent=False": {
        "cell__network": "unet", "text__empty_is_absent": True},
    "needs --config.low_tokenizer=RUN": {"cell__network": "super_resolution"},
    "no other network takes one": {"low_tokenizer": "x"},
    "text.empty_is_absent has no effect on text.kind=clip": {
        "text__kind": "clip", "text__empty_is_absent": True},
    "transformer.time_width 1 is no embedding": {"transformer__time_width": 1},
    "uvit.downsample and uvit.upsample must be the same": {
        "cell__network": "uvit", "uvit__downsample": True},
    "uvit.micro_conds must be .*at least 5 and at most 6, got 7": {
        "cell__network": "uvit", "uvit__micro_conds": 7},
    "objective.density must be one of cosine, uniform": {"objective__density": "normal"},
    "objective.loss_positions must be one of all": {"objective__loss_positions": "masked"},
    "sampler.num_steps must be .*at least 1 .*got 0": {"sampler__num_steps": 0},
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_cells_that_make_no_sense(words):
    with pytest.raises(ConfigError, match=words):
        check_cell(config_of(**REFUSED[words]))


def test_a_transformer_from_before_its_norm_is_refused(tmp_path):
    config = config_of()
    del config.unlock().transformer.tied_head
    with pytest.raises(ConfigError, match="older than the norm behind its embeddings"):
        check_cell(config)
    run = small.untrained(tmp_path / "run", config_of())
    write_noted(run, "config.json", to_json(config))
    with pytest.raises(ConfigError, match="Train it again"):
        settle_config(config_of(), run)


def test_cells_that_make_sense():
    for corruption, network in CELLS:
        for sampler in ("random", "confidence"):
            check_cell(config_of(corruption, network, cell__sampler=sampler))


def test_networks_that_do_not_fit_the_data(tmp_path):
    small.carry_random_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match=r"set --config\.model\.codebook_size=32"):
        load_networks(config_of(model__codebook_size=64), tmp_path)
    with pytest.raises(ConfigError, match=r"cell\.network=transformer has learned positions"):
        load_networks(config_of(data__buckets="((32,64),)"), tmp_path)


def objective_of(corruption, predict, condition, **changes):
    """The training step's function on 4x4 maps with a stub for the network."""
    settings = small.config_of("muse:tiny").objective
    settings.update(changes)
    mask_token = CODES if corruption == "mask" else None
    objective = token_objective(
        predict, condition, lambda frozen, images: images, settings, CODES, mask_token=mask_token
    )
    count = KEYS.shape[0]
    batch = {
        "tokens": jax.random.randint(jax.random.key(1), (count, 4, 4), 0, CODES),
        "text_ids": jnp.full((count, 3), 70, jnp.int32),
        "text_mask": jnp.ones((count, 3), bool),
    }
    params = {"predictor": {"classifier": jax.random.normal(jax.random.key(2), (6, CODES))}}
    inputs = StepInputs(batch=batch, keys=KEYS, frozen={}, model_state={}, step=jnp.int32(0))
    return objective(params, inputs)


def features_with(visible_change, seen):
    def predict(params, tokens, t, cond, key):
        seen.append((tokens, t, cond))
        features = jax.random.normal(jax.random.key(4), (*tokens.shape, 6))
        return features + visible_change * (tokens != CODES)[..., None]

    return predict


def test_the_masked_loss_ignores_visible_tokens():
    loss = {}
    for corruption in ("mask", "uniform"):
        for change in (0.0, 2.0):
            predict = features_with(change, [])
            value, (metrics, _) = objective_of(corruption, predict, lambda *_: None)
            loss[corruption, change] = float(value)
            assert np.isfinite(value) and metrics["accuracy"].shape == ()
    assert loss["mask", 0.0] == loss["mask", 2.0]
    assert abs(loss["uniform", 0.0] - loss["uniform", 2.0]) > 0.01


@pytest.mark.parametrize("density", ["cosine", "uniform"])
def test_levels_and_texts_of_a_training_step(density):
    """What the network is given: the density's share of masks, and a tenth without text."""
    seen = []
    keep_inputs = lambda params, frozen, inputs, key: inputs
    objective_of("mask", features_with(0.0, seen), keep_inputs, density=density, minimum_t=0.0)
    ((tokens, t, inputs),) = seen
    masked = np.asarray((tokens == CODES).sum((1, 2)))
    np.testing.assert_array_equal(masked, np.maximum(1, np.round(16 * np.asarray(t))))
    ordered = np.sort(np.asarray(t))
    expected = (np.arange(len(ordered)) + 0.5) / len(ordered)
    if density == "cosine":  # P(r <= x) = 1 - 2 / pi arccos(x)
        ordered = 1.0 - 2.0 / np.pi * np.arccos(ordered)
    np.testing.assert_allclose(ordered, expected, atol=0.04)
    dropped = np.asarray(inputs.text_mask.sum(1) == 1)
    assert abs(dropped.mean() - 0.1) < 4 * np.sqrt(0.09 / len(dropped))
    assert (np.asarray(inputs.text_ids)[dropped] == [1, 0, 0]).all()
    assert abs(np.corrcoef(dropped, np.asarray(t))[0, 1]) < 0.08


def test_an_empty_text_may_be_absent(transformer):
    """Nothing of it is seen then; a text of one byte and its end token is."""
    ids = jnp.array([[1, 0, 0], [70, 1, 0]], jnp.int32)
    inputs = ConditionInputs(text_ids=ids, text_mask=ids > 0)
    for absent, seen in ((True, [0, 2]), (False, [1, 2])):
        networks = replace(transformer.networks, empty_text_is_absent=absent)
        cond = networks.condition(transformer.params, transformer.frozen, inputs)
        np.testing.assert_array_equal(cond.text_mask.sum(1), seen)
