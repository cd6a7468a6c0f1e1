"""A single file of original names comes back whole: trained text encoder, heads, own layers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import small
from converting import run, same
from safetensors.numpy import load_file, save_file

import paella_jax
from paella_jax.files.safetensors_file import read_notes, write_safetensors
from paella_jax.files.tensors import ConversionError
from paella_jax.runs.checkpoint import restore_variables
from paella_jax.runs.folder import WEIGHTS_FILE, prepare_workdir, read_config
from paella_jax.runs.weights import save_tree
from paella_jax.sharing.portable import portable

pytestmark = pytest.mark.devices(8)
PREFIX = "paella_jax."
# Heads that no width tells, and settings that no tensor does.
CHANGES = {"model__widths": "(32,)", "model__patterns": "('CTA',)", "model__num_heads": "(2,)",
           "sampler__num_steps": 3, "data__image_size": 32}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A Paella whose small text encoder trained along, and the run of its tokenizer."""
    folder = tmp_path_factory.mktemp("single")
    tokenizer = prepare_workdir(folder / "vqgan", small.small_vqgan())
    variables = small.random_tokenizer()
    tree = {"params": {"vqgan": variables["params"]},
            "model_state": {"vqgan": variables["batch_stats"]}}  # fmt: skip
    save_tree(tokenizer / WEIGHTS_FILE, tree)
    return small.untrained(folder / "run", small.small_paella(**CHANGES)), tokenizer


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("file") / "paella.safetensors"
    run("--export", "original", "--checkpoint", trained[0], "--out", out)
    return out


def test_a_run_comes_back_whole_and_draws_the_same_bits(trained, file, tmp_path, capsys):
    source, tokenizer = trained
    tensors = load_file(file)
    own = {name for name in tensors if name.startswith(PREFIX)}
    # The text encoder, and the layers for texts found by their context and read as words.
    assert {name.removeprefix(PREFIX).partition("/")[0] for name in own} == {
        "predictor", "text_encoder",
    }  # fmt: skip
    assert "byt5_mapper.weight" in tensors
    back = tmp_path / "back"
    run("--family", "paella", "--weights", file, "--tokenizer", tokenizer, "--out", back)
    shown = capsys.readouterr().out
    assert "from its own config: " in shown and "model.num_heads=(2,)" in shown
    assert "cannot draw yet" not in shown
    same(restore_variables(back)[1], restore_variables(source)[1])
    theirs, ours = portable(read_config(source)), portable(read_config(back))
    assert theirs.to_dict() == ours.to_dict()
    draw = lambda folder: paella_jax.load(folder).generate("a red circle", seed=4).tokens
    np.testing.assert_array_equal(draw(back), draw(source))


def test_without_its_tokenizer_it_says_so(file, tmp_path, capsys):
    run("--family", "paella", "--weights", file, "--out", tmp_path / "back")
    shown = capsys.readouterr().out
    assert "lacks frozen networks. Convert again with `--tokenizer VQGAN_RUN`" in shown


def test_another_precision_and_other_settings(trained, file, tmp_path):
    run("--family", "paella", "--weights", file, "--out", tmp_path / "back", "--dtype", "bfloat16",
        "--config.sampler.num_steps=7")  # fmt: skip
    assert read_config(tmp_path / "back").sampler.num_steps == 7
    params = restore_variables(tmp_path / "back")[1]["params"]
    assert params.keys() == {"predictor", "text_encoder"}
    assert str(params["text_encoder"]["final_norm"]["scale"].dtype) == "bfloat16"


def test_no_path_of_the_machine_is_in_the_header(file):
    notes = read_notes(file)
    assert json.loads(notes["paella_jax"])["tokenizer"] == "" and str(small.ROOT) not in str(notes)


@pytest.mark.parametrize(
    "note, words",
    [
        ("{", "the config in its header is damaged; export it again"),
        ("{}", "the config in its header is damaged; export it again"),
        (json.dumps({"method": "vqgan"}), "are a paella's, the config in its header is a vqgan's"),
    ],
)
def test_a_damaged_header(file, note, words, tmp_path):
    write_safetensors(tmp_path / "x.safetensors", load_file(file), notes={"paella_jax": note})
    with pytest.raises(ConversionError, match=words):
        run("--family", "paella", "--weights", tmp_path / "x.safetensors", "--out",
            tmp_path / "out")  # fmt: skip


def test_a_file_without_its_header_is_read_by_its_shapes(file, tmp_path):
    """Other programs may have dropped it: what the tensors do not tell must then be given."""
    save_file(load_file(file), tmp_path / "x.safetensors")
    with pytest.raises(ConversionError, match="do not tell the number of attention heads"):
        run("--family", "paella", "--weights", tmp_path / "x.safetensors", "--out",
            tmp_path / "out")  # fmt: skip


def changed(file, out, tensors=None, **fields):
    """The file with further tensors, and other values in its header's config."""
    config = json.loads(read_notes(file)["paella_jax"])
    for name, value in fields.items():
        *blocks, last = name.split("__")
        (config[blocks[0]] if blocks else config)[last] = value
        if value is None:
            del (config[blocks[0]] if blocks else config)[last]
    notes = {"paella_jax": json.dumps(config)}
    write_safetensors(out, {**load_file(file), **(tensors or {})}, notes=notes)
    return out


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"model__width": "x"}, "model.width must be"),
        ({"batch_size": -5}, "batch_size must be"),
        ({"zzz": 1}, "not known here: zzz"),
        ({"model": 3}, "not known here: model"),
        ({"text__width": None}, "makes no network .*width"),
        ({"method": 3}, "names no method"),
    ],
)
def test_a_config_in_a_header_is_held_against_the_fields(file, fields, words, tmp_path):
    odd = changed(file, tmp_path / "x.safetensors", **fields)
    with pytest.raises(ConversionError, match=f"config in its header .*{words}"):
        run("--family", "paella", "--weights", odd, "--out", tmp_path / "out")


def test_a_header_names_no_place_of_this_machine(trained, file, tmp_path):
    """Else a stranger's file would take along a run of ours, or train on a folder of ours."""
    named = {"tokenizer": str(trained[1]), "data__folder": "../private/photos"}
    odd = changed(file, tmp_path / "x.safetensors", **named)
    run("--family", "paella", "--weights", odd, "--out", tmp_path / "out")
    config = read_config(tmp_path / "out")
    assert (config.tokenizer, config.data.folder) == ("", "photos")
    assert not (tmp_path / "out" / "frozen").exists()


@pytest.mark.parametrize(
    "name, shape, words",
    [
        ("junk/x", (3,), r"junk/x \(\(3,\), a run has none\)"),
        ("text_encoder/x", (3,), "text_encoder/x .*a run has none"),
        ("text_encoder/final_norm/scale", (3,), r"scale \(\(3,\), a run has \(\d+,\)\)"),
        ("predictor/more/kernel", (3,), "/more/kernel .*a run has none"),
        ("predictor", (3,), "predictor.* is no parameter"),
        ("text_encoder/final_norm", (3,), "scale is no parameter"),
    ],
)
def test_tensors_of_ours_are_those_that_such_a_run_has(file, name, shape, words, tmp_path):
    tensors = {f"{PREFIX}{name}": np.ones(shape, np.float32)}
    odd = changed(file, tmp_path / "x.safetensors", tensors)
    with pytest.raises(ConversionError, match=words):
        run("--family", "paella", "--weights", odd, "--out", tmp_path / "out")
