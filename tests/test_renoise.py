"""The renoise sampler against a plain Python loop, and its invariances, with a made-up network."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from paella_jax.noise.tokens import sample_keys
from paella_jax.ops.categorical import draw_categorical
from paella_jax.ops.codebook import nearest_code
from paella_jax.sampling.filters import typical_filter
from paella_jax.sampling.guidance import combine, guide, guide_jointly
from paella_jax.sampling.renoise import sample
from paella_jax.sampling.renoise_settings import RenoiseSettings
from paella_jax.sampling.schedule import linear_ramp
from paella_jax.sampling.token_loop import Randomness, Start, Vocabulary

pytestmark = pytest.mark.usefixtures("keys_used_once")

GRID, CODES, BATCH = (4, 6), 24, 3
SHAPE = (BATCH, *GRID)
CODEBOOK = jax.random.normal(jax.random.key(70), (CODES, 4))
VOCABULARY = Vocabulary(CODES, codebook=CODEBOOK)
BASE = RenoiseSettings(num_steps=5, temperature=(1.0, 0.5), guidance_scale=(3.0, 2.0))


def network(seed):
    """A fixed table per position plus terms that depend on the tokens, their neighbours and t."""
    keys = jax.random.split(jax.random.key(seed), 3)
    table = jax.random.normal(keys[0], (1, *GRID, CODES))
    embedding, next_to = (jax.random.normal(k, (CODES, CODES)) for k in keys[1:])

    def predict(tokens, t):
        around = embedding[tokens] + next_to[jnp.roll(tokens, 1, axis=2)]
        return table + around * (1.5 - t).reshape(-1, 1, 1, 1)

    return predict


CONDITIONAL, UNCONDITIONAL = network(71), network(72)


def unjitted_run(key, settings, shape=SHAPE, trace=False, ramps=None, **start):
    denoise = guide(CONDITIONAL, UNCONDITIONAL)
    return sample(denoise, key, shape, settings, VOCABULARY, Start(**start), ramps, trace)


run = jax.jit(unjitted_run, static_argnames=("settings", "trace", "shape"))


def recorded(settings, seed=0):
    rng = np.random.default_rng(seed)
    masks = rng.uniform(size=(settings.num_steps, *SHAPE)).astype(np.float32)
    initial = jnp.asarray(rng.integers(0, CODES, SHAPE), jnp.int32)
    return Randomness(jnp.asarray(masks), initial=initial)


@partial(jax.jit, static_argnames=("guided", "draw", "typical"))
def predict_and_draw(tokens, t, temperature, scale, draw_keys, *, guided, draw, typical):
    """One step of docs/models/paella.md 4.1 up to the drawn tokens."""
    t = jnp.full(BATCH, t)
    logits = CONDITIONAL(tokens, t)
    if guided:
        logits = logits * scale + UNCONDITIONAL(tokens, t) * (1 - scale)
    if typical[0] is not None:
        logits = typical_filter(logits, *typical)
    if draw == "argmax":
        return jnp.argmax(logits, -1)
    if draw == "categorical":
        return jax.vmap(draw_categorical)(draw_keys, logits / temperature)
    return nearest_code(jax.nn.softmax(logits / temperature, -1) @ CODEBOOK, CODEBOOK)


def least_confident(tokens, drawn, t, scale, share):
    """Where the drawn token is among the `share` least probable of its sample, by sorting."""
    t = jnp.full(BATCH, t)
    logits = CONDITIONAL(tokens, t) * scale + UNCONDITIONAL(tokens, t) * (1 - scale)
    log_p = np.asarray(jax.nn.log_softmax(logits, -1))
    chosen = np.take_along_axis(log_p, np.asarray(drawn)[..., None], -1).reshape(BATCH, -1)
    noised = np.zeros(chosen.shape, bool)
    for row, order in enumerate(np.argsort(chosen, axis=1, kind="stable")):
        noised[row, order[: int(np.floor(share * order.size + 1e-6))]] = True
    return noised.reshape(SHAPE)


@jax.jit
def keys_of(key, step):
    """The sampler's documented keys: sample i's n-th is fold_in(fold_in(key, i), n)."""
    of_sample = lambda i, n: jax.random.fold_in(jax.random.fold_in(key, i), n)
    draw = jax.vmap(lambda i: of_sample(i, 3 * step + 2))(jnp.arange(BATCH))
    fresh = lambda i: jax.random.randint(of_sample(i, 3 * step + 3), GRID, 0, CODES, jnp.int32)
    return draw, jax.vmap(fresh)(jnp.arange(BATCH))


def plain_loop(key, settings, randomness, initial_tokens=None):
    """The formula as a Python loop over numpy arrays; returns the tokens after each step."""
    count = settings.num_steps
    limit = lambda steps, default: default if steps is None else steps
    times = linear_ramp(settings.t_start, settings.t_end, count + 1)
    temperatures = linear_ramp(*settings.temperature, count)
    scales = linear_ramp(*settings.guidance_scale, count)
    x = np.asarray(randomness.initial if initial_tokens is None else initial_tokens)
    visited = []
    for i in range(count):
        draw_keys, fresh = keys_of(key, i)
        quantize = i >= limit(settings.quantize_from_step, count)
        drawn = predict_and_draw(
            x,
            times[i],
            temperatures[i],
            scales[i],
            draw_keys,
            guided=i < limit(settings.guided_steps, count),
            draw="quantize" if quantize else settings.draw,
            typical=(settings.typical_mass, settings.typical_min_tokens),
        )
        if i < limit(settings.renoise_steps, count - 1):
            sources = {"initial": randomness.initial, "previous": x, "fresh": fresh}
            noised = randomness.uniform[i] <= times[i + 1]
            if settings.renoise_choice == "confidence":
                noised = least_confident(x, drawn, times[i], scales[i], times[i + 1])
            drawn = np.where(noised, sources[settings.renoise_mode], drawn)
        x = np.asarray(drawn, np.int32)
        visited.append(x)
    return np.stack(visited)


VARIANTS = {
    "categorical": {},
    "argmax": {"draw": "argmax"},
    "quantize": {"draw": "quantize"},
    "quantize from step 2": {"quantize_from_step": 2},
    "previous": {"renoise_mode": "previous"},
    "fresh": {"renoise_mode": "fresh"},
    "argmax, fresh": {"draw": "argmax", "renoise_mode": "fresh"},
    "guidance stops": {"guided_steps": 3},
    "guidance stops, then quantize": {"guided_steps": 2, "quantize_from_step": 4},
    "never guided": {"guided_steps": 0},
    "renoise stops": {"renoise_steps": 2},
    "never renoised": {"renoise_steps": 0},
    "typical": {"typical_mass": 0.4, "typical_min_tokens": 2},
    "partial": {"t_start": 0.6, "t_end": 0.1},
    "lowest confidence": {"renoise_choice": "confidence"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_scan_equals_a_python_loop(name):
    settings = replace(BASE, **VARIANTS[name])
    key, randomness = jax.random.key(1), recorded(BASE)
    start = None
    if settings.t_start < 1:
        start = jax.random.randint(jax.random.key(2), SHAPE, 0, CODES, jnp.int32)
    final, visited = run(key, settings, trace=True, randomness=randomness, initial_tokens=start)
    np.testing.assert_array_equal(visited, plain_loop(key, settings, randomness, start))
    np.testing.assert_array_equal(final, visited[-1])
    assert final.dtype == jnp.int32 and final.shape == SHAPE


def test_variants_differ():
    """Every setting above must change the result, or the loop test proves nothing."""
    key, randomness = jax.random.key(1), recorded(BASE)
    results = {
        plain_loop(key, replace(BASE, **changes), randomness).tobytes()
        for changes in VARIANTS.values()
    }
    assert len(results) == len(VARIANTS)


def test_trace_changes_nothing_and_own_randomness_is_used():
    plain = run(jax.random.key(3), BASE)
    final, visited = run(jax.random.key(3), BASE, trace=True)
    np.testing.assert_array_equal(plain, final)
    assert visited.shape == (BASE.num_steps, *SHAPE)
    assert not np.array_equal(plain, run(jax.random.key(4), BASE))


def test_a_sample_depends_on_the_key_and_its_index_only():
    key, settings = jax.random.key(5), replace(BASE, renoise_mode="fresh")
    many = np.asarray(run(key, settings, shape=(8, *GRID)))
    assert len(np.unique(many.reshape(8, -1), axis=0)) == 8
    order = jnp.array([6, 1, 7])
    picked = run(sample_keys(key, order), settings, shape=(3, *GRID))
    np.testing.assert_array_equal(picked, many[order])
    alone = run(sample_keys(key, jnp.array([7])), settings, shape=(1, *GRID))
    np.testing.assert_array_equal(alone[0], many[7])


@pytest.mark.devices(8)
def test_one_device_and_eight_give_the_same_tokens():
    settings = replace(BASE, renoise_mode="fresh")
    key, shape, index = jax.random.key(6), (16, *GRID), jnp.arange(100, 116)
    single = run(sample_keys(key, index), settings, shape=shape)
    devices = np.array(jax.devices()[:8]).reshape(2, 4, 1)
    mesh = Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    by_batch = NamedSharding(mesh, P(("fsdp", "data")))
    sharded = jax.jit(
        lambda key, index: unjitted_run(sample_keys(key, index), settings, shape=shape),
        out_shardings=by_batch,
    )(jax.device_put(key, NamedSharding(mesh, P())), jax.device_put(index, by_batch))
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_array_equal(sharded, single)


def equations(jaxpr):
    """All equations of a jaxpr, nested ones too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def jaxpr_of(settings, trace=False):
    draw = lambda key: unjitted_run(key, settings, trace=trace)
    return jax.make_jaxpr(draw)(jax.random.key(0)).jaxpr


