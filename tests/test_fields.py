"""The table of config fields: complete, true of every preset, and asked before any work."""

from __future__ import annotations

import json

import pytest
import small

import paella_jax
from paella_jax import cli, train
from paella_jax.config import (
    CONFIGS,
    CheckpointError,
    ConfigError,
    check_fields,
    flatten_config,
    load_config,
    load_module,
    preset_names,
    to_json,
    with_overrides,
)
from paella_jax.fields.comparison import VARIANTS
from paella_jax.fields.kinds import (
    ONE_OR_PAIR,
    ONES_OR_PAIRS,
    PAIRS,
    SEVERAL,
    STAGES,
    Field,
    number,
    text,
    whole,
    wrong,
)
from paella_jax.fields.table import FIELDS, described, problem
from paella_jax.registry import abstract_method
from paella_jax.runs.folder import read_config

PRESETS = [f"{name}:{preset}" for name, presets in preset_names().items() for preset in presets]


@pytest.fixture(scope="module")
def values():
    """Every field with all values that presets give it."""
    found = {}
    for spec in PRESETS:
        name, _, preset = spec.partition(":")
        config = load_module(CONFIGS / f"{name}.py").get_config(preset)
        for field, value in flatten_config(config).items():
            found.setdefault(field, {}).setdefault(repr(value), (value, spec))
    return found


def test_every_field_of_every_preset_has_an_entry(values):
    ours = {name for name in values if not name.startswith(VARIANTS)}
    assert ours - FIELDS.keys() == set()
    assert FIELDS.keys() - ours == {"data.group_field"}  # asked for by scores alone


def test_every_preset_is_within_its_ranges(values):
    for name, given in values.items():
        for value, spec in given.values():
            assert problem(name, value, left_open=True) == "", spec


def test_every_entry_says_what_it_means():
    for name, field in FIELDS.items():
        assert field.meaning and field.range, name
        assert field.kind in ("text", STAGES, "True or False") or field.least < field.most, name


@pytest.mark.parametrize(
    "override, words",
    [
        ("checkpoint.every=0", r"checkpoint\.every must be a whole number, at least 1 .*got 0"),
        ("log.every=0", r"log\.every must be .*at least 1 .*got 0"),
        ("batch_size=-8", r"batch_size must be .*at least 1 .*got -8"),
        ("data.image_size=0", r"data\.image_size"),
        ("model.widths=(64,-1)", r"model\.widths must be .*\(64, -1\)"),
        ("sampler.guidance_scale=(float('nan'),1.0)", r"sampler\.guidance_scale must be"),
        ("sampler.guidance_scale=(1e999,1.0)", r"sampler\.guidance_scale must be .*inf"),
        ("optim.learning_rate=-1e-3", r"optim\.learning_rate must be at least 0"),
        ("optim.beta2=1.0", r"optim\.beta2 must be at least 0 and below 1, got 1\.0"),
        ("precision=float16", r"precision must be one of float32, bfloat16"),
        ("text.num_layers=100000", r"text\.num_layers must be .*at most 512"),
        ("optim.decay_pattern=(kernel", r"optim\.decay_pattern must be a regular expression"),
        ("num_steps=None", r"num_steps must be a whole number"),
        ("seed=True", r"seed must be"),
        ("data.buckets=(1,)", r"data\.buckets must be .*in pairs as .*got \(1,\)"),
        ("data.buckets=((32,),)", r"data\.buckets must be .*got \(\(32,\),\)"),
        ("data.buckets=((32,32,32),)", r"data\.buckets must be"),
        ("model.widths=()", r"model\.widths must be"),
        ("sampler.temperature=(1.0,)", r"sampler\.temperature must be .*or a pair"),
    ],
)
def test_values_outside_of_their_range_are_refused(override, words):
    with pytest.raises(ConfigError, match=words):
        load_config("paella:tiny", [override])
    with pytest.raises(ConfigError, match=words):
        with_overrides(load_config("paella:tiny"), [override])


def test_levels_that_halve_a_width_to_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"model\.width must be at least 2, got 1: it is halved"):
        abstract_method(load_config("vqgan:tiny", ["model.width=1"]))


def test_an_unknown_network_is_refused_where_only_shapes_are_known():
    with pytest.raises(ConfigError, match=r"cell\.network must be one of unet, .*got 'gan'"):
        abstract_method(load_config("paella:tiny", ["cell.network=gan"]))


def test_none_is_for_fields_that_have_a_meaning_for_it():
    assert load_config("paella:tiny", ["checkpoint.keep=None"]).checkpoint.keep is None
    assert load_config("paella:finetune", ["model.dropout=None"]).model.dropout is None
    with pytest.raises(ConfigError, match=r"model\.dropout"):
        load_config("paella:tiny", ["model.dropout=None"])


