"""Compiling presets for a mesh without any file: full-width networks, few layers, eight devices."""

from __future__ import annotations

from functools import partial

import jax
import pytest
import small

from paella_jax.compile.preset import compile_preset
from paella_jax.compile.programs import token_sampling
from paella_jax.compile.show import as_table, as_text
from paella_jax.compile.targets import parse_target
from paella_jax.config import ConfigError
from paella_jax.families import abstract, networks
from paella_jax.ops.target import compiling_for
from paella_jax.registry import abstract_method
from paella_jax.sampling.guidance import FEW_POSITIONS
from paella_jax.training.sharding import LARGE_BYTES, MeshError, frozen_shardings, make_mesh

pytestmark = pytest.mark.devices(8)
MIB = 2**20


@pytest.fixture
def shallow(monkeypatch):
    """The released encoders with one layer each."""
    for name in ("CLIP_TEXT", "CLIP_VISION", "CLIP_L_TEXT"):
        monkeypatch.setattr(abstract, name, getattr(abstract, name).clone(num_layers=1))
    for width, encoder in abstract.FROZEN_TEXT.items():
        monkeypatch.setitem(abstract.FROZEN_TEXT, width, encoder.clone(num_layers=1))


@pytest.fixture
def narrow_tokenizers(monkeypatch):
    """Tokenizers are most of a small program; these tests are not about them."""
    vqgan = partial(networks.VQGAN, bottleneck_blocks=1, width=16)
    f16 = partial(abstract.VQModel, widths=(8,) * 5, blocks_per_level=1, norm_groups=4)
    monkeypatch.setattr(networks, "VQGAN", vqgan)
    monkeypatch.setattr(abstract, "VQModel", f16)