@pytest.mark.parametrize("trace", [False, True])
def test_no_scan_carries_or_stacks_logits(trace):
    settings = replace(BASE, guided_steps=3, quantize_from_step=4)
    loops = [e for e in equations(jaxpr_of(settings, trace)) if e.primitive.name == "scan"]
    loops = [e for e in loops if e.params["length"] in (3, 1) and e.params["num_carry"] == 1]
    assert [e.params["length"] for e in loops] == [3, 1, 1]
    for loop in loops:
        shapes = [v.aval.shape for v in loop.outvars]
        stacked = [(loop.params["length"], *SHAPE)] if trace else []
        assert shapes == [SHAPE, *stacked]
        assert all(v.aval.dtype == jnp.int32 for v in loop.outvars)


def test_guidance_that_stops_calls_the_unconditional_network_less():
    calls = []

    def counted(name, predict):
        def counting(tokens, t):
            jax.debug.callback(lambda: calls.append(name))
            return predict(tokens, t)

        return counting

    denoise = guide(counted("cond", CONDITIONAL), counted("uncond", UNCONDITIONAL))
    variants = [({"guided_steps": n}, min(n, 5)) for n in (0, 2, 5, 9)]
    for changes, unconditional in [*variants, ({}, 5), ({"guidance_scale": (1.0, 1.0)}, 0)]:
        calls.clear()
        settings = replace(BASE, draw="argmax", **changes)
        call = lambda randomness, settings=settings: sample(
            denoise,
            jax.random.key(0),
            SHAPE,
            settings,
            VOCABULARY,
            Start(randomness=randomness),
        )
        jax.jit(call)(recorded(BASE)).block_until_ready()
        jax.effects_barrier()
        assert (calls.count("cond"), calls.count("uncond")) == (5, unconditional), changes


