"""Würstchen's Stages B and C: what they start as, the resize's rule, and what they refuse."""

from __future__ import annotations

import math

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.convert.wuerstchen import STAGE_B, infer_stage_b, infer_stage_c
from paella_jax.files.tensors import ConversionError
from paella_jax.models.antialias_resize import antialias_resize, resize_matrix
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.stage_b import StageB
from paella_jax.models.stage_c import StageC

TEXT = Conditioning(text=jnp.ones((2, 3, 6)))
TIME = jnp.array([0.2, 1.0])


def stage_b(**fields):
    defaults = {"time_width": 8, "cond_width": 12, "widths": (16, 32), "depths": (1, 1)}
    defaults |= {"num_heads": (0, 2), "patterns": ("CT", "CTA"), "inject": (False, True)}
    return StageB(**defaults | {"guide_channels": 3} | fields)


def stage_c(**fields):
    return StageC(**{"channels": 4, "width": 32, "depth": 2, "num_heads": 2} | fields)


def start(model, x, cond=TEXT):
    return model.init(jax.random.key(0), x, TIME, cond)["params"]


def run(model, params, x, cond=TEXT):
    """The prediction, and the parts it is made of."""
    apply = lambda p, x, c, **kwargs: model.apply({"params": p}, x, TIME, c, **kwargs)
    both = lambda *inputs: (apply(*inputs), apply(*inputs, return_parts=True))
    return jax.jit(both)(params, x, cond)


@pytest.fixture(scope="module")
def params_b():
    """The guide's size changes no parameter."""
    return jax.jit(lambda: start(stage_b(), jnp.zeros((2, 4, 8, 4))))()


def test_stage_c_starts_as_the_identity_at_any_size():
    x = jax.random.normal(jax.random.key(1), (2, 3, 5, 4))
    params = jax.jit(lambda: start(stage_c(), x))()
    predicted, (a, b) = run(stage_c(), params, x)
    np.testing.assert_allclose(predicted, x, rtol=2e-5)
    assert not a.any() and not b.any()
    assert 0.015 < float(params["projection"]["kernel"].std()) < 0.025
    for name in ("text_in", "text_out"):  # narrow: one over the root of the inputs
        kernel = params[name]["kernel"]
        assert abs(float(kernel.std()) * math.sqrt(len(kernel)) - 1) < 0.15
    contract = params["block_0"]["mlp"]["contract"]["kernel"]
    # Xavier's standard deviation for 128 -> 32, times the share of one of the two repetitions.
    assert abs(float(contract.std()) / (math.sqrt(2 / 160) * math.sqrt(1 / 2)) - 1) < 0.1


def test_stage_b_starts_as_twice_its_input(params_b):
    x = jax.random.normal(jax.random.key(1), (2, 4, 8, 4))
    guide = jax.random.normal(jax.random.key(2), (2, 5, 7, 3))
    cond = TEXT.replace(guide=guide)
    predicted, (a, b) = run(stage_b(), params_b, x, cond)
    np.testing.assert_allclose(predicted, 2 * x, rtol=1e-5)
    assert not a.any()
    np.testing.assert_allclose(b, 0.5, rtol=1e-6)
    contract = params_b["down_1_block_0"]["mlp"]["contract"]["kernel"]
    assert abs(float(contract.std()) / (math.sqrt(2 / 160) * math.sqrt(1 / 2)) - 1) < 0.1
    assert 0.015 < float(params_b["up_1_guide"]["kernel"].std()) < 0.025


def test_no_guide_is_a_guide_of_zeros(params_b):
    x = jax.random.normal(jax.random.key(1), (2, 4, 8, 4))
    noise = lambda p: p + 0.1 * jax.random.normal(jax.random.key(3), p.shape)
    params = jax.tree.map(noise, params_b)
    guided = lambda guide: run(stage_b(), params, x, TEXT.replace(guide=guide))[0]
    zeros = guided(jnp.zeros((2, 5, 7, 3)))
    np.testing.assert_allclose(guided(None), zeros, atol=1e-5)
    assert not np.allclose(guided(jnp.ones((2, 5, 7, 3))), zeros, atol=1e-3)


