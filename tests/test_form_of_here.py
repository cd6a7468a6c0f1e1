"""A run is resumed, and drawn with, on machines that compute it otherwise."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest
import small

import paella_jax
from paella_jax.config import ConfigError, to_json
from paella_jax.families.form_of_here import form_of_here, without_form
from paella_jax.pipelines.run_digests import run_digest
from paella_jax.runs import digests
from paella_jax.runs.digests import note_files
from paella_jax.runs.folder import prepare_workdir, read_config

KERNELS = {"model__attention": "cudnn", "model__loop": True}


@pytest.fixture
def run(shared_runs, tmp_path):
    return shutil.copytree(shared_runs.trained(small.brief_paella()), tmp_path / "run")


def trained_elsewhere(folder):
    """The same run, as if it had been trained with kernels that a CPU does not have."""
    config = small.brief_paella(**KERNELS)
    (folder / "config.json").write_text(to_json(config))
    note_files(folder, ["config.json"])
    return config


def test_a_kernel_that_is_not_here_is_replaced_and_told_when_drawing(run, capsys):
    digests._told.clear()
    draw = lambda: paella_jax.load(run)("a red circle", seed=1, num_steps=2, output_type="np")
    before, name = draw(), paella_jax.load(run).run_name()
    config = trained_elsewhere(run)
    capsys.readouterr()
    after = draw()
    told = capsys.readouterr().err
    assert "model.attention: attention 'cudnn' needs an NVIDIA GPU, this is cpu" in told
    assert told.count("auto is taken") == 1
    np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
    assert read_config(run).model.attention == config.model.attention == "cudnn"
    assert paella_jax.load(run).run_name() == name


def test_a_run_has_one_name_on_all_machines():
    configs = small.small_paella(), small.small_paella(**KERNELS)
    names = {run_digest({"": (config, {"x": np.ones(3)})}) for config in configs}
    assert len(names) == 1
    other = small.small_paella(model__dropout=0.5)
    assert run_digest({"": (other, {"x": np.ones(3)})}) not in names


def test_frozen_encoders_take_the_kernel_that_all_machines_have():
    config = small.small_paella(text__attention="cudnn")
    assert form_of_here(config).text.attention == "xla"


def test_blocks_are_one_loop_on_accelerators_alone(monkeypatch):
    config = small.small_paella(**KERNELS)
    assert form_of_here(config).model.loop is False
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert form_of_here(config).model.loop is True
    assert form_of_here(config).model.attention == "cudnn"
    assert to_json(without_form(config)) == to_json(without_form(small.small_paella()))


def test_a_run_goes_on_with_what_the_machine_has(run):
    """The advice of the refused kernel can be followed; what the network is stays refused."""
    trained_elsewhere(run)
    other = {"model__attention": "auto", "model__remat": True, "model__depthwise": "shifts"}
    prepare_workdir(run, small.brief_paella(**other))
    assert "model.attention: 'cudnn' -> 'auto'" in (run / "history.jsonl").read_text()
    with pytest.raises(ConfigError, match=r"model\.attention_dropout: 'probabilities' -> 'output'"):
        prepare_workdir(run, small.brief_paella(model__attention_dropout="output"))
