"""Two predictors are interpolated only if their tokens mean the same."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest
import small

from paella_jax.files.tensors import ConversionError
from paella_jax.runs.digests import note_files
from paella_jax.runs.interpolate import interpolate_runs
from paella_jax.runs.weights import load_tree, save_tree


def test_predictors_on_two_tokenizers_are_refused(tmp_path):
    first = small.untrained(tmp_path / "first", small.small_paella())
    second = shutil.copytree(first, tmp_path / "second")
    assert interpolate_runs(first, second, 0.5, tmp_path / "same") > 0
    file = second / "frozen" / "vqgan.safetensors"
    variables = jax.tree.map(np.array, load_tree(file))
    variables["params"]["codebook"] = variables["params"]["codebook"][::-1].copy()
    save_tree(file, variables)
    note_files(second, ["frozen/vqgan.safetensors"])
    words = r"vqgan\.safetensors has other values \(as in params/codebook\).*the same tokenizer"
    with pytest.raises(ConversionError, match=words):
        interpolate_runs(first, second, 0.5, tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()
