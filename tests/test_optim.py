"""Optimisers: Adafactor by hand, its size and shards, which parameters decay, clear errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.training.optim import Pace, make_optimizer, make_schedule
from paella_jax.training.sharding import make_mesh, state_shardings
from paella_jax.training.state import create_state


def optim_of(**overrides):
    """MUSE's settings (docs/models/muse.md 1.2), without warm-up, clipping or decay."""
    optim = small.config_of("vqgan:tiny").optim.copy_and_resolve_references()
    values = {"kind": "adafactor", "learning_rate": 0.1, "schedule": "constant", "warmup_steps": 0,
              "beta1": 0.9, "beta2": 0.96, "weight_decay": 0.0, "clip_norm": 0.0}  # fmt: skip
    with optim.unlocked():
        optim.update(values | overrides)
    return optim


def moves(optim, params, gradients):
    """What each update adds to the parameters."""
    optimizer = make_optimizer(optim, Pace(10, optim.learning_rate))
    state, found = optimizer.init(params), []
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        found.append(jax.device_get(updates))
    return found


def by_hand(gradients, beta1, beta2, learning_rate, factored):
    """Adafactor in float64, with plain running sums divided by their weights."""
    sums, momentum, weight, momentum_weight, found = 0.0, 0.0, 0.0, 0.0, []
    for gradient in gradients:
        square = np.square(gradient.astype(np.float64)) + 1e-30
        sums = beta2 * sums + (1 - beta2) * square
        weight = beta2 * weight + (1 - beta2)
        second = sums / weight
        if factored:  # rank one, with the right sums of rows and columns
            rows, columns = second.mean(1, keepdims=True), second.mean(0, keepdims=True)
            second = rows * columns / rows.mean()
        update = gradient / np.sqrt(second)
        update = update / max(1.0, float(np.sqrt(np.square(update).mean())))
        momentum = beta1 * momentum + (1 - beta1) * update
        momentum_weight = beta1 * momentum_weight + (1 - beta1)
        found.append(-learning_rate * momentum / momentum_weight)
    return found


