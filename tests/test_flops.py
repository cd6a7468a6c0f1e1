"""FLOP counts against hand formulas and against the tables of the reference files."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
import small
from jax import lax

from paella_jax.evaluation.flops import count_flops
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.paella import Paella
from paella_jax.models.uvit import UViT
from paella_jax.ops.attention import dot_product_attention
from paella_jax.ops.depthwise import depthwise_conv
from paella_jax.ops.linear import strided_conv, transposed_conv


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


PARAMETERS: dict[str, dict] = {}


def flops_of_network(network, *args):
    """The parameters do not depend on the inputs' sizes: traced once."""
    if repr(network) not in PARAMETERS:
        PARAMETERS[repr(network)] = jax.eval_shape(network.init, jax.random.key(0), *args)
    return count_flops(network.apply, PARAMETERS[repr(network)], *args)


def test_dense_stack():
    stack = nn.Sequential([nn.Dense(16), nn.gelu, nn.Dense(5)])
    assert flops_of_network(stack, shape(3, 7, 8)) == 2 * 3 * 7 * (8 * 16 + 16 * 5)


def test_attention_with_a_form_per_platform():
    query, key = shape(2, 6, 4, 8), shape(2, 10, 4, 8)
    assert count_flops(dot_product_attention, query, key, key) == 2 * (2 * 2 * 4 * 6 * 10 * 8)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_grouped_convolution(groups):
    network = nn.Conv(16, (3, 5), strides=(2, 1), feature_group_count=groups)
    expected = 2 * 2 * (6 * 9) * 16 * (8 // groups) * 15
    assert flops_of_network(network, shape(2, 12, 9, 8)) == expected


def test_depthwise_counts_as_the_convolution_it_is():
    x, kernel = shape(2, 6, 7, 10), shape(3, 3, 1, 10)
    assert count_flops(depthwise_conv, x, kernel) == 2 * 2 * 6 * 7 * 10 * 9


@pytest.mark.parametrize("form", ["auto", "matmul", "convolution"])
@pytest.mark.parametrize("size", [2, 4])
def test_every_form_of_the_resampling_convolutions_counts_the_same(form, size):
    x, kernel = shape(1, 6, 8, 3), shape(size, size, 3, 5)
    products = 6 * 8 * size * size * 3 * 5
    down = partial(strided_conv, implementation=form)
    up = partial(transposed_conv, implementation=form)
    assert count_flops(down, x, kernel) == 2 * products // 4
    assert count_flops(up, x, kernel) == 2 * products


def test_scan_and_counted_loops_multiply():
    def scanned(x, ws):
        return lax.scan(lambda carry, w: (carry @ w, None), x, ws)[0]

    def looped(x, ws):
        return lax.fori_loop(0, 4, lambda i, carry: scanned(carry, ws), x)

    args = shape(2, 8), shape(5, 8, 8)
    assert count_flops(scanned, *args) == 5 * 2 * 2 * 8 * 8
    assert count_flops(looped, *args) == 4 * 5 * 2 * 2 * 8 * 8


def test_cond_takes_the_costliest_branch():
    def choose(flag, x):
        return lax.cond(flag, lambda y: y @ y @ y, lambda y: y @ y, x)

    assert count_flops(choose, shape(dtype=bool), shape(4, 4)) == 2 * 2 * 4**3


def test_looks_into_jit_remat_and_custom_gradients():
    @jax.custom_vjp
    def with_vjp(x):
        return x @ x

    with_vjp.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x,))

    @jax.custom_jvp
    def with_jvp(x):
        return x @ x

    with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), tangents[0]))
    for wrapped in (with_vjp, with_jvp, jax.jit(jnp.matmul), jax.checkpoint(jnp.matmul)):
        call = wrapped if wrapped in (with_vjp, with_jvp) else lambda x, f=wrapped: f(x, x)
        assert count_flops(call, shape(4, 4)) == 2 * 4**3


def test_batched_programs_scale_with_the_batch():
    batched = jax.vmap(lambda x, w: x @ w, (0, None))
    assert count_flops(batched, shape(6, 3, 4), shape(4, 5)) == 2 * 6 * 3 * 4 * 5


def test_unknown_number_of_rounds_is_refused():
    def endless(x):
        return lax.while_loop(lambda y: y.sum() < 9.0, lambda y: y @ y, x)

    with pytest.raises(ValueError, match="number of rounds is unknown"):
        count_flops(endless, shape(4, 4))
    harmless = lambda x: lax.while_loop(lambda y: y < 9.0, lambda y: y * 2.0, x)
    assert count_flops(harmless, shape()) == 0


@pytest.mark.parametrize(
    "grid, resampled, published", [(16, False, 213.5), small.slow(32, True, 227.4)]
)
def test_amused_agrees_with_the_published_table(grid, resampled, published):
    network = UViT(downsample=resampled, upsample=resampled)
    inputs = (shape(1, grid, grid, dtype=jnp.int32), shape(1, 77, 768), shape(1, 768), shape(1, 5))
    assert flops_of_network(network, *inputs) / 1e9 == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize(
    "grid, text, published",
    [(32, 128, 172.4), small.slow(64, 64, 501.8), small.slow(64, 128, 531.0)],
)
def test_released_paella_agrees_with_the_published_table(grid, text, published):
    cond = Conditioning(
        text=shape(1, text, 2560), text_pooled=shape(1, 1024), image_pooled=shape(1, 1, 1024)
    )
    inputs = shape(1, grid, grid, dtype=jnp.int32), shape(1), cond
    assert flops_of_network(Paella(), *inputs) / 1e9 == pytest.approx(published, rel=1e-3)
