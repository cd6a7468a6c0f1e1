"""Numbers in tensors' names, which tell how deep a network is, cannot make it deeper than it is."""

from __future__ import annotations

import numpy as np
import pytest
from converting import run
from safetensors.numpy import save_file

from paella_jax.convert.blocks import index_count
from paella_jax.files.tensors import ConversionError

zeros = lambda *shape: np.zeros(shape, np.float32)
PAELLA = {"in_mapper.0.weight": zeros(4, 4), "out_mapper.1.weight": zeros(1),
          "byt5_mapper.weight": zeros(4, 4), "embedding.1.weight": zeros(4, 16, 1, 1),
          "down_blocks.0.0.depthwise.weight": zeros(1)}  # fmt: skip
VQMODEL = {"encoder.conv_in.weight": zeros(4, 3, 3, 3), "quantize.embedding.weight": zeros(4, 4),
           "encoder.conv_out.weight": zeros(4, 4, 3, 3),
           "encoder.down_blocks.0.resnets.0.conv1.weight": zeros(4, 4, 3, 3)}  # fmt: skip
# The names of one more tensor; before, each made gigabytes of lists out of a kilobyte.
BOMBS = [("paella", PAELLA, f"down_blocks.{'9' * 9}.0.depthwise.weight"),
         ("paella", PAELLA, f"down_blocks.0.{'9' * 5000}.depthwise.weight"),
         ("vqgan", VQMODEL, f"encoder.down_blocks.0.resnets.{'9' * 9}.conv1.weight"),
         ("vqgan", VQMODEL, f"encoder.down_blocks.{'9' * 9}.x")]  # fmt: skip


@pytest.mark.parametrize("family, tensors, name", BOMBS)
def test_an_index_is_below_the_number_of_tensors(family, tensors, name, tmp_path):
    save_file({**tensors, name: zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ConversionError, match=r"has an index that no network of . tensors"):
        run("--family", family, "--weights", tmp_path / "x.safetensors", "--out",
            tmp_path / "out")  # fmt: skip


def test_levels_and_blocks_together(tmp_path):
    level = lambda i: {f"encoder.down_blocks.{i}.resnets.0.conv1.weight": zeros(4, 4, 3, 3)}
    levels = {name: x for i in range(6) for name, x in level(i).items()}
    far = {"encoder.down_blocks.0.resnets.7.conv1.weight": zeros(4, 4, 3, 3)}
    save_file({**VQMODEL, **levels, **far}, tmp_path / "x.safetensors")
    with pytest.raises(ConversionError, match="6 levels of 8 blocks have more than 10 tensors"):
        run("--family", "vqgan", "--weights", tmp_path / "x.safetensors", "--out",
            tmp_path / "out")  # fmt: skip


def test_what_networks_have_is_counted():
    assert index_count({f"b.{i}.x": 0 for i in range(12)}, r"b\.(\d+)\.") == 12
    assert index_count({"b.0000000000001.x": 0, "a": 0}, r"b\.(\d+)\.") == 2
