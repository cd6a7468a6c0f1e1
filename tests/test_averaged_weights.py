"""Of a network and its average in one file the average is taken, whatever the format."""

from __future__ import annotations

import time

import numpy as np
import pytest
from safetensors.numpy import save_file
from small_torch import write_torch_file

from paella_jax.convert.recognise import without_wrappers
from paella_jax.files.tensors import ConversionError
from paella_jax.files.weights_file import open_weights
from paella_jax.files.wrappers import unwrapped

PAIRS = [("model", "ema"), ("state_dict", "ema_state_dict"), ("params", "params_ema"),
         ("model", "model_ema"), ("state_dict", "ema")]  # fmt: skip


@pytest.mark.parametrize("form", ["pt", "safetensors"])
@pytest.mark.parametrize("plain, averaged", PAIRS)
def test_the_average_is_taken(plain, averaged, form, tmp_path):
    network = lambda value: {n: np.full(2, value, np.float32) for n in ("a.weight", "b.weight")}
    content = {plain: network(1.0), averaged: network(2.0)}
    file = tmp_path / f"x.{form}"
    if form == "pt":
        write_torch_file(file, content)
    else:
        flat = {f"{key}.{n}": x for key, inner in content.items() for n, x in inner.items()}
        save_file(flat, file)
    found = without_wrappers(open_weights(file), ["a.weight"])
    assert {name: float(x[0]) for name, x in found.items()} == {"a.weight": 2.0, "b.weight": 2.0}
    assert plain in found.source  # what was left is told


def test_an_average_beside_a_network_without_a_prefix():
    names = ["a.weight", "b", "ema.a.weight", "ema.b"]
    found, _ = unwrapped({name: name for name in names}, ["a.weight"])
    assert found == {"a.weight": "ema.a.weight", "b": "ema.b"}


def test_what_is_kept_beside_an_average_is_no_network(tmp_path):
    network = {f"{n}.weight": np.zeros(2, np.float32) for n in "abc"}
    file = tmp_path / "x.pt"
    write_torch_file(file, {"model": network, "ema": {"step": np.zeros(1, np.float32)}})
    assert open_weights(file).keys() == network.keys()


def test_ema_is_a_word_of_its_own():
    names = ["schema.a.weight", "model.a.weight", "schema.b", "semantic.b", "schema.c"]
    with pytest.raises(ConversionError, match=r"several such networks, behind 'model.*'schema"):
        unwrapped(dict.fromkeys(names), ["a.weight"])


def test_prefixes_are_found_in_one_pass():
    """16 000 names, each with a beginning of its own, took 28 s."""
    names = [f"tower{i}.a.weight" for i in range(16_000)]
    begin = time.process_time()
    assert unwrapped(dict.fromkeys(names), ["a.weight"])[0].keys() == set(names)
    dots = "." * 400_000
    assert unwrapped({f"{dots}a.weight": 1}, ["a.weight"])[0].keys() == {f"{dots}a.weight"}
    assert time.process_time() - begin < 3