@pytest.mark.parametrize(
    "shape, factored", [((128, 160), True), ((100, 160), False), ((7,), False)]
)
@pytest.mark.parametrize("beta1", [0.9, 0.0])
def test_adafactor_by_hand(shape, factored, beta1):
    rng = np.random.default_rng(0)
    scales = (0.1, 3.0, 1.0, 0.01)
    gradients = [(s * rng.normal(size=shape)).astype(np.float32) for s in scales]
    params = {"w": jnp.asarray(rng.normal(size=shape), jnp.float32)}
    ours = moves(optim_of(beta1=beta1), params, [{"w": jnp.asarray(g)} for g in gradients])
    wanted = by_hand(gradients, beta1, 0.96, 0.1, factored)
    for a, b in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(a["w"], b, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon"])
def test_learning_rate_is_the_schedule(kind):
    """Neither the parameters' size nor the gradients' scales the first step."""
    optim = optim_of(kind=kind, warmup_steps=2, learning_rate=0.2)
    params = {"w": 100.0 * jnp.ones((130, 130))}
    steps = moves(optim, params, [{"w": 1e-3 * jnp.ones((130, 130))}] * 3)
    for step, wanted in zip(steps, (0.0, 0.1, 0.2), strict=True):
        np.testing.assert_allclose(step["w"], -wanted, rtol=1e-4)


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon"])
def test_decay_falls_on_the_chosen_parameters(kind):
    """Without gradient only the decay moves anything: -rate * decay * parameter."""
    params = {"block": {"kernel": jnp.full((4, 3), 2.0), "bias": jnp.full((3,), 2.0)}}
    zeros = [jax.tree.map(jnp.zeros_like, params)]
    move = lambda **k: moves(optim_of(kind=kind, weight_decay=0.045, **k), params, zeros)[0]
    np.testing.assert_allclose(move()["block"]["bias"], -0.1 * 0.045 * 2.0, rtol=1e-5)
    chosen = move(decay_pattern="block/kernel$")["block"]
    np.testing.assert_allclose(chosen["kernel"], -0.1 * 0.045 * 2.0, rtol=1e-5)
    np.testing.assert_array_equal(chosen["bias"], 0.0)


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon"])
def test_gradients_are_clipped(kind):
    """A huge second gradient counts no more than one of norm 1 would: the third step shows it."""
    params = {"w": jnp.ones((4, 4))}
    first, huge = jnp.full((4, 4), 0.25), jnp.full((4, 4), 250.0)
    clipped, same = (
        moves(optim_of(kind=kind, clip_norm=1.0), params, [{"w": g} for g in (first, g2, first)])
        for g2 in (huge, first)
    )
    np.testing.assert_allclose(clipped[2]["w"], same[2]["w"], rtol=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon"])
def test_first_moments_in_bfloat16(kind):
    """Only they change their type, and updates by no more than its rounding."""
    random = np.random.default_rng(0)
    draw = lambda: jnp.asarray(random.normal(size=(130, 140)), jnp.float32)
    params = {"layer": {"kernel": draw()}, "table": draw()}
    gradients = [jax.tree.map(lambda _: draw(), params) for _ in range(4)]
    wide, narrow = optim_of(kind=kind), optim_of(kind=kind, momentum_precision="bfloat16")
    types = lambda optim: [
        (x.shape, x.dtype)
        for x in jax.tree.leaves(make_optimizer(optim, Pace(10, 0.1)).init(params))
    ]
    was, now = types(wide), types(narrow)
    changed = [(a, b) for a, b in zip(was, now, strict=True) if a != b]
    assert changed == [(((130, 140), jnp.float32), ((130, 140), jnp.bfloat16))] * 2
    last_wide, last = moves(wide, params, gradients)[-1], moves(narrow, params, gradients)[-1]
    for a, b in zip(jax.tree.leaves(last_wide), jax.tree.leaves(last), strict=True):
        error = np.sqrt(np.square(a - b).mean() / np.square(a).mean())
        assert 0.0 < error < 0.01, error


def test_first_moments_have_no_other_type():
    with pytest.raises(ConfigError, match="momentum_precision must be one of float32, bfloat16"):
        make_optimizer(optim_of(momentum_precision="float16"), Pace(10, 0.1))


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_muon_s_first_update_is_the_gradient_with_equal_singular_values(shape):
    """Of a matrix; a table and a bias are Adam's, whose first update is the rate."""
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    gradient = {"layer": {"kernel": draw(*shape), "bias": draw(6)}, "token_table": draw(8, 5)}
    params = jax.tree.map(jnp.ones_like, gradient)
    update = moves(optim_of(kind="muon"), params, [gradient])[0]
    left, _, right = np.linalg.svd(np.float64(gradient["layer"]["kernel"]), full_matrices=False)
    inside = left.T @ update["layer"]["kernel"] @ right.T / (-0.1 * 0.2 * np.sqrt(40))
    assert (np.diag(inside) > 0.65).all() and (np.diag(inside) < 1.25).all()
    assert np.abs(inside - np.diag(np.diag(inside))).max() < 0.02
    assert np.sqrt(np.square(update["layer"]["kernel"]).mean()) < 1.25 * 0.1 * 0.2 * np.sqrt(
        40 / 24
    )
    for adams in (update["layer"]["bias"], update["token_table"]):
        np.testing.assert_allclose(np.abs(adams), 0.1, rtol=1e-3)


def matrices(count=3, width=1024):
    shape = jax.ShapeDtypeStruct((width, 4 * width), jnp.float32)
    back = jax.ShapeDtypeStruct((4 * width, width), jnp.float32)
    bias = jax.ShapeDtypeStruct((width,), jnp.float32)
    block = {"expand": {"kernel": shape, "bias": bias}, "contract": {"kernel": back}}
    stacked = jax.ShapeDtypeStruct((24, width, width), jnp.float32)
    return {"stacked": {"query": {"kernel": stacked}}} | {f"block_{i}": block for i in range(count)}


def state_of(optim):
    optimizer = make_optimizer(optim, Pace(10, optim.learning_rate))
    return jax.eval_shape(lambda p: create_state(p, {}, optimizer, False), matrices())


def size(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("warmup", [0, 5])
def test_one_program_has_cosine_schedules_of_all_lengths_and_rates(warmup):
    """To the bit what optax compiles for a length and a rate that it knows."""
    optim = optim_of(schedule="cosine", warmup_steps=warmup)
    steps = jnp.arange(40)
    rates = jax.jit(lambda pace: jax.lax.map(make_schedule(optim, pace), steps))
    for length, peak in ((1, 3e-4), (7, 3e-4), (12, 2e-3), (33, 1e-4), (100, 3e-4), (4000, 0.1)):
        known = optax.cosine_decay_schedule(peak, max(length - warmup, 1))
        expected = jax.jit(lambda known=known: jax.lax.map(known, steps - warmup))()
        found = rates(Pace(np.int32(length), np.float32(peak)))
        np.testing.assert_array_equal(found[warmup:], expected[warmup:])


def test_adafactor_state_is_small():
    """Second moments cost next to nothing; what is left is the momentum, if there is any."""
    params, adamw = size(matrices()), size(state_of(optim_of(kind="adamw")).opt_state)
    assert adamw == pytest.approx(2 * params, rel=1e-3)
    assert size(state_of(optim_of(beta1=0.0)).opt_state) < 0.005 * adamw
    assert size(state_of(optim_of()).opt_state) < 0.505 * adamw


@pytest.mark.devices(8)
@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 4, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("beta1", [0.9, 0.0])
def test_adafactor_state_shards(sizes, beta1):
    """No MeshError, and the momentum lies where its parameters lie."""
    mesh = make_mesh(ConfigDict(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))))
    state = state_of(optim_of(beta1=beta1))
    shardings = state_shardings(state, mesh)
    on_one = lambda x, s: int(np.prod(s.shard_shape(x.shape))) * x.dtype.itemsize
    local = sum(jax.tree.leaves(jax.tree.map(on_one, state, shardings)))
    assert local < 1.05 * size(state) / (sizes[1] * sizes[2])
    wanted = {s.spec for s in jax.tree.leaves(shardings.params)}
    leaves = zip(
        jax.tree.leaves(state.opt_state), jax.tree.leaves(shardings.opt_state), strict=True
    )
    momentum = {s.spec for x, s in leaves if x.size >= 2**20}
    assert momentum == ({s for s in wanted if any(s)} if beta1 else set())


@pytest.mark.devices(8)
def test_a_sharded_update_equals_a_whole_one():
    rng = np.random.default_rng(1)
    draw = lambda: {"expand": {"kernel": jnp.asarray(rng.normal(size=(256, 512)), jnp.float32)}}
    params, gradients = draw(), draw()
    optim = optim_of(weight_decay=0.045, clip_norm=1.0)
    optimizer = make_optimizer(optim, Pace(10, optim.learning_rate))
    update = lambda p, g, s: optax.apply_updates(p, optimizer.update(g, s, p)[0])
    whole = update(params, gradients, optimizer.init(params))
    mesh = make_mesh(ConfigDict({"data": 2, "fsdp": 2, "tensor": 2}))
    inputs = (params, gradients, optimizer.init(params))
    placed = jax.device_put(inputs, state_shardings(inputs, mesh))
    with jax.set_mesh(mesh):
        cut = jax.jit(update)(*placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), cut, whole)


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("kind", "sgd", "optim.kind must be one of adamw, adafactor, muon, got 'sgd'"),
        ("beta1", 1.0, "optim.beta1 must be at least 0 and below 1, got 1.0"),
        ("beta2", -0.1, "optim.beta2"),
        ("decay_pattern", "(kernel", "optim.decay_pattern .* is no regex"),
    ],
)
def test_settings_that_cannot_be(field, value, words):
    with pytest.raises(ConfigError, match=words):
        make_optimizer(optim_of(**{field: value}), Pace(10, 0.1))


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon"])
def test_a_pattern_that_matches_nothing(kind):
    """Found from shapes alone, before anything is compiled."""
    with pytest.raises(ConfigError, match=r"'weight' matches no parameter; a path looks like .*/"):
        state_of(optim_of(kind=kind, decay_pattern="weight"))
