"""The released sizes, without computing anything: parameters, FLOPs, a sharded train step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from paella_jax.convert.amused import AMUSED, infer_uvit
from paella_jax.convert.vqgan import VQMODEL
from paella_jax.convert.wuerstchen import STAGE_B, STAGE_C, infer_stage_b, infer_stage_c
from paella_jax.evaluation.flops import count_flops
from paella_jax.families.vqgan import make_vqgan
from paella_jax.models.clip_prior import ClipPrior
from paella_jax.models.compressor import Compressor
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.paella import Paella
from paella_jax.models.stage_b import StageB
from paella_jax.models.stage_c import StageC
from paella_jax.models.uvit import UViT
from paella_jax.models.vqmodel import VQModel

Shape = jax.ShapeDtypeStruct
RELEASED: list[dict] = []


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def gigaflops(function, *shapes):
    return jax.jit(function).lower(*shapes).cost_analysis()["flops"] / 1e9


def abstract_conditioning(batch, text_length, config):
    """Shapes of text states and CLIP vectors as the released model takes them."""
    text = Shape((batch, text_length, config.text.width), jnp.float32)
    image = Shape((batch, 1, 1024), jnp.float32)
    return Conditioning(
        text=text, text_pooled=Shape((batch, 1024), jnp.float32), image_pooled=image
    )


def released(side, text_length):
    """The released predictor, and shapes of its parameters and inputs."""
    config = small.config_of("paella:1b")
    # XLA's own count, which these tests hold ours against, takes a loop for one round of it.
    model = Paella(**config.model).clone(loop=False)
    cond = abstract_conditioning(1, text_length, config)
    inputs = (Shape((1, side, side), jnp.int32), Shape((1,), jnp.float32), cond)
    if not RELEASED:  # the same for inputs of every size
        RELEASED.append(jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x), *inputs))
    return model, RELEASED[0], inputs


def test_predictor_parameters():
    _, params, _ = released(8, 4)
    assert count(params) == 1_008_350_592


def test_tokenizer_parameters():
    model = make_vqgan(small.config_of("vqgan:f4"))
    images = Shape((1, 16, 16, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    assert count(variables["params"]) == 18_406_894


# docs/models/paella.md 7: GFLOP of one forward pass, matrix products and convolutions alone.
@pytest.mark.parametrize(
    "side, text_length, reference",
    [small.slow(32, 128, 172.4), small.slow(64, 64, 501.8), small.slow(128, 128, 2088.9)],
)
def test_predictor_flops(side, text_length, reference):
    model, params, inputs = released(side, text_length)
    ours = gigaflops(model.apply, params, *inputs)
    print(f"{side}x{side} tokens: {ours:.1f} GFLOP, reference {reference}")
    assert 0.97 * reference < ours < 1.03 * reference


def test_tokenizer_flops():
    """By our own count: XLA takes the loop over strips for one round of it."""
    model = make_vqgan(small.config_of("vqgan:f4"))
    images, tokens = Shape((1, 256, 256, 3), jnp.float32), Shape((1, 64, 64), jnp.int32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    for method, given, reference in (
        ("encode_tokens", images, 29.2 + 0.27),  # the quantiser's distances
        ("decode_tokens", tokens, 135.8),
    ):
        call = lambda v, x, method=method: model.apply(v, x, method=method)
        ours = count_flops(call, variables, given) / 1e9
        print(f"{method}: {ours:.1f} GFLOP, reference {reference}")
        assert 0.97 * reference < ours < 1.03 * reference


def test_prior_flops():
    model = ClipPrior()
    inputs = (
        Shape((1, 1024), jnp.float32),
        Shape((1,), jnp.float32),
        Shape((1, 1024), jnp.float32),
    )
    params = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x), *inputs)
    assert count(params) == 899_770_624
    assert abs(gigaflops(model.apply, params, *inputs) / 1.80 - 1) < 0.03


# docs/models/wuerstchen.md 7: GFLOP at 384 and 768 px.
@pytest.mark.parametrize(
    "variant, backbone, references",
    [small.slow("s", 20_177_488, (16.7, 66.9)), small.slow("l", 117_234_272, (71.8, 287.1))],
)
def test_compressor_size(variant, backbone, references):
    model = Compressor(variant=variant)
    images = lambda side: Shape((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images(32))
    mapper = count(variables["params"]["mapper"])
    assert (count(variables["params"]) - mapper, mapper) == (backbone, 20_512)
    for side, reference in zip((384, 768), references, strict=True):
        ours = gigaflops(model.apply, variables, images(side))
        print(f"{variant} at {side}: {ours:.1f} GFLOP, reference {reference}")
        assert abs(ours / reference - 1) < 0.03


STAGE_B_PARTS = {
    "text": 1_049_600,
    "guides": 104_448,
    "embedding": 5_440,
    "output": 10_272,
    "down_0": 3_472_640,
    "down_1": 33_992_320,
    "down_2": 373_111_040,
    "down_3": 112_221_440,
    "up_3": 112_221_440,
    "up_2": 379_664_000,
    "up_1": 35_630_400,
    "up_0": 3_882_240,
}


def stage_b_part(name):
    """The part of the reference's table a parameter group of Stage B belongs to."""
    if name.endswith("_guide"):
        return "guides"
    return "_".join(name.split("_")[:2]) if name.startswith(("down_", "up_")) else name