def test_joint_guidance_gives_the_same_tokens():
    def both(tokens, t):
        tokens, t = jnp.split(tokens, 2), jnp.split(t, 2)
        return jnp.concatenate([CONDITIONAL(tokens[0], t[0]), UNCONDITIONAL(tokens[1], t[1])])

    settings, key, randomness = replace(BASE, guided_steps=4), jax.random.key(7), recorded(BASE)
    denoise, start = guide_jointly(CONDITIONAL, both), Start(randomness=randomness)
    call = jax.jit(lambda: sample(denoise, key, SHAPE, settings, VOCABULARY, start))
    np.testing.assert_array_equal(call(), plain_loop(key, settings, randomness)[-1])


def test_one_program_serves_all_ramps():
    """Temperatures and guidance weights given as an array equal those of the settings."""
    for changes in ({"temperature": (0.9, 0.2)}, {"guidance_scale": (1.0, 6.0)}):
        settings = replace(BASE, **changes)
        shared = run(jax.random.key(5), settings.without_ramps(), ramps=settings.ramps())
        np.testing.assert_array_equal(run(jax.random.key(5), settings), shared)
        assert settings.without_ramps() == BASE.without_ramps()
    unguided = replace(BASE, guidance_scale=(1.0, 1.0))
    assert unguided.without_ramps() != BASE.without_ramps()


