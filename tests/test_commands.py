"""Configs found by name from anywhere, the list of commands, and the one version."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys

import pytest
import small

import paella_jax
from paella_jax import __main__ as entry
from paella_jax.comparison.run import compare
from paella_jax.config import CONFIGS, ConfigError, load_config, shipped
from paella_jax.convert.recognise import RECORDS
from paella_jax.families.start import settle_config
from paella_jax.registry import FAMILIES
from paella_jax.sampling.parallel_decode import ParallelDecodeSettings
from paella_jax.sampling.renoise_settings import RenoiseSettings
from paella_jax.sampling.resample import ResampleSettings

PACKAGE = small.ROOT / "paella_jax"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory with a package named `configs` that must never be looked at."""
    folder = tmp_path / "configs"
    folder.mkdir()
    for name in ("__init__", "paella", "common", "cells"):
        (folder / f"{name}.py").write_text("raise RuntimeError('an unrelated config was read')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_configs_have_names_everywhere(elsewhere):
    by_path = load_config(str(small.ROOT / "configs" / "paella.py:tiny"))
    assert load_config("paella:tiny").to_dict() == by_path.to_dict()
    assert load_config("paella").method == "tokens"


def test_configs_have_paths_in_the_checkout(monkeypatch):
    monkeypatch.chdir(small.ROOT)
    assert load_config("configs/paella.py:tiny").to_dict() == load_config("paella:tiny").to_dict()


def test_an_unrelated_folder_named_configs_changes_nothing(elsewhere):
    """In a process of its own, whose module path begins with the working directory."""
    code = (
        "from paella_jax.config import load_config\n"
        "print(load_config('paella:tiny', ['--config.batch_size=7']).batch_size)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=elsewhere, check=False)
    assert result.stdout == "7\n", result.stderr


def test_a_file_of_ones_own_is_read_from_its_path(elsewhere):
    (elsewhere / "mine.py").write_text(
        "from paella_jax.config import load_config\n\n\n"
        "def get_config(preset='tiny'):\n"
        "    return load_config(f'paella:{preset}', ['--config.seed=5'])\n"
    )
    assert load_config("mine.py:tiny").seed == 5


def test_paths_that_a_config_holds_mean_the_package_s_own(elsewhere):
    """As those of configs/compare.py, read beside a folder `configs` of somebody else's."""
    config = load_config("compare:tiny")
    assert load_config(shipped(config.training)).method == "tokens"
    assert load_config(shipped(config.tokenizer_config)).method == "vqgan"
    assert shipped("configs/mine.py:tiny") == "configs/mine.py:tiny"


def test_unknown_names_list_the_known_ones():
    names = sorted(
        file.stem for file in CONFIGS.glob("*.py") if "def get_config" in file.read_text()
    )
    assert {"paella", "muse", "vqgan", "stage_b", "stage_c", "compare"} <= set(names)
    with pytest.raises(ConfigError, match=f"one of {', '.join(names)} as in"):
        load_config("palla:tiny")


@pytest.mark.parametrize("name", ["paella", "muse", "vqgan", "stage_c", "compare"])
def test_unknown_presets_list_the_known_ones(name):
    with pytest.raises(ValueError, match="unknown preset 'huge'") as error:
        load_config(f"{name}:huge")
    presets = ast.literal_eval(str(error.value).split("known: ")[1])
    assert "tiny" in presets
    for preset in presets:
        load_config(f"{name}:{preset}")


def test_the_commands_are_listed(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["paella_jax"])
    entry.main()
    rows = re.findall(r"^  (\w+) +(\S.+)$", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, _ in rows] == list(entry.COMMANDS)
    assert all(len(text.split()) >= 2 for _, text in rows)
    files = [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__main__.py")]
    runnable = {
        file.parent.name if file.stem == "__main__" else file.stem
        for file in files
        if 'if __name__ == "__main__"' in file.read_text()
    }
    assert runnable - {"paella_jax"} == set(entry.COMMANDS)


def test_an_unknown_command_is_named(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["paella_jax", "paint"])
    with pytest.raises(SystemExit, match=r"no command 'paint'; choose one of train, sample"):
        entry.main()


def test_there_is_one_version():
    """What is installed says what the module says; no other file repeats it."""
    assert importlib.metadata.version("paella_jax") == paella_jax.__version__
    assert "version = " not in (small.ROOT / "pyproject.toml").read_text().split("[tool")[0]


def test_methods_name_the_released_families_that_become_their_runs():
    named = sorted(name for family in FAMILIES.values() for name in family.released)
    groups = {record.family for record in RECORDS}
    assert {*named} <= groups, (named, groups)
    methods = {record.runs["method"]: record.family for record in RECORDS}
    for method, name in methods.items():
        assert name in FAMILIES[method].released


def test_a_config_of_another_command_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"paella_jax\.compare"):
        settle_config(load_config("compare:tiny"), tmp_path)
    with pytest.raises(ConfigError, match="compare:quick"):
        compare(load_config("paella:tiny"), tmp_path)


@pytest.mark.parametrize("kind", [RenoiseSettings, ParallelDecodeSettings, ResampleSettings])
def test_guidance_that_is_no_number_is_refused(kind):
    with pytest.raises(ValueError, match="guidance_scale"):
        kind(guidance_scale=(float("nan"), 2.0)).check()


def test_the_first_word_chooses_a_command(monkeypatch, capsys):
    # A process runs one command: what other tests have imported must not be there.
    monkeypatch.delitem(sys.modules, "paella_jax.average", raising=False)
    monkeypatch.setattr(sys, "argv", ["paella_jax", "average", "--help"])
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == 0 and "usage: paella_jax average" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["paella_jax", "avarage"])
    with pytest.raises(SystemExit, match="no command 'avarage'; choose one of train,"):
        entry.main()
