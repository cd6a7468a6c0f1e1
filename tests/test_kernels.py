"""Kernels and generators that a config chooses: the same numbers, and what is refused."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from jax.experimental.pallas import tpu as pltpu
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.encoders.clip_text import ClipText
from paella_jax.encoders.clip_vision import ClipVision
from paella_jax.encoders.t5 import T5Encoder
from paella_jax.encoders.text import joint_text_encoder
from paella_jax.models.blocks import AttentionBlock, kept_by
from paella_jax.noise.generators import dropout_key
from paella_jax.ops import attention
from paella_jax.ops.attention import dot_product_attention
from paella_jax.ops.target import compiling_for
from paella_jax.sampling.guidance import FEW_POSITIONS, runs_jointly
from paella_jax.training.sharding import make_mesh


def heads(length, seed, dtype=jnp.float32, width=8):
    return jax.random.normal(jax.random.key(seed), (2, length, 4, width), dtype)


def test_every_kernel_of_this_machine_agrees_with_the_formula():
    query, key, value = heads(6, 1), heads(5, 2), heads(5, 3)
    mask = jnp.arange(5)[None] < jnp.array([[5], [2]])
    scores = np.einsum("bnhd,bmhd->bhnm", query, key) / np.sqrt(8)
    scores = np.where(mask[:, None, None], scores, -np.inf)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    wanted = np.einsum("bhnm,bmhd->bnhd", weights, value)
    for kernel in (None, "auto", "xla"):
        ours = dot_product_attention(query, key, value, key_mask=mask, implementation=kernel)
        np.testing.assert_allclose(ours, wanted, rtol=2e-5, atol=2e-6)


def test_gradients_in_bfloat16_are_those_of_float32():
    """Their way back through the scores is our own; the smallest error it can have is rounding."""
    wide = [heads(length, seed) for length, seed in ((6, 1), (5, 2), (5, 3))]
    mask = jnp.arange(5)[None] < jnp.array([[5], [2]])
    loss = lambda *given: jnp.square(
        dot_product_attention(*given, key_mask=mask).astype(jnp.float32)
    ).sum()
    wanted = jax.grad(loss, (0, 1, 2))(*wide)
    ours = jax.grad(loss, (0, 1, 2))(*(x.astype(jnp.bfloat16) for x in wide))
    for narrow, exact in zip(ours, wanted, strict=True):
        assert narrow.dtype == jnp.bfloat16
        error = jnp.linalg.norm(narrow.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
        assert error < 0.03, error


def test_a_kernel_that_is_not_there_is_refused_with_those_that_are(monkeypatch):
    given = heads(6, 1), heads(5, 2), heads(5, 3)
    with pytest.raises(
        ValueError, match=r"attention 'triton' must be one of auto, xla, cudnn, flash"
    ):
        dot_product_attention(*given, implementation="triton")
    with pytest.raises(ValueError, match=r"needs a TPU, this is cpu: auto or xla"):
        dot_product_attention(*given, implementation="flash")
    with pytest.raises(ValueError, match=r"needs an NVIDIA GPU, this is cpu: auto or xla"):
        dot_product_attention(*given, implementation="cudnn")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for wrong, word in (
        (heads(6, 1), "bfloat16 or float16, not float32"),
        (heads(6, 1, jnp.bfloat16, 12), "a multiple of 8, got 12"),
        (heads(6, 1, jnp.bfloat16, 256), "up to 128 channels"),
        (heads(5, 1, jnp.bfloat16), "even number of queries, got 5"),
    ):
        with pytest.raises(ValueError, match=word):
            dot_product_attention(wrong, wrong, wrong, implementation="cudnn")


@pytest.mark.parametrize("masked", [True, False])
def test_cudnn_is_given_whole_lengths_and_what_is_real(masked, monkeypatch):
    """Its call stands for itself here: keys filled up to 8, and nothing of the filling seen."""
    seen = {}

    def stand_in(query, key, value, *, implementation, **options):
        seen.update(options, implementation=implementation, length=key.shape[1])
        return whole(query, key, value, implementation="xla", **options)

    whole = jax.nn.dot_product_attention
    query, key, value = heads(6, 1), heads(5, 2), heads(5, 3)
    mask = jnp.arange(5)[None] < jnp.array([[5], [2]]) if masked else None
    wanted = dot_product_attention(query, key, value, key_mask=mask)
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    ours = attention._by_cudnn(query, key, value, mask)
    np.testing.assert_allclose(ours, wanted, rtol=2e-5, atol=2e-6)
    assert (seen["implementation"], seen["length"]) == ("cudnn", 8)
    assert ("mask" in seen) == masked


ENCODERS = {
    "t5": T5Encoder(9, 32, 2, 4, 8, 16, dtype=jnp.bfloat16),
    "looped t5": T5Encoder(9, 32, 3, 4, 8, 16, loop=True, dtype=jnp.bfloat16),
    "clip text": ClipText(32, 2, 4, 16, vocab_size=9, max_length=7, dtype=jnp.bfloat16),
    "clip vision": ClipVision(32, 2, 4, 16, image_size=8, patch_size=2, dtype=jnp.bfloat16),
}


@pytest.mark.parametrize("kernel", ["cudnn", "auto"])
@pytest.mark.parametrize("name", list(ENCODERS))
def test_frozen_encoders_by_cudnn(name, kernel, monkeypatch):
    """Its call stands for itself here, on odd lengths, with biases and padding."""
    encoder, calls = ENCODERS[name], []
    if name == "clip vision":
        given = (jax.random.normal(jax.random.key(1), (2, 8, 8, 3)),)
    else:
        given = (jnp.arange(14).reshape(2, 7) % 9, jnp.arange(7)[None] < jnp.array([[7], [3]]))
    variables = encoder.init(jax.random.key(0), *given)
    wanted = jax.tree.leaves(encoder.apply(variables, *given))[0].astype(jnp.float32)

    def stand_in(query, key, value, **options):
        calls.append((query.shape[1], options.pop("implementation"), query.dtype))
        assert "bias" not in options or options["bias"].dtype == query.dtype
        return whole(query, key, value, implementation="xla", **options)

    whole = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    ours = jax.tree.leaves(encoder.clone(kernel=kernel).apply(variables, *given))[0]
    length = 24 if name == "clip vision" else 8
    assert set(calls) == {(length, "cudnn", jnp.dtype("bfloat16"))}
    np.testing.assert_allclose(ours.astype(jnp.float32), wanted, atol=0.06)


def test_encoders_refuse_kernels_that_they_do_not_have(monkeypatch):
    given = jnp.zeros((1, 4), jnp.int32)
    for kernel, words in (("cudnn", "needs an NVIDIA GPU"), ("flash", "none of frozen encoders")):
        with pytest.raises(ValueError, match=words):
            ENCODERS["t5"].clone(kernel=kernel).init(jax.random.key(0), given)
    text = small.config_of("paella:tiny", text__attention="cudnn").text
    with pytest.raises(ConfigError, match="is for frozen encoders; this one trains along"):
        joint_text_encoder(text, "bfloat16")


@pytest.mark.parametrize("masked", [True, False])
def test_the_tpu_s_kernel_gives_the_same_forward_and_back(masked):
    """Interpreted, of sizes that are no whole blocks."""
    draw = lambda length, seed: jax.random.normal(jax.random.key(seed), (1, length, 1, 8))
    query, key, value = draw(130, 1), draw(140, 2), draw(140, 3)
    mask = jnp.arange(140)[None] < 133 if masked else None
    loss = lambda attend: lambda *given: jnp.square(attend(*given)).sum()
    plain = partial(dot_product_attention, key_mask=mask)
    flash = lambda *given: attention._by_flash(*given, mask)
    with pltpu.force_tpu_interpret_mode():
        # As one program that is waited for: the interpreter calls Python, which once waited for
        # ever while this thread started further operations.
        ours = jax.jit(jax.value_and_grad(loss(flash), (0, 1, 2)))(query, key, value)
        jax.block_until_ready(ours)
    theirs = jax.value_and_grad(loss(plain), (0, 1, 2))(query, key, value)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)


@pytest.mark.devices(8)
def test_the_tpu_s_kernel_is_given_a_device_s_part_of_the_batch():
    """The compiler refuses to cut it. A batch that does not divide takes the products."""
    mesh = make_mesh(ConfigDict({"data": 2, "fsdp": 2, "tensor": 2}))
    draw = lambda count, seed: jax.random.normal(jax.random.key(seed), (count, 10, 2, 8))
    for count, cut in ((4, True), (3, False)):
        given = [draw(count, seed) for seed in (1, 2, 3)]
        wanted = dot_product_attention(*given)
        with jax.set_mesh(mesh), pltpu.force_tpu_interpret_mode():
            ours = jax.jit(lambda *x: attention._by_flash(*x, None))
            assert ("shard_map" in str(ours.trace(*given).jaxpr)) == cut
            np.testing.assert_allclose(ours(*given), wanted, rtol=2e-3, atol=2e-4)


def test_a_wanted_kernel_that_drops_no_probabilities_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    given = [heads(6, seed, jnp.bfloat16) for seed in (1, 2, 3)]
    with pytest.raises(ValueError, match="'cudnn' drops no probabilities: set attention_dropout"):
        dot_product_attention(
            *given, dropout_rate=0.1, dropout_key=jax.random.key(0), implementation="cudnn"
        )


def test_dropout_of_the_output_drops_no_probabilities():
    x, text = jnp.ones((1, 2, 2, 8)), jnp.ones((1, 3, 8))
    outputs = {}
    for dropped in ("probabilities", "output"):
        block = AttentionBlock(2, dropout=0.5, attention_dropout=dropped)
        variables = block.init(jax.random.key(0), x, text)
        apply = lambda seed, block=block, variables=variables: block.apply(
            variables, x, text, deterministic=False, rngs={"dropout": jax.random.key(seed)}
        )
        outputs[dropped] = np.asarray(apply(1))
        assert (outputs[dropped] != np.asarray(apply(2))).any()
        text_of = lambda block=block, variables=variables: str(
            jax.make_jaxpr(
                lambda: block.apply(
                    variables, x, text, deterministic=False, rngs={"dropout": jax.random.key(1)}
                )
            )()
        )
        shape = "2,4,7" if dropped == "probabilities" else "1,4,8"
        assert shape in text_of().replace(" ", "")
    assert (outputs["probabilities"] != outputs["output"]).any()
    with pytest.raises(ValueError, match="attention_dropout 'all' must be of"):
        AttentionBlock(2, attention_dropout="all").init(jax.random.key(0), x, text)


def test_what_a_recomputed_block_keeps():
    assert kept_by("nothing") is None and callable(kept_by("products"))
    with pytest.raises(ValueError, match="remat_keeps 'all' must be one of nothing, products"):
        kept_by("all")


def test_generators_of_dropout():
    key = jax.random.key(7)
    assert dropout_key(key, "auto") is key and dropout_key(key, "threefry") is key
    hardware = dropout_key(key, "rbg")
    assert str(jax.random.key_impl(hardware)) == "rbg"
    kept = np.asarray(jax.random.bernoulli(hardware, 0.9, (20_000,)))
    assert abs(kept.mean() - 0.9) < 0.01
    again = jax.random.bernoulli(dropout_key(key, "rbg"), 0.9, (20_000,))
    np.testing.assert_array_equal(kept, again)
    other = jax.random.bernoulli(dropout_key(jax.random.key(8), "rbg"), 0.9, (20_000,))
    assert (np.asarray(other) != kept).any()
    drawn = lambda: jax.random.key_impl(dropout_key(key, "auto"))
    with compiling_for("gpu"):
        assert drawn() == jax.random.key_impl(dropout_key(key, "rbg"))
    assert drawn() == jax.random.key_impl(key)
    with pytest.raises(ValueError, match="dropout_generator 'mt' must be one of"):
        dropout_key(key, "mt")


def test_where_guidance_is_one_call(monkeypatch):
    assert runs_jointly(True, 1e9) and not runs_jointly(False, 1)
    assert not runs_jointly(None, 1)  # of a CPU
    with compiling_for("tpu"):
        assert runs_jointly(None, 1), "a plan is of the device it names"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert runs_jointly(None, FEW_POSITIONS) and not runs_jointly(None, FEW_POSITIONS + 1)
    assert not runs_jointly(False, 1)