def test_guidance_formula():
    cond, uncond = jnp.array([1.0, 3.0]), jnp.array([2.0, -1.0])
    np.testing.assert_allclose(combine(cond, uncond, 1.0), cond)
    np.testing.assert_allclose(combine(cond, uncond, 0.0), uncond)
    np.testing.assert_allclose(combine(cond, uncond, 8.0), uncond + 8.0 * (cond - uncond))


@pytest.mark.parametrize("renoise_steps", [None, 5, 99])
@pytest.mark.parametrize("num_steps", [1, 5])
def test_the_last_step_never_renoises(num_steps, renoise_steps):
    """Even where the last level is high: the result is a draw, not noise."""
    settings = replace(
        BASE, num_steps=num_steps, renoise_steps=renoise_steps, t_end=0.9, draw="argmax"
    )
    draw = lambda index, logits, keys: jnp.full(SHAPE, index, jnp.int32)
    noise = Randomness(jnp.zeros((num_steps, *SHAPE)), initial=jnp.full(SHAPE, -1))
    _, visited = jax.jit(partial(sampled_with, settings, draw))(noise)
    assert (visited[:-1] == -1).all() and (visited[-1] == num_steps - 1).all()


def sampled_with(settings, draw, randomness):
    key = jax.random.key(8)
    return unjitted_run(key, settings, trace=True, randomness=randomness, draw=draw)


def test_own_draw_sees_the_step_and_the_divided_logits():
    """A draw that repeats the built-in one gives the same tokens, in every segment."""
    settings = replace(BASE, guided_steps=2, quantize_from_step=4)
    randomness = recorded(BASE)

    def draw(index, logits, keys):
        quantized = nearest_code(jax.nn.softmax(logits, -1) @ CODEBOOK, CODEBOOK)
        return jnp.where(index < 4, jax.vmap(draw_categorical)(keys, logits), quantized)

    _, visited = jax.jit(partial(sampled_with, settings, draw))(randomness)
    np.testing.assert_array_equal(visited, plain_loop(jax.random.key(8), settings, randomness))


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_steps": 0},
        {"t_start": 1.2},
        {"t_start": 0.3, "t_end": 0.4},
        {"t_end": -0.1},
        {"temperature": (0.7, 0.0)},
        {"renoise_mode": "start"},
        {"draw": "multinomial"},
        {"guided_steps": -1},
        {"renoise_steps": -1},
        {"quantize_from_step": -1},
        {"typical_mass": 1.0},
        {"typical_mass": 0.2, "typical_min_tokens": 0},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_named(wrong):
    name = list(wrong)[-1] if "typical_mass" in wrong else next(iter(wrong))
    with pytest.raises(ValueError, match=f"sampler setting {name}="):
        run(jax.random.key(0), replace(BASE, **wrong))


def test_quantize_needs_a_codebook():
    with pytest.raises(ValueError, match="codebook"):
        denoise = guide(CONDITIONAL, UNCONDITIONAL)
        settings = replace(BASE, draw="quantize")
        sample(denoise, jax.random.key(0), SHAPE, settings, Vocabulary(CODES))
