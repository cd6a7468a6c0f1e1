"""Training on from a tokenizer's or a stage's run: parts left behind, taken along or started."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest
import small

from paella_jax.config import ConfigError
from paella_jax.families.start import settle_config
from paella_jax.registry import build_method
from paella_jax.runs.checkpoint import Checkpointer, restore_variables
from paella_jax.runs.folder import prepare_workdir


def started(workdir, config):
    """A run's folder with the parameters it starts from, as checkpoint 1."""
    workdir = prepare_workdir(workdir, config)
    if config.method == "stage_b":
        small.carry_random_tokenizer(workdir)
    shapes = jax.eval_shape(build_method(config, workdir).init, jax.random.key(0))
    params, model_state = small.random_values(shapes, seed=7)
    checkpointer = Checkpointer(workdir)
    state = {"params": params, "ema_params": {}, "model_state": model_state}
    checkpointer.save(1, state)
    checkpointer.close()
    return workdir


def trained_on(workdir, config):
    config = settle_config(config, workdir)
    return build_method(config, prepare_workdir(workdir, config))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def weights(workdir):
    return restore_variables(workdir)[1]


# --- the tokenizer

ADVERSARY = {"objective__adversarial_weight": 0.01, "objective__discriminator_depth": 2,
             "objective__discriminator_width": 8}  # fmt: skip


@pytest.fixture(scope="module")
def vqgan(tmp_path_factory):
    """As converted weights: without a discriminator."""
    return started(tmp_path_factory.mktemp("vqgan"), small.small_vqgan())


def test_a_discriminator_starts_fresh(vqgan, tmp_path):
    trained_on(tmp_path / "with", small.small_vqgan(init_from=vqgan, **ADVERSARY))
    found = weights(tmp_path / "with")
    for part in ("params", "model_state"):
        assert found[part].pop("discriminator")
    same(found, weights(vqgan))
    trained_on(tmp_path / "kept", small.small_vqgan(init_from=tmp_path / "with", **ADVERSARY))
    same(weights(tmp_path / "kept"), weights(tmp_path / "with"))
    # And is left behind where it is not wanted any more.
    trained_on(tmp_path / "without", small.small_vqgan(init_from=tmp_path / "with"))
    same(weights(tmp_path / "without"), weights(vqgan))


def test_resuming_never_reads_the_other_run(vqgan, tmp_path):
    """Also where nothing is frozen."""
    shutil.copytree(vqgan, tmp_path / "source")
    config = small.small_vqgan(init_from=tmp_path / "source")
    trained_on(tmp_path / "run", config)
    shutil.rmtree(tmp_path / "source")
    trained_on(tmp_path / "run", config)
    same(weights(tmp_path / "run"), weights(vqgan))


def test_a_failed_start_does_not_decide_for_the_next(tmp_path):
    """Networks are then those of the `init_from` given now."""
    sources = [tmp_path / str(codes) for codes in (32, 64)]
    for source in sources:
        prepare_workdir(source, small.small_paella(model__codebook_size=int(source.name)))
    finetune = lambda source: small.config_of("paella:finetune", init_from=source)
    prepare_workdir(tmp_path / "run", settle_config(finetune(sources[0]), tmp_path / "run"))
    config = settle_config(finetune(sources[1]), tmp_path / "run")
    assert config.model.codebook_size == 64


# --- Stage B


def small_stage_b(**overrides):
    values = {
        "batch_size": 8, "model__widths": "(16,)", "model__depths": "(1,)",
        "model__cond_width": 16, "compressor__head_channels": 16, "compressor__stages":
        "(('fused',1,3,1,8,8,1),('fused',2,3,2,8,8,1),('mb',2,3,2,8,16,1))",
    } | overrides  # fmt: skip
    return small.config_of("stage_b:tiny", **values)


def test_a_compressor_is_frozen_after_training_along(tmp_path):
    joint = started(tmp_path / "joint", small_stage_b())
    config = small_stage_b(init_from=joint, compressor__train="False")
    method = trained_on(tmp_path / "frozen", config)
    before, after = weights(joint), weights(tmp_path / "frozen")
    kept = {"params": before["params"]["compressor"],
            "batch_stats": before["model_state"]["compressor"]}  # fmt: skip
    same(method.frozen["compressor"], kept)
    assert set(after["params"]) == set(before["params"]) - {"compressor"}
    assert not after["model_state"]
    same(after["params"]["stage_b"], before["params"]["stage_b"])
    shutil.rmtree(joint)
    same(trained_on(tmp_path / "frozen", config).frozen["compressor"], kept)


# --- Stage C


def test_the_mixed_phase_takes_its_text_side_from_the_run_before(tmp_path):
    with pytest.raises(ConfigError, match="preset 'v2_mixed' trains on from another run: give"):
        settle_config(small.config_of("stage_c:v2_mixed"), tmp_path / "run")
    first = prepare_workdir(tmp_path / "v2", small.config_of("stage_c:v2", text__folder="/clip"))
    mixed = small.config_of("stage_c:v2_mixed", init_from=first)
    config = settle_config(mixed, tmp_path / "run")
    assert config.text.kind == "clip" and config.text.folder == "/clip"
    assert config.data.image_size == 1024 and config.num_steps == 4000


def test_an_empty_encoder_folder_is_left_to_the_run_before(tmp_path):
    first = prepare_workdir(tmp_path / "v2", small.config_of("stage_c:v2", text__folder="/clip"))
    config = settle_config(small.config_of("stage_c:v2", init_from=first), tmp_path / "run")
    assert config.text.folder == "/clip"
    other = small.config_of("stage_c:v2", init_from=first, text__folder="/other")
    with pytest.raises(ConfigError, match=r"text\.folder: '/clip' -> '/other'"):
        settle_config(other, tmp_path / "run")
