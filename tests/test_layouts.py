"""Every layout that weights are published in: variants, shards, both formats, wrapped names."""

from __future__ import annotations

import itertools
import json
import shutil

import numpy as np
import pytest
import small
import small_clip
from converting import run
from safetensors.numpy import load_file, save_file
from small_torch import write_torch_file

from paella_jax.convert.recognise import open_parts
from paella_jax.encoders.published import load_clip_text_folder, load_t5_folder
from paella_jax.files.layouts import choose, is_plain_name
from paella_jax.files.tensors import ConversionError
from paella_jax.files.weights_file import open_weights, read_weights
from paella_jax.files.wrappers import unwrapped

GOLDEN = small.ROOT / "tests" / "golden"
WRAPPERS = ("module.", "_orig_mod.", "model.", "state_dict.", "ema.", "net.")


@pytest.fixture(scope="module")
def tensors():
    return load_file(GOLDEN / "vqgan" / "weights.safetensors")


@pytest.mark.parametrize(
    "names, chosen, told",
    [
        (["model.safetensors", "pytorch_model.bin"], "model.safetensors", "pytorch_model.bin"),
        (["pytorch_model.bin", "training_args.bin"], "pytorch_model.bin", ""),
        (["model.fp16.safetensors"], "model.fp16.safetensors", "variant fp16"),
        (["model.fp16.safetensors", "model.safetensors"], "model.safetensors", "model.fp16"),
        (["model.fp16.safetensors", "pytorch_model.bin"], "pytorch_model.bin", "model.fp16"),
        (["a-00001-of-00002.bin", "a-00002-of-00002.bin"], "a-00001-of-00002.bin", ""),
        (["last.ckpt", "optimizer.txt"], "last.ckpt", ""),
        (["model.non_ema.safetensors"], "model.non_ema.safetensors", "variant non_ema"),
        (["diffusion_pytorch_model.bf16.safetensors", "diffusion_pytorch_model.fp16.bin"],
         "diffusion_pytorch_model.bf16.safetensors", "fp16.bin"),
    ],
)  # fmt: skip
def test_which_form_is_read(names, chosen, told):
    layout, words = choose(names)
    assert layout.files[0] == chosen and told in words


@pytest.mark.parametrize(
    "names, words",
    [
        (["a.pt", "b.pt"], r"must hold one weights file.*a\.pt, b\.pt"),
        (["model.ema.safetensors", "model.non_ema.safetensors"], r"must hold one weights file"),
        (["m-00001-of-00003.safetensors"], "has 1 of 3 shards"),
    ],
)
def test_what_is_not_told_apart(names, words):
    with pytest.raises(ConversionError, match=words):
        choose(names)
    assert choose(["README.md", "config.json"]) is None


@pytest.mark.parametrize(
    "index, files",
    [
        ("model.safetensors.index.fp16.json", "model.fp16-0000{}-of-00002.safetensors"),
        ("model.fp16.safetensors.index.json", "model-0000{}-of-00002.fp16.safetensors"),
        ("", "diffusion_pytorch_model-0000{}-of-00002.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model-0000{}-of-00002.bin"),
    ],
)
def test_shards_of_variants_and_formats(tmp_path, index, files):
    shards = {}
    for number in (1, 2):
        name, array = files.format(number), np.full(3, number, np.float32)
        shards[f"t{number}"] = name
        write = save_file if name.endswith("safetensors") else lambda x, f: write_torch_file(f, x)
        write({f"t{number}": array}, tmp_path / name)
    if index:
        (tmp_path / index).write_text(json.dumps({"weight_map": shards}))
    weights = open_weights(tmp_path)
    assert {name: float(x[0]) for name, x in weights.items()} == {"t1": 1.0, "t2": 2.0}
    assert ("variant fp16" in weights.source) == ("fp16" in index)
    assert read_weights(tmp_path, lambda name: True, "X").keys() == weights.keys()
    (tmp_path / files.format(2)).unlink()
    with pytest.raises(ConversionError, match=r"lacks|has 1 of 2"):
        open_weights(tmp_path)


