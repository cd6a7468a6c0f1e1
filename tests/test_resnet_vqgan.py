"""Training the ResNet VQGAN, and training a new decoder on a frozen encoder of either kind."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax.traverse_util import flatten_dict

from paella_jax.config import ConfigError
from paella_jax.convert.vqgan import VQMODEL
from paella_jax.families.start import settle_config
from paella_jax.families.vqgan import (
    differing_codes,
    load_carried_tokenizer,
    load_carried_vqgan,
    load_vqgan_run,
    make_vqgan,
    swap_decoder,
)
from paella_jax.families.vqgan_training import vqgan_method
from paella_jax.models.quantizer import is_decoder
from paella_jax.models.vqmodel import VQModel
from paella_jax.objectives.vqgan import _candidates
from paella_jax.registry import build_method
from paella_jax.runs.checkpoint import Checkpointer, restore_variables
from paella_jax.runs.folder import prepare_workdir, read_metrics
from paella_jax.runs.frozen import carry, tokenizer_run
from paella_jax.training.loop import train

COMMON = {
    "batch_size": 8, "num_steps": 3, "checkpoint__every": 2, "log__every": 1,
    "log__preview_images": 2, "optim__warmup_steps": 1, "mesh__data": -1,
    "model__codebook_size": 32,
}  # fmt: skip
SMALL = {
    "resnet": {
        "model__widths": "(8,8)", "model__latent_channels": 4, "model__code_channels": 4,
        "model__norm_groups": 4, "model__encoder_attention": "(False,False)",
        "model__decoder_attention": "(False,False)",
    },
    "paella": {"model__levels": 1, "model__width": 8, "model__bottleneck_blocks": 1},
}  # fmt: skip
FILES = {"resnet": "resnet_vqgan:tiny", "paella": "vqgan:tiny"}
OTHER_DECODER = {
    "resnet": {"model__decoder_widths": "(8,12)", "model__decoder_blocks_per_level": 1},
    "paella": {"model__bottleneck_blocks": 2},
}
DECODER_ONLY = {"train_decoder_only": "true", "optim__weight_decay": 0.1}


def config_of(kind, **overrides):
    return small.config_of(FILES[kind], **(COMMON | SMALL[kind] | overrides))


def built(workdir, config):
    config = settle_config(config, workdir)
    workdir = prepare_workdir(workdir, config)
    return config, build_method(config, workdir)


def run(workdir, config, preview=False):
    config, method = built(workdir, config)
    if not preview:
        object.__setattr__(method, "preview", None)
    return train(config, workdir, method)


def untrained(workdir, config):
    """A run folder of random weights, as if trained."""
    workdir = prepare_workdir(workdir, config)
    shapes = jax.eval_shape(vqgan_method(config).init, jax.random.key(0))
    draw = np.random.default_rng(0)  # compiling a real init costs far more time
    params, state = jax.tree.map(
        lambda s: np.abs(draw.normal(size=s.shape, scale=0.3)).astype(s.dtype) + 0.01, shapes
    )
    checkpointer = Checkpointer(workdir)
    checkpointer.save(1, {"params": params, "ema_params": {}, "model_state": state})
    checkpointer.close()
    return workdir


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {kind: untrained(folder / kind, config_of(kind)) for kind in SMALL}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A ResNet run of a few steps, with everything that training does."""
    workdir = tmp_path_factory.mktemp("trained")
    config = config_of("resnet", num_steps=8, objective__revive_every=2, optim__learning_rate=0.01)
    return workdir, run(workdir, config, preview=True)


@pytest.fixture(scope="module")
def tuned(bases, tmp_path_factory):
    """Of each kind a decoder-only run, with a decoder of another size."""
    folder = tmp_path_factory.mktemp("tuned")
    for kind, base in bases.items():
        overrides = DECODER_ONLY | OTHER_DECODER[kind] | {"init_from": base}
        run(folder / kind, config_of(kind, **overrides))
    return {kind: folder / kind for kind in bases}


def encoder_of(variables):
    kept = {n: tree for n, tree in variables["params"].items() if not is_decoder(n)}
    return flatten_dict({"params": kept, "batch_stats": variables.get("batch_stats", {})})


def assert_same(first, second):
    assert first.keys() == second.keys()
    for path, value in first.items():
        np.testing.assert_array_equal(value, second[path], err_msg="/".join(path))


def tokens_of(model, variables):
    images = jax.random.uniform(jax.random.key(3), (2, 32, 32, 3))
    return jax.jit(lambda v, x: model.apply(v, x, method="encode_tokens"))(variables, images)


# --- training