def test_resize_keeps_constants_and_is_the_identity_at_equal_sizes():
    for sizes in ((24, 64), (24, 16), (5, 2), (1, 4), (7, 1)):
        np.testing.assert_allclose(resize_matrix(*sizes).sum(1), 1.0, atol=1e-12)
    np.testing.assert_array_equal(resize_matrix(12, 12), np.eye(12))
    x = jax.random.normal(jax.random.key(0), (1, 6, 4, 2)).astype(jnp.bfloat16)
    resized = antialias_resize(x, 6, 4)
    assert resized.dtype == jnp.float32
    np.testing.assert_array_equal(resized, x.astype(jnp.float32))


@pytest.mark.parametrize(
    "model, shape, cond, message",
    [
        (stage_b(), (2, 6, 8, 4), TEXT, "6x8 must be divisible by 4"),
        (stage_b(), (2, 8, 8, 3), TEXT, r"need \[batch, h, w, 4\]"),
        (stage_b(), (2, 8, 8, 4), Conditioning(), "needs a text"),
        (stage_b(), (2, 8, 8, 4), TEXT.replace(guide=jnp.ones((2, 3, 3, 5))), "guide has shape"),
        (stage_b(), (2, 8, 8, 4), TEXT.replace(guide=jnp.ones((1, 3, 3, 3))), "guide has shape"),
        (stage_b(inject=(True,)), (2, 8, 8, 4), TEXT, "one entry per level"),
        (stage_b(num_heads=(0, 5)), (2, 8, 8, 4), TEXT, "5 heads do not divide"),
        (stage_b(patterns=("CT", "CX")), (2, 8, 8, 4), TEXT, r"unknown block types \['X'\]"),
        (stage_b(time_width=2), (2, 8, 8, 4), TEXT, "time_width must be at least 4"),
        (stage_c(), (2, 8, 8, 3), TEXT, r"need \[batch, h, w, 4\]"),
        (stage_c(), (2, 8, 8, 4), Conditioning(), "needs a text"),
        (stage_c(num_heads=5), (2, 8, 8, 4), TEXT, "5 heads do not divide"),
        (stage_c(depth=0), (2, 8, 8, 4), TEXT, "depth must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(model, shape, cond, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: start(model, jnp.zeros(shape), cond))


def tensors_b(model):
    params = STAGE_B.names.shapes(model, 6)
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params)
    return STAGE_B.names.save(empty, model)


def test_the_first_release_is_refused():
    tensors = tensors_b(stage_b()) | {"in_mapper.0.weight": np.zeros((8192, 4), np.float32)}
    for read in (infer_stage_b, lambda x: STAGE_B.names.load(x, stage_b())):
        with pytest.raises(ConversionError, match="first Würstchen release"):
            read(tensors)


def test_files_that_are_not_whole_are_refused():
    whole = tensors_b(stage_b())
    without = lambda start: {k: x for k, x in whole.items() if not k.startswith(start)}
    for missing, message in (
        ("embedding", "embedding.1.weight, which tells its sizes, is missing"),
        ("down_blocks.1.2.", "not a whole Stage B: down_blocks.1 has blocks"),
        ("effnet_mappers.1", "unknown tensor effnet_mappers.2"),
    ):
        with pytest.raises(ConversionError, match=message):
            fields = infer_stage_b(without(missing), head_width=16)
            STAGE_B.names.load(without(missing), StageB(**fields))
    odd = whole | {"embedding.1.weight": np.zeros((16, 9, 1, 1), np.float32)}
    with pytest.raises(ConversionError, match="takes 9 channels, which are no 2x2 patches"):
        infer_stage_b(odd)
    with pytest.raises(ConversionError, match=r"not a whole Stage C: projection\.weight"):
        infer_stage_c(whole)


def test_heads_are_left_out_where_the_released_width_does_not_fit():
    assert "num_heads" not in infer_stage_b(tensors_b(stage_b()))


def test_levels_may_have_heads_of_different_widths():
    """A released layout with other heads per level, told as one head width per level."""
    model = stage_b(patterns=("CTA", "CTA"), num_heads=(4, 2))
    widths = tuple(w // n for w, n in zip(model.widths, model.num_heads, strict=True))
    assert len(set(widths)) == 2
    fields = infer_stage_b(tensors_b(model), head_width=widths)
    assert StageB(**fields).clone(dropout=model.dropout) == model
    assert "num_heads" not in infer_stage_b(tensors_b(model), head_width=(widths[0], 7))


def test_different_input_and_output_channels_are_refused():
    with pytest.raises(ValueError, match="c_in and c_out must be equal"):
        golden.stage_b_of({"c_in": 4, "c_out": 8})