def test_stage_b_parameters():
    params = STAGE_B.names.shapes(StageB(), 1024)
    parts = dict.fromkeys(STAGE_B_PARTS, 0)
    for name, group in params.items():
        parts[stage_b_part(name)] += count(group)
    assert parts == STAGE_B_PARTS
    assert count(params) == 1_055_365_280


def test_stage_c_parameters():
    """The released model, the first release's and the paper's text."""
    params = STAGE_C.names.shapes(StageC(), 1280)
    blocks = {name: group for name, group in params.items() if name.startswith("block_")}
    assert count(blocks) == 989_233_152
    assert count(params) == 993_636_896
    assert count(STAGE_C.names.shapes(StageC(), 1024)) == 993_243_680
    paper = StageC(width=1280, depth=16, num_heads=16)
    assert count(STAGE_C.names.shapes(paper, 1024)) == 347_037_472


@pytest.mark.parametrize(
    "stage, model, text_width, names",
    [("b", StageB(), 1024, (814, 990)), ("c", StageC(), 1280, (520, 648))],
)
def test_stages_are_told_from_their_files(stage, model, text_width, names):
    """The released files' numbers of tensors, and their architecture from shapes alone."""
    released, infer = {"b": (STAGE_B, infer_stage_b), "c": (STAGE_C, infer_stage_c)}[stage]
    params = released.names.shapes(model, text_width)
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), params)
    for diffusers, expected in zip((False, True), names, strict=True):
        tensors = released.names.save(empty, model, diffusers=diffusers, copy=False)
        assert len(tensors) == expected
        fields = infer(tensors)
        assert "num_heads" in fields and type(model)(**fields) == model


# docs/models/wuerstchen.md 7: GFLOP of one forward pass, matrix products and convolutions alone.
# XLA also counts norms and activations: 0.9 % more for Stage C, 1.3 % for Stage B.
@pytest.mark.parametrize(
    "height, width, reference",
    [small.slow(24, 24, 1153.8), small.slow(24, 36, 1761.8)],
)
def test_stage_c_flops(height, width, reference):
    model = StageC()
    params = STAGE_C.names.shapes(model, 1280)
    cond = Conditioning(text=Shape((1, 77, 1280), jnp.float32))
    latents = Shape((1, height, width, 16), jnp.float32)
    inputs = (latents, Shape((1,), jnp.float32), cond)
    ours = gigaflops(lambda p, *x: model.apply({"params": p}, *x), params, *inputs)
    print(f"Stage C {height}x{width}: {ours:.1f} GFLOP, reference {reference}")
    assert 0.97 * reference < ours < 1.03 * reference