@pytest.mark.parametrize("name", ["../a", "/etc/hostname", "a/b", "..", "", "a\0", "x" * 300, 3])
def test_an_index_names_files_of_its_folder_alone(tmp_path, name):
    assert not is_plain_name(name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    for read in (open_weights, lambda folder: read_weights(folder, lambda name: True, "X")):
        with pytest.raises(ConversionError, match=r"index\.json names .*no file of its folder"):
            read(tmp_path)


# --- wrapped names


@pytest.mark.parametrize("first, second", list(itertools.permutations(WRAPPERS, 2)))
def test_prefixes_in_any_order(tensors, first, second):
    wrapped = {f"{first}{second}{name}": array for name, array in tensors.items()}
    found, told = unwrapped(wrapped, ["in_block.1.weight"])
    assert found.keys() == tensors.keys() and told


@pytest.mark.parametrize("form", ["pt", "safetensors"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.vq."])
def test_wrapped_weights_convert_in_either_format(tensors, form, prefix, tmp_path):
    floats = {n: x for n, x in tensors.items() if x.dtype == np.float32}
    wrapped = {f"{prefix}{name}": np.ascontiguousarray(x) for name, x in floats.items()}
    file = tmp_path / f"last.{form}"
    if form == "pt":
        write_torch_file(file, {"state_dict": wrapped, "loops": {"epoch": {}}})
    else:
        save_file(wrapped, file)
    parts = open_parts(file, "vqgan")
    assert parts.weights.keys() == floats.keys()
    assert "names without" in parts.source


def test_the_card_tells_what_was_taken_off(tensors, tmp_path):
    wrapped = {f"_orig_mod.model.{name}": x for name, x in tensors.items()}
    wrapped["_orig_mod.loss.weight"] = np.ones(3, np.float32)
    save_file(wrapped, tmp_path / "x.safetensors")
    run("--family", "vqgan", "--weights", tmp_path / "x.safetensors", "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "without the marks of compiled modules" in card and "names without 'model.'" in card
    assert "without 1 others as loss.weight" in card


def test_marks_inside_of_names():
    """Compiled, sharded and checkpointed submodules."""
    names = ["_fsdp_wrapped_module.a._orig_mod.b.weight", "a.c._checkpoint_wrapped_module.weight"]
    found, told = unwrapped(dict.fromkeys(names), ["a.b.weight"])
    assert list(found) == ["a.b.weight", "a.c.weight"] and "compiled" in told
    with pytest.raises(ConversionError, match="there twice"):
        unwrapped({"a.b": 1, "a._orig_mod.b": 2}, [])


def test_of_two_networks_the_averaged_one():
    names = ["model.a.weight", "model.b", "model_ema.a.weight", "model_ema.b"]
    found, told = unwrapped({name: name for name in names}, ["a.weight"])
    assert found == {"a.weight": "model_ema.a.weight", "b": "model_ema.b"}
    assert "not those of 'model.'" in told and "without 2 others" in told
    with pytest.raises(ConversionError, match="several such networks"):
        unwrapped(dict.fromkeys(["net.a.weight", "model.a.weight"]), ["a.weight"])


def test_names_of_other_networks_are_no_prefixes():
    """A known name at the end of one tensor among many others is no wrapper."""
    names = ["visual.blocks.0.weight", *(f"text.{i}" for i in range(9))]
    assert unwrapped(dict.fromkeys(names), ["blocks.0.weight"])[0].keys() == set(names)


def test_wrapped_encoders_load(tmp_path):
    clip = small_clip.write_clip_folder(tmp_path / "clip")
    t5 = shutil.copytree(GOLDEN / "text_encoders" / "byt5", tmp_path / "t5")
    for folder, load in ((clip, load_clip_text_folder), (t5, load_t5_folder)):
        _, expected = load(folder)
        file = folder / "model.safetensors"
        wrapped = {f"module._orig_mod.{name}": x for name, x in load_file(file).items()}
        save_file(wrapped, folder / "model.fp16.safetensors")
        file.unlink()
        _, found = load(folder)
        np.testing.assert_equal(found, expected)