def test_a_run_learns_and_is_carried(trained, tmp_path):
    workdir, result = trained
    losses = [row["loss"] for row in read_metrics(workdir / "metrics.jsonl") if "loss" in row]
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert set(result.state.model_state) == {"codes"}  # no batch statistics
    assert (workdir / "samples" / "step_0000008.png").stat().st_size > 500
    _, model, variables = load_vqgan_run(workdir)
    assert isinstance(model, VQModel) and set(variables) == {"params"}
    carry("tokenizer", workdir, tmp_path)
    carried, loaded = load_carried_tokenizer(tmp_path)
    assert carried == model and hash(carried) == hash(model)
    np.testing.assert_array_equal(tokens_of(carried, loaded), tokens_of(model, variables))
    with pytest.raises(ConfigError, match="architecture 'resnet'; this needs one of configs/vqgan"):
        load_carried_vqgan(tmp_path)


def test_dead_codes_take_the_scale_of_the_latents(trained):
    """Codes start within 1/32 of zero; those revived lie where the latents do."""
    _, result = trained
    usage = np.asarray(result.state.model_state["codes"]["usage"])
    codebook = np.asarray(result.state.params["vqgan"]["codebook"])
    assert np.abs(codebook).max() > 2 / 32 and (usage > 0).sum() > 4
    key, codes = jax.random.key(0), jnp.zeros((2, 3, 3, 4))
    latents = jax.random.normal(jax.random.key(1), codes.shape)
    plain, scaled = (_candidates(key, s * latents, s * codes, 16) for s in (1.0, 1024.0))
    np.testing.assert_allclose(scaled, 1024.0 * plain, rtol=1e-3)


def test_raw_latents_are_decoded_where_asked(trained):
    _, model, variables = load_vqgan_run(trained[0])
    images = jax.random.uniform(jax.random.key(2), (2, 8, 8, 3))
    mixed = model.apply(variables, images, jnp.array([True, False]))
    decode = lambda x: model.apply(variables, x, method="decode")
    np.testing.assert_allclose(mixed.images[1], decode(mixed.latents)[1], atol=1e-5)
    np.testing.assert_allclose(mixed.images[0], decode(mixed.codes)[0], atol=1e-5)


def test_presets_have_the_published_sizes():
    """docs/models/muse.md 2.5 for the f16 network, 1.4 for the larger decoder."""
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    f16, f8 = (make_vqgan(small.config_of(f"resnet_vqgan:{name}")) for name in ("f16", "f8"))
    assert count(VQMODEL.names.shapes(f16)) == 146_244_675
    assert (f16.downsampling, f8.downsampling) == (16, 8)
    tuned = small.config_of("resnet_vqgan:finetune_decoder").model
    larger = f16.clone(
        decoder_widths=tuned.decoder_widths,
        decoder_blocks_per_level=tuned.decoder_blocks_per_level,
    )
    part = lambda model: {
        n: count(tree) for n, tree in VQMODEL.names.shapes(model).items() if is_decoder(n)
    }
    assert larger.decoder_sizes[0][0] == 256 and larger.decoder_sizes[1] == 4
    assert sum(part(larger).values()) > 4 * sum(part(f16).values())


# --- decoder only


@pytest.mark.parametrize("kind", list(SMALL))
def test_the_encoder_stays_to_the_bit(bases, tuned, tmp_path, kind):
    _, model, before = load_vqgan_run(bases[kind])
    _, other, after = load_vqgan_run(tuned[kind])
    assert_same(encoder_of(before), encoder_of(after))
    np.testing.assert_array_equal(tokens_of(model, before), tokens_of(other, after))
    overrides = DECODER_ONLY | OTHER_DECODER[kind] | {"init_from": bases[kind]}
    built(tmp_path, config_of(kind, **overrides))  # stopped before the first step
    start, end = (
        restore_variables(folder)[1]["params"]["vqgan"] for folder in (tmp_path, tuned[kind])
    )
    assert all(is_decoder(name) for name in start)
    pairs = zip(jax.tree.leaves(start), jax.tree.leaves(end), strict=True)
    assert np.mean([np.any(a != b) for a, b in pairs]) > 0.9
    assert not differing_codes(*map(tokenizer_run, (bases[kind], tuned[kind])))


def test_a_decoder_of_the_same_size_goes_on_from_the_trained_one(bases, tmp_path):
    for kind, base in bases.items():
        built(tmp_path / kind, config_of(kind, init_from=base, **DECODER_ONLY))
        start, source = (load_vqgan_run(folder)[2] for folder in (tmp_path / kind, base))
        assert_same(flatten_dict(start), flatten_dict(source))