@pytest.mark.slow
def test_the_released_width_compiles_for_eight_devices(shallow, narrow_tokenizers):
    """Two of its levels, of the full width."""
    levels = {"widths": "(640,1280)", "depths": "(1,1)", "num_heads": "(0,20)",
              "patterns": "('CT','CTA')"}  # fmt: skip
    fields = {f"model__{name}": value for name, value in levels.items()}
    report = compile_preset(small.config_of("paella:1b", batch_size=8, **fields))
    assert report["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    assert report["trained_parameters"] > 60_000_000
    # Parameters and both moments of the optimiser, float32, an eighth each, and little else.
    share = 3 * 4 * report["trained_parameters"] / 8 / MIB
    assert share < report["arguments_mib"] < 1.1 * share + 4 * report["frozen_parameters"] / MIB
    assert report["collectives"]["all-gather"] > 50


@pytest.mark.slow
def test_a_tensor_axis_holds_less_of_muse_than_whole_copies(shallow):
    """The 3B preset's recipe and text width with two narrow layers."""
    sizes = {"width": 512, "depth": 2, "num_heads": 4, "feed_forward_width": 2048}
    fields = {f"transformer__{name}": value for name, value in sizes.items()}
    fields |= {"batch_size": 8, "data__image_size": 64, "transformer__remat": False}
    fields["transformer__loop"] = False
    whole = compile_preset(small.config_of("muse:3b", mesh__data=-1, mesh__fsdp=1, **fields))
    cut = compile_preset(small.config_of("muse:3b", mesh__fsdp=-1, mesh__tensor=2, **fields))
    assert cut["mesh"] == {"data": 1, "fsdp": 4, "tensor": 2}
    assert cut["trained_parameters"] == whole["trained_parameters"] > 10_000_000
    assert cut["teraflops"] == whole["teraflops"] > 0
    ours, theirs = cut["held_mib_of"], whole["held_mib_of"]
    assert theirs["parameters"] == round(4 * whole["trained_parameters"] / MIB)
    for name in ("parameters", "optimizer", "frozen text_encoder"):
        assert ours[name] < 0.2 * theirs[name], name  # an eighth, and what divides less
    assert cut["arguments_mib"] < 0.5 * whole["arguments_mib"]
    unread = ours["frozen vqgan"]  # the tokenizer's decoder is held, but no argument
    assert -len(ours) <= sum(ours.values()) - cut["arguments_mib"] <= unread
    assert cut["peak_mib"] >= cut["arguments_mib"] + cut["temporaries_mib"] - 1
    # Megatron's: one sum over the axis behind each attention and each MLP, forward at least.
    assert cut["collectives"]["all-reduce"] >= 6 * sizes["depth"] // 2
    # The batch stays where it is: without ops/batch_axis.py XLA moves it in every layer (26 times).
    assert cut["collectives"].get("all-to-all", 0) <= 6


def test_super_resolution_needs_no_tokenizer_of_small_pictures(narrow_tokenizers):
    layers = {"width": 64, "depth": 1, "num_heads": 4, "feed_forward_width": 128}
    enlarger = {f"super_resolution__{name}": value for name, value in layers.items()}
    shapes = small.config_of("muse:super_resolution_tiny", batch_size=8, **enlarger)
    report = compile_preset(shapes)
    assert report["held_mib_of"].keys() >= {"frozen vqgan", "frozen low_vqgan"}


@pytest.mark.slow
def test_a_small_preset_compiles_with_every_axis(narrow_tokenizers):
    """And its report, told as a page and as a row."""
    config = small.small_paella(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    report = compile_preset(config, parse_target("cpu:8"))
    assert report["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
    assert report["collectives"]["all-reduce"] > 0
    assert report["target"] == "cpu:8 (8 devices)" and "verdict" not in report
    assert report["replicated_mib_of"].keys() <= report["held_mib_of"].keys()
    page, table = as_text(report), as_table([{"config": "paella:tiny"} | report])
    assert f"peak {report['peak_mib']}" in page and "all-reduce" in page
    assert table.splitlines()[2].startswith("| `paella:tiny` | cpu:8 | 2 x 2 x 2 | 8 in 1 |")
    vqgan = compile_preset(small.small_vqgan())
    assert vqgan["trained_parameters"] > 10_000 and vqgan["frozen_parameters"] == 0


OTHERS = {
    "resnet_vqgan:tiny": {
        "model__widths": "(8,8)", "model__latent_channels": 4, "model__code_channels": 4,
        "model__norm_groups": 4, "model__encoder_attention": "(False,False)",
        "model__decoder_attention": "(False,False)", "model__codebook_size": 32},
    "clip_prior:tiny": {"model__num_blocks": 1, "model__width": 16},
    "stage_b:tiny": {"model__widths": "(16,)", "model__depths": "(1,)", "model__cond_width": 16,
                     "compressor__train": "False"},
    "stage_c:tiny": {"model__width": 16, "model__depth": 1, "text__width": 8,
                     "text__num_heads": 1, "text__hidden_dim": 8, "text__num_layers": 1},
    "direct_decoder:tiny": {"model__width": 8},
}  # fmt: skip
FROZEN = {"stage_b:tiny": {"vqgan", "compressor"}, "stage_c:tiny": {"compressor"},
          "direct_decoder:tiny": {"compressor"}}  # fmt: skip


SLOW = ("resnet_vqgan:tiny", "direct_decoder:tiny")


@pytest.mark.parametrize("name", [small.slow(n) if n in SLOW else n for n in OTHERS])
def test_every_method_compiles_without_files(name):
    report = compile_preset(small.config_of(name, batch_size=8, **OTHERS[name]))
    frozen = {held.removeprefix("frozen ") for held in report["held_mib_of"] if "frozen" in held}
    assert report["trained_parameters"] > 0 and frozen == FROZEN.get(name, set())


@pytest.mark.slow
def test_released_stages_are_conditioned_on_the_published_towers():
    """docs/models/wuerstchen.md 1 and 6."""
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    stage_c = abstract_method(small.config_of("stage_c:v2"))
    assert count(jax.eval_shape(stage_c.init, jax.random.key(0))[0]) == 993_636_896
    assert count(stage_c.frozen["text_encoder"]) > 690_000_000
    stage_b = abstract_method(small.config_of("stage_b:v2"))
    assert count(stage_b.frozen["text_encoder"]) < 360_000_000


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
    with pytest.raises(ConfigError, match=r"trains on from another run: give --config\.init_from"):
        compile_preset(small.config_of("stage_c:v2_1024"))


def test_a_step_from_encoded_data_has_no_frozen_networks():
    """Its tokens are in the batch: fewer products, and no tokenizer is held."""
    config = small.small_paella()
    whole, encoded = (compile_preset(config, program=name) for name in ("train", "encoded"))
    assert encoded["program"] == "encoded" and encoded["micro_batches"] == 1
    assert encoded["teraflops"] < whole["teraflops"]
    assert "frozen vqgan" in whole["held_mib_of"] and "frozen vqgan" not in encoded["held_mib_of"]
    with pytest.raises(ConfigError, match="must be one of train, encoded, sample"):
        compile_preset(config, program="serve")


def test_a_sampler_is_planned_by_the_images_of_one_device():
    config = small.config_of("muse:tiny")
    with compiling_for("gpu"):
        height, width = token_sampling(config, 1).form.grid
        images = 2 * FEW_POSITIONS // (height * width)
        assert not token_sampling(config, images).form.joint
        assert token_sampling(config, images, devices=2).form.joint
    assert not token_sampling(config, 1).form.joint
