"""Weights in the type they are used in: which can be, and that nothing changes by it."""

from __future__ import annotations

import held_narrow
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from paella_jax.pipelines.narrow import narrow

BF16, F32 = jnp.bfloat16, jnp.float32
X = jnp.ones((2, 4), BF16)


def product(x, w):
    return x @ w.astype(BF16)


def scanned(w, x):
    stacked = jnp.stack([w["a"], w["b"]])
    return jax.lax.scan(lambda x, one: (product(x, one), None), x, stacked)[0]


def looped(w, x):
    body = lambda i, x: product(x, w["a"]) * w["b"][0].astype(F32).sum().astype(BF16)
    return jax.lax.fori_loop(0, x.shape[0] + 1, body, x)


READERS = {
    "rounded": (lambda w, x: product(x, w["a"]) * w["b"][:2].astype(BF16), (BF16, BF16)),
    "cut, then rounded": (lambda w, x: product(x, w["a"].T[:, :2].reshape(4, 2)), (BF16, F32)),
    "also read whole": (lambda w, x: product(x, w["a"]) + w["a"].sum() + w["b"].sum(), (F32, F32)),
    "of a loop over layers": (scanned, (BF16, BF16)),
    "of a loop of steps": (looped, (BF16, F32)),
    "inside of calls": (
        lambda w, x: jax.jit(jax.checkpoint(product))(x, w["a"]) + jax.nn.relu(w["b"]).sum(),
        (BF16, F32),
    ),
    "one branch reads it whole": (
        lambda w, x: jax.lax.cond(
            x.sum() > 0, lambda: product(x, w["a"]), lambda: (x @ w["a"] @ w["b"]).astype(BF16)
        ),
        (F32, F32),
    ),
    "both branches round": (
        lambda w, x: jax.lax.cond(
            x.sum() > 0, lambda: product(x, w["a"]), lambda: product(x, w["b"])
        ),
        (BF16, BF16),
    ),
    "returned": (lambda w, x: (w["a"], product(x, w["b"])), (F32, BF16)),
    "unread": (lambda w, x: x, (F32, F32)),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_which_weights_can_be_narrow(name):
    function, wanted = READERS[name]
    draw = lambda seed: jax.random.normal(jax.random.key(seed), (4, 4))
    weights = {"a": draw(1), "b": draw(2)}
    held = narrow(weights, (function, (X,)))
    assert (held["a"].dtype, held["b"].dtype) == wanted
    if name != "unread":
        whole, ours = jax.jit(function)(weights, X), jax.jit(function)(held, X)
        for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(ours), strict=True):
            np.testing.assert_array_equal(one, other)


def test_all_readers_count_and_shapes_are_enough():
    shapes = jax.tree.map(lambda _: jax.ShapeDtypeStruct((4, 4), F32), {"a": 0, "b": 0})
    rounds, whole = READERS["rounded"][0], READERS["also read whole"][0]
    assert narrow(shapes, (rounds, (X,)))["a"].dtype == BF16
    assert narrow(shapes, (rounds, (X,)), (whole, (X,)))["a"].dtype == F32
    half = lambda w, x: x @ w["a"].astype(jnp.float16)
    assert narrow(shapes, (rounds, (X,)), (half, (X,)))["a"].dtype == F32


def test_a_token_pipeline_draws_the_same(shared_runs, monkeypatch):
    run = shared_runs.trained(small.brief_paella())
    whole, narrowed = held_narrow.both(run, monkeypatch)
    held_narrow.check_same(whole, narrowed, narrowed.params)