@pytest.mark.parametrize("side, reference", [small.slow(128, 641.9), small.slow(256, 2857.9)])
def test_stage_b_flops(side, reference):
    model = StageB()
    params = STAGE_B.names.shapes(model, 1024)
    text, guide = Shape((1, 77, 1024), jnp.float32), Shape((1, 24, 24, 16), jnp.float32)
    cond = Conditioning(text=text, guide=guide)
    inputs = (Shape((1, side, side, 4), jnp.float32), Shape((1,), jnp.float32), cond)
    ours = gigaflops(lambda p, *x: model.apply({"params": p}, *x), params, *inputs)
    print(f"Stage B {side}x{side}: {ours:.1f} GFLOP, reference {reference}")
    assert 0.97 * reference < ours < 1.03 * reference


# docs/models/muse.md 2.4: tensors and parameters of the two released transformers.
@pytest.mark.parametrize(
    "resampled, tensors, parameters", [(False, 474, 603_537_664), (True, 478, 608_257_792)]
)
def test_amused_transformer(resampled, tensors, parameters):
    """aMUSEd-256 and -512, and that their files tell their architecture."""
    model = UViT(downsample=resampled, upsample=resampled)
    params = AMUSED.names.shapes(model)
    assert count(params) == parameters
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), params)
    exported = AMUSED.names.save(empty, model, copy=False)
    assert len(exported) == tensors
    fields = infer_uvit(exported)
    assert "num_heads" in fields and UViT(**fields) == model


def test_amused_tokenizer():
    model = VQModel()
    assert model.downsampling == 16
    params = VQMODEL.names.shapes(model)
    encoder = {n: p for n, p in params.items() if n.startswith(("encoder", "latents"))}
    decoder = {n: p for n, p in params.items() if n.startswith(("decoder", "codes_"))}
    assert count(params) == 146_244_675
    assert params["codebook"].size == 8192 * 64
    assert count(encoder) + count(decoder) + params["codebook"].size == count(params)
    assert round(count(encoder) / 1e6, 2) == 58.70 and round(count(decoder) / 1e6, 2) == 87.02


# docs/models/muse.md 5: GFLOP of one forward pass with 77 text positions.
@pytest.mark.parametrize(
    "side, resampled, reference", [small.slow(16, False, 213.5), small.slow(32, True, 227.4)]
)
def test_amused_transformer_flops(side, resampled, reference):
    model = UViT(downsample=resampled, upsample=resampled)
    inputs = (
        Shape((1, side, side), jnp.int32),
        Shape((1, 77, 768), jnp.float32),
        Shape((1, 768), jnp.float32),
        Shape((1, 5), jnp.float32),
    )
    call = lambda params, *x: model.apply({"params": params}, *x)
    ours = gigaflops(call, AMUSED.names.shapes(model), *inputs)
    print(f"{side}x{side} tokens: {ours:.1f} GFLOP, reference {reference}")
    assert 0.97 * reference < ours < 1.03 * reference


def test_amused_tokenizer_flops():
    """Convolutions behind upsampling need 4 of 9 products (ops/upsampled_conv.py)."""
    widths, sides = (768, 512, 256, 256), (32, 64, 128, 256)
    enlarging = sum(18 * c * c * side**2 for c, side in zip(widths, sides, strict=True)) / 1e9
    model = VQModel()
    variables = {"params": VQMODEL.names.shapes(model)}
    images, tokens = Shape((1, 256, 256, 3), jnp.float32), Shape((1, 16, 16), jnp.int32)
    for method, given, reference in (
        ("encode_tokens", images, 216.3 + 0.27),
        ("decode_tokens", tokens, 477.4 - 5 / 9 * enlarging),
    ):
        call = lambda v, x, method=method: model.apply(v, x, method=method)
        ours = count_flops(call, variables, given) / 1e9
        print(f"{method}: {ours:.1f} GFLOP, reference {reference}")
        assert 0.97 * reference < ours < 1.03 * reference
