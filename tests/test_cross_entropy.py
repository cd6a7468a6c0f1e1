"""Chunked cross-entropy against the formula, its memory, and its behaviour on a mesh."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from paella_jax.ops.cross_entropy import chunked_cross_entropy

pytestmark = pytest.mark.usefixtures("highest_precision")


def inputs(batch=2, height=4, width=6, features=8, classes=24, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, height, width, features)).astype(np.float32)
    kernel = rng.normal(size=(features, classes)).astype(np.float32)
    return x, kernel, rng.integers(0, classes, (batch, height, width)).astype(np.int32)


def by_definition(x, kernel, targets, smoothing):
    """torch.nn.functional.cross_entropy(label_smoothing=...): uniform mass on every class."""
    logits = np.float64(x) @ np.float64(kernel)
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    classes = kernel.shape[1]
    wanted = (1 - smoothing) * np.eye(classes)[targets] + smoothing / classes
    return -(wanted * log_p).sum(-1), logits.argmax(-1) == targets


@pytest.mark.parametrize("chunks", [1, 2, 24])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_against_the_definition(smoothing, chunks):
    x, kernel, targets = inputs()
    score = partial(chunked_cross_entropy, smoothing=smoothing, chunks=chunks)
    scores = jax.jit(score)(x, kernel, targets)
    loss, correct = by_definition(x, kernel, targets, smoothing)
    np.testing.assert_allclose(scores.loss, loss, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(scores.correct, correct)
    assert 0 < np.mean(correct) < 1


def test_large_logits_stay_finite():
    x, kernel, targets = inputs()
    scores = jax.jit(partial(chunked_cross_entropy, smoothing=0.1))(1e3 * x, kernel, targets)
    loss, _ = by_definition(1e3 * x, kernel, targets, 0.1)
    np.testing.assert_allclose(scores.loss, loss, rtol=1e-5)


def test_bfloat16_features_give_float32_losses():
    x, kernel, targets = inputs(features=64)
    half = jnp.asarray(x, jnp.bfloat16)
    scores = jax.jit(partial(chunked_cross_entropy, chunks=2))(half, kernel, targets)
    assert scores.loss.dtype == scores.correct.dtype == jnp.float32
    rounded = [np.asarray(jnp.asarray(a, jnp.bfloat16), np.float32) for a in (x, kernel)]
    loss, _ = by_definition(*rounded, targets, 0.0)
    np.testing.assert_allclose(scores.loss, loss, atol=1e-4, rtol=1e-4)


@partial(jax.jit, static_argnames="chunks")
def loss_and_gradients(x, kernel, targets, weight, chunks):
    def loss(x, kernel):
        scores = chunked_cross_entropy(x, kernel, targets, smoothing=0.1, chunks=chunks)
        return (scores.loss * weight).sum()

    return jax.value_and_grad(loss, argnums=(0, 1))(x, kernel)


@pytest.mark.parametrize("chunks", [2, 3, 8, 24])
def test_chunks_change_neither_value_nor_gradients(chunks):
    x, kernel, targets = inputs()
    weight = np.random.default_rng(1).uniform(0.3, 1, targets.shape).astype(np.float32)
    whole = loss_and_gradients(x, kernel, targets, weight, chunks=1)
    cut = loss_and_gradients(x, kernel, targets, weight, chunks=chunks)
    for ours, theirs in zip(jax.tree.leaves(cut), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_gradient_is_the_closed_form():
    """d loss / d logits = softmax - smoothed target."""
    x, kernel, targets = inputs()
    _, (grad_x, grad_kernel) = loss_and_gradients(x, kernel, targets, np.ones_like(x[..., 0]), 4)
    p = np.asarray(jax.nn.softmax(x @ kernel, axis=-1))
    grad_logits = p - 0.9 * np.eye(24)[targets] - 0.1 / 24
    np.testing.assert_allclose(grad_x, grad_logits @ kernel.T, atol=1e-5)
    expected = np.einsum("bhwc,bhwv->cv", x, grad_logits)
    np.testing.assert_allclose(grad_kernel, expected, atol=2e-5)


def test_memory_of_the_compiled_gradient():
    """Logits of one chunk at a time, in the backward pass too."""
    abstract = jax.ShapeDtypeStruct
    arguments = (
        abstract((2, 32, 32, 64), jnp.float32),
        abstract((64, 8192), jnp.float32),
        abstract((2, 32, 32), jnp.int32),
        abstract((2, 32, 32), jnp.float32),
    )
    share = {}
    for chunks in (1, 16):
        compiled = loss_and_gradients.lower(*arguments, chunks=chunks).compile()
        memory = compiled.memory_analysis()
        share[chunks] = memory.temp_size_in_bytes / (2 * 32 * 32 * 8192 * 4)
        print(f"{chunks} chunks: {share[chunks]:.3f} logits arrays")
    assert share[1] > 1 and share[16] < 0.2


def test_chunks_that_do_not_divide_the_positions_are_refused():
    with pytest.raises(ValueError, match=r"chunks 5 must divide the 24 positions"):
        chunked_cross_entropy(*inputs(), chunks=5)


@pytest.mark.devices(8)
@pytest.mark.parametrize("chunks", [1, 4])
def test_a_sharded_batch_stays_sharded(chunks):
    devices = np.array(jax.devices()[:8]).reshape(2, 4, 1)
    axes = ("data", "fsdp", "tensor")
    mesh = Mesh(devices, axes, axis_types=(AxisType.Auto,) * 3)
    by_batch = NamedSharding(mesh, P(("fsdp", "data")))
    x, kernel, targets = inputs(batch=8)
    weight = np.ones(targets.shape, np.float32)
    single = loss_and_gradients(x, kernel, targets, weight, chunks=chunks)
    put = lambda array: jax.device_put(array, by_batch)
    kernel_everywhere = jax.device_put(kernel, NamedSharding(mesh, P()))
    arguments = (put(x), kernel_everywhere, put(targets))
    sharded = loss_and_gradients(*arguments, put(weight), chunks=chunks)
    for ours, theirs in zip(jax.tree.leaves(sharded), jax.tree.leaves(single), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=1e-5)
    assert sharded[1][0].sharding.is_equivalent_to(by_batch, 4)
    score = jax.jit(partial(chunked_cross_entropy, smoothing=0.1, chunks=chunks))
    scores = score(*arguments)
    assert scores.loss.sharding.is_equivalent_to(by_batch, 3)
    assert "all-gather" not in score.lower(*arguments).compile().as_text()
    np.testing.assert_allclose(scores.loss, score(x, kernel, targets).loss, atol=1e-5)