def test_a_config_file_of_ones_own_is_checked_and_knows_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    file = tmp_path / "mine.py"
    own = "from paella_jax.config import load_config\ndef get_config():\n"
    own += "    config = load_config('paella:tiny').unlock()\n    {}\n    return config\n"
    file.write_text(own.format("config.log.every = 0"))
    with pytest.raises(ConfigError, match=r"log\.every"):
        load_config(str(file))
    file.write_text(own.format("config.data.folder = '~/photos'; config.own = 'a'"))
    assert load_config(str(file)).data.folder == "/home/me/photos"
    given = load_config("paella:tiny", ["data.folder=~/x", "data.caption=~ waves"])
    assert given.data.folder == "/home/me/x" and given.data.caption == "~ waves"


def test_stored_configs_are_checked(tmp_path):
    config = small.small_paella().unlock()
    config.checkpoint.every = -3
    (tmp_path / "config.json").write_text(to_json(config))
    with pytest.raises(CheckpointError, match=r"config\.json .*checkpoint\.every .*got -3"):
        read_config(tmp_path)
    check_fields(small.small_paella())


def test_nothing_is_written_for_a_value_that_is_refused(tmp_path, monkeypatch, capsys):
    flags = ["--config", "vqgan:tiny", "--workdir", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["train", *flags, "--config.checkpoint.every=0"])
    with pytest.raises(SystemExit) as end:
        cli.run(train.main)
    assert end.value.code == 2 and not (tmp_path / "run").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: config field checkpoint.every must be a whole number")


def test_help_shows_the_fields_of_a_preset():
    every = cli.help_on_configs()
    assert "checkpoint.every" in every and "transformer.depth" not in every
    shown = cli.help_on_configs(["--workdir", "x", "--config", "paella:tiny", "--help"])
    for name in flatten_config(load_config("paella:tiny")):
        assert f"\n  {name} " in shown, name
    assert cli.help_on_configs(["--config=paella:tiny"]) == shown
    (line,) = described({"checkpoint.every": 200})[:1]
    assert "200" in line and "a whole number, at least 1" in line


@pytest.mark.parametrize(
    "field, good, bad",
    [
        (whole(1, ""), [1, 2**20], [0, 1.0, True, "1", None, (1,), float("nan")]),
        (number(0, "", 1.0, above=True), [1, 0.5], [0, -0.1, 1.1, float("nan"), "0.5", False]),
        (number(0, "", rows=SEVERAL), [(1.0, 2), (3,)], [1.0, (), (1.0, -1.0), [None], ((1, 2),)]),
        (number(0, "", rows=ONE_OR_PAIR), [1.0, (1, 2)], [(), (1,), (1, 2, 3), ((1, 2), (1, 2))]),
        (whole(0, "", rows=PAIRS), [(), ((1, 2), (3, 4))], [1, (1,), ((1,),), ((1, 2), 3)]),
        (whole(0, "", rows=ONES_OR_PAIRS), [(1, (2, 3)), ()], [1, (1, ()), (1, (2, 3, 4))]),
        (
            Field(STAGES, ""),
            [(), (("fused", 1, 3, 1, 8, 8, 1),)],
            ["a", (1,), ((32,),), ((1, 1, 3, 1, 8, 8, 1),), (("mb", 1, 3, 1, 8, "8", 1),)],
        ),
        (text("", ("a", "b")), ["a"], ["c", 1, ""]),
        (text(""), ["", "x y"], ["\0", 3]),
    ],
)
def test_kinds(field, good, bad):
    assert not any(wrong(field, value) for value in good)
    assert all(wrong(field, value) for value in bad)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda config: config.pop("precision"),
            r"config in .*frozen, lacks the field precision",
        ),
        (lambda config: config["model"].update(deep=3), r"has the field 'deep', which its network"),
        (lambda config: config["model"].update(width=0), r"vqgan\.json .*model\.width must be"),
    ],
)
def test_a_frozen_network_s_config_is_named(tmp_path, change, words):
    run = small.untrained(tmp_path / "run", small.small_paella())
    (run / "digests.json").unlink()
    file = run / "frozen" / "vqgan.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=words):
        paella_jax.load(run)


@pytest.mark.parametrize("preset", ["paella:tiny", "muse:tiny"])
def test_an_image_smaller_than_a_code_is_refused_by_its_size(preset):
    """A network for a fixed grid would divide by the grid of no tokens."""
    config = load_config(preset, ["--config.data.image_size=3"])
    with pytest.raises(ConfigError, match=r"image size 3x3 .* multiple of 4"):
        abstract_method(config)