def test_all_of_it_can_be_trained_afterwards(tuned, tmp_path):
    overrides = OTHER_DECODER["resnet"] | {"init_from": tuned["resnet"]}
    _, method = built(tmp_path, config_of("resnet", **overrides))
    assert "fixed" not in jax.eval_shape(method.init, jax.random.key(0))[1]
    start = restore_variables(tmp_path)[1]["params"]["vqgan"]
    assert_same(flatten_dict(start), flatten_dict(load_vqgan_run(tuned["resnet"])[2]["params"]))


def test_a_decoder_only_run_resumes_without_the_other(bases, tuned, tmp_path):
    overrides = DECODER_ONLY | OTHER_DECODER["resnet"] | {"init_from": bases["resnet"]}
    built(tmp_path, config_of("resnet", **overrides))  # stopped before the first step
    run(tmp_path, config_of("resnet", **(overrides | {"init_from": ""})))
    cut, whole = (restore_variables(folder)[1] for folder in (tmp_path, tuned["resnet"]))
    assert_same(flatten_dict(cut["params"]), flatten_dict(whole["params"]))


def test_another_decoder_takes_the_carried_ones_place(bases, tuned, trained, tmp_path):
    for kind, base in bases.items():
        carry("tokenizer", base, tmp_path / kind)
        _, variables = load_carried_tokenizer(tmp_path / kind)
        model, swapped = swap_decoder(tmp_path / kind, variables, tuned[kind])
        assert model == load_vqgan_run(tuned[kind])[1]
        assert_same(encoder_of(variables), encoder_of(swapped))
    _, variables = load_carried_tokenizer(tmp_path / "resnet")
    words = r"another encoder or codebook .*\['params'\]\['codebook'\].*train_decoder_only"
    with pytest.raises(ConfigError, match=words):
        swap_decoder(tmp_path / "resnet", variables, trained[0])
    with pytest.raises(ConfigError, match=r"\(architecture, model\."):
        swap_decoder(tmp_path / "resnet", variables, tuned["paella"])
    assert differing_codes(*map(tokenizer_run, (bases["resnet"], trained[0])))


def test_runs_from_before_there_was_a_choice_are_paellas(bases, tmp_path):
    carry("tokenizer", bases["paella"], tmp_path)
    file = tmp_path / "frozen" / "vqgan.json"
    config = json.loads(file.read_text())
    for name in ("architecture", "train_decoder_only"):
        del config[name]
    file.write_text(json.dumps(config))
    model, variables = load_carried_vqgan(tmp_path)
    assert model == load_vqgan_run(bases["paella"])[1]
    swap_decoder(tmp_path, variables, bases["paella"])


# --- what does not fit


@pytest.mark.parametrize(
    "kind, overrides, words",
    [
        ("resnet", {"train_decoder_only": "true"}, r"train_decoder_only needs .*init_from=RUN"),
        ("resnet", {"architecture": "unet"}, "must be one of paella, resnet, got 'unet'"),
        ("resnet", {"model__decoder_widths": "(8,)"}, r"decoder_widths \(8,\) needs one entry"),
        ("resnet", {"model__decoder_widths": "(8,9)"}, r"norm groups do not divide .*\[9\]"),
        ("paella", {"init_from": "resnet"}, r"architecture: 'resnet' -> 'paella'"),
        ("resnet", {"init_from": "resnet", "model__decoder_widths": "(8,12)"},
         r"model\.decoder_widths: \(\) -> \(8, 12\)"),
        ("resnet", {"init_from": "resnet", "train_decoder_only": "true",
                    "model__widths": "(8,12)"}, r"model\.widths: \(8, 8\) -> \(8, 12\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(bases, tmp_path, kind, overrides, words):
    if "init_from" in overrides:
        overrides = overrides | {"init_from": bases[overrides["init_from"]]}
    with pytest.raises(ConfigError, match=words):
        built(tmp_path, config_of(kind, **overrides))


def test_names_of_a_larger_decoder():
    model = VQModel(
        widths=(4, 8), blocks_per_level=1, latent_channels=4, code_channels=3, codebook_size=7,
        norm_groups=2, encoder_attention=(False,) * 2, decoder_attention=(False,) * 2,
        decoder_widths=(6, 10), decoder_blocks_per_level=3,
    )  # fmt: skip
    empty = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), VQMODEL.names.shapes(model))
    tensors = VQMODEL.names.save(empty, model)
    assert tensors["decoder.up_blocks.1.resnets.2.conv1.weight"].shape == (6, 6, 3, 3)
    assert tensors["encoder.down_blocks.1.resnets.0.conv1.weight"].shape == (8, 4, 3, 3)
    assert_same(flatten_dict(VQMODEL.names.load(tensors, model)), flatten_dict(empty))
    with pytest.raises(ValueError, match=r"decoder_widths \(6, 10\).*no place in diffusers"):
        VQMODEL.foreign.write(model)
