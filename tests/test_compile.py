"""Compiling presets for a mesh without any file: full-width networks, few layers, eight devices."""

from __future__ import annotations

import jax
import pytest
import small

from paella_jax.compile import compile_preset
from paella_jax.config import ConfigError
from paella_jax.families import abstract
from paella_jax.training.lora import LARGE_BYTES, frozen_shardings
from paella_jax.training.sharding import MeshError, make_mesh

MIB = 2**20


@pytest.fixture
def shallow(monkeypatch):
    """The released encoders with one layer each."""
    for name in ("BYT5_XL", "CLIP_TEXT", "CLIP_VISION"):
        monkeypatch.setattr(abstract, name, getattr(abstract, name).clone(num_layers=1))


@pytest.mark.slow
def test_the_released_width_compiles_for_eight_devices(shallow):
    config = small.config_of("paella:1b", model__depths="(1,1,1)", batch_size=8)
    report = compile_preset(config)
    assert report["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    assert report["trained_parameters"] > 80_000_000
    # Parameters and both moments of the optimiser, float32, an eighth each, and little else.
    share = 3 * 4 * report["trained_parameters"] / 8 / MIB
    assert share < report["arguments_mib"] < 1.1 * share + 4 * report["frozen_parameters"] / MIB
    assert report["collectives"]["all-gather"] > 50


def test_a_small_preset_compiles_with_every_axis():
    config = small.small_paella(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    report = compile_preset(config)
    assert report["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
    assert report["collectives"]["all-reduce"] > 0
    vqgan = compile_preset(small.small_vqgan())
    assert vqgan["trained_parameters"] > 10_000 and vqgan["frozen_parameters"] == 0


def test_large_frozen_networks_are_sharded():
    mesh = make_mesh(small.config_of("paella:1b").mesh)
    array = lambda *shape: jax.ShapeDtypeStruct(shape, "float32")
    large = {"kernel": array(LARGE_BYTES // 1024, 512)}
    shardings = frozen_shardings({"large": large, "small": {"kernel": array(8, 8)}}, mesh)
    assert not shardings["large"]["kernel"].is_fully_replicated
    assert shardings["small"].is_fully_replicated


def test_what_cannot_be_compiled_is_named():
    with pytest.raises(MeshError, match="batch_size"):
        compile_preset(small.small_paella(batch_size=12))
    with pytest.raises(ConfigError, match="cannot be compiled without its files"):
        compile_preset(small.config_of("clip_prior:tiny"))
