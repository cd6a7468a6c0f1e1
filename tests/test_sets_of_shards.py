"""Shards of two sets in one folder are never taken for one set."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from paella_jax.files.layouts import choose
from paella_jax.files.tensors import ConversionError
from paella_jax.files.weights_file import open_weights, read_weights

FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
READ = (open_weights, lambda folder: read_weights(folder, lambda name: True, "X"))


def put(file, **values):
    save_file({name: np.full(2, value, np.float32) for name, value in values.items()}, file)


def test_a_leftover_of_another_set_is_not_read(tmp_path):
    put(tmp_path / FIRST, a=1.0)
    put(tmp_path / SECOND, b=1.0)
    put(tmp_path / "model-00003-of-00003.safetensors", b=9.0)
    for read in READ:
        assert {n: float(x[0]) for n, x in read(tmp_path).items()} == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize(
    "names, words",
    [
        ([FIRST, "model-00003-of-00003.safetensors"], "of 2 shards"),
        ([FIRST, "model-1-of-2.safetensors"], "of 2 shards"),
        ([FIRST, "model-00004-of-00002.safetensors"], "of 2 shards.*model-00004"),
        ([FIRST, SECOND, "model-00001-of-00001.safetensors"], "shards of several sets"),
    ],
)
def test_all_numbers_of_one_set_are_needed(names, words):
    with pytest.raises(ConversionError, match=words):
        choose(names)


def test_a_tensor_of_two_shards_is_refused(tmp_path):
    put(tmp_path / FIRST, a=1.0, b=1.0)
    put(tmp_path / SECOND, b=2.0)
    for read in READ:
        with pytest.raises(ConversionError, match="another shard has b too"):
            read(tmp_path)


def test_with_an_index_each_tensor_is_of_its_own_shard(tmp_path):
    put(tmp_path / FIRST, a=1.0, b=1.0)
    put(tmp_path / SECOND, a=2.0, b=2.0)
    put(tmp_path / "model-00003-of-00003.safetensors", b=9.0)
    index = {"weight_map": {"a": FIRST, "b": SECOND}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for read in READ:
        assert {n: float(x[0]) for n, x in read(tmp_path).items()} == {"a": 1.0, "b": 2.0}
    put(tmp_path / SECOND, a=2.0)
    with pytest.raises(ConversionError, match="names tensors that no shard has: b"):
        open_weights(tmp_path)
