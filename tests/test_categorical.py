"""Both ways of drawing a class: distribution, edge cases, memory of the compiled draw."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.ops.categorical import draw_categorical, draw_gumbel, draw_inverse_cdf

DRAWS = 200_000
FORMS = ("inverse_cdf", "gumbel")


def log_probabilities(classes, forbidden=(), seed=0, spread=1.5):
    logits = np.random.default_rng(seed).normal(0, spread, classes).astype(np.float32)
    logits[list(forbidden)] = -np.inf
    return logits


def softmax(logits):
    mass = np.exp(np.float64(logits) - np.max(logits))
    return mass / mass.sum()


@partial(jax.jit, static_argnums=(2, 3))
def draw_many(key, logits, implementation, count):
    """Draws independently at `count` positions."""
    logits = jnp.broadcast_to(logits, (count, logits.shape[0]))
    return draw_categorical(key, logits, implementation=implementation)


def counts(logits, implementation, seed=0):
    tokens = draw_many(jax.random.key(seed), jnp.asarray(logits), implementation, DRAWS)
    assert tokens.dtype == jnp.int32
    return np.bincount(np.asarray(tokens), minlength=len(logits))


def check_distribution(seen, expected):
    """Chi-square at five standard deviations; classes without mass must never appear."""
    assert seen.sum() == DRAWS and len(seen) == len(expected)
    assert not seen[expected == 0].any()
    likely = expected > 0
    wanted = DRAWS * expected[likely]
    chi_square = ((seen[likely] - wanted) ** 2 / wanted).sum()
    degrees = likely.sum() - 1
    assert abs(chi_square - degrees) < 5 * np.sqrt(2 * degrees), (chi_square, degrees)


CASES = {
    "24 classes": (24, ()),
    "first, last and a whole group without mass": (24, (0, 8, 9, 10, 11, 12, 13, 14, 15, 23)),
    "prime": (23, ()),
    "prime, ends without mass": (23, (0, 1, 2, 20, 21, 22)),
    "twice a prime": (46, (0, 45)),
    "one group": (2, ()),
}


@pytest.mark.parametrize("implementation", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_draws_follow_the_softmax(case, implementation):
    logits = log_probabilities(*CASES[case])
    check_distribution(counts(logits, implementation), softmax(logits))


@pytest.mark.parametrize("implementation", FORMS)
def test_extreme_logits_do_not_overflow(implementation):
    """Shifting all logits changes nothing, classes far below the largest vanish."""
    logits = log_probabilities(24, spread=1.0) + np.float32(3e4)
    check_distribution(counts(logits, implementation), softmax(logits))
    logits[::2] -= np.float32(1e30)
    check_distribution(counts(logits, implementation), softmax(logits))


@pytest.mark.parametrize("implementation", FORMS)
def test_bfloat16_logits_are_not_biased(implementation):
    logits = jnp.asarray(log_probabilities(64, seed=3), jnp.bfloat16)
    seen = counts(logits, implementation)
    check_distribution(seen, softmax(np.asarray(logits, np.float32)))


@pytest.mark.parametrize("implementation", FORMS)
@pytest.mark.parametrize("classes", [1, 7, 24, 8191])
def test_all_the_mass_on_one_class(classes, implementation):
    for wanted in {0, classes // 2, classes - 1}:
        logits = np.full(classes, -np.inf, np.float32)
        logits[wanted] = -2.0
        tokens = draw_many(jax.random.key(1), jnp.asarray(logits), implementation, 512)
        assert (np.asarray(tokens) == wanted).all()


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-24])
@pytest.mark.parametrize("classes", [24, 23, 8192])
def test_inverse_cdf_at_the_ends_of_the_uniform(monkeypatch, uniform, classes):
    """The lowest draw is the first class with mass, the highest the last, whatever the rounding."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, uniform))
    rng = np.random.default_rng(classes)
    logits = rng.normal(0, 2, (64, classes)).astype(np.float32)
    logits[rng.uniform(size=logits.shape) < 0.5] = -np.inf
    has_mass = np.isfinite(logits)
    tokens = np.asarray(jax.jit(lambda logits: draw_inverse_cdf(None, logits))(logits))
    assert has_mass[np.arange(64), tokens].all()
    if uniform == 0.0:
        np.testing.assert_array_equal(tokens, has_mass.argmax(-1))
    elif classes < 100:  # with many classes the last may weigh less than the rounding
        np.testing.assert_array_equal(tokens, classes - 1 - has_mass[:, ::-1].argmax(-1))


def test_running_totals_are_inverted_class_by_class():
    """Against a plain cumulative sum in float64, one uniform number per position."""
    key, rng = jax.random.key(5), np.random.default_rng(5)
    for classes in (24, 23, 8192):
        logits = rng.normal(0, 3, (2, 500, classes)).astype(np.float32)
        tokens = np.asarray(jax.jit(draw_inverse_cdf)(key, logits))
        uniform = np.asarray(jax.random.uniform(key, (2, 500, 1)), np.float64)
        mass = np.exp(np.float64(logits) - logits.max(-1, keepdims=True))
        ends = np.cumsum(mass, -1)
        plain = (ends <= uniform * ends[..., -1:]).sum(-1)
        assert (tokens != plain).mean() < 2e-3  # float32 rounding at a class's edge


def test_the_same_key_draws_the_same_under_jit_and_vmap():
    logits = jax.random.normal(jax.random.key(2), (3, 4, 5, 24))
    keys = jax.random.split(jax.random.key(3), 3)
    for draw in (draw_inverse_cdf, draw_gumbel, draw_categorical):
        mapped = jax.jit(jax.vmap(draw))(keys, logits)
        single = jnp.stack([jax.jit(draw)(k, row) for k, row in zip(keys, logits, strict=True)])
        np.testing.assert_array_equal(mapped, single)


def test_the_platform_chooses_the_form():
    logits = jax.random.normal(jax.random.key(4), (64, 24))
    draw = jax.jit(draw_categorical, static_argnames="implementation")
    key = jax.random.key(5)
    np.testing.assert_array_equal(
        draw(key, logits), draw(key, logits, implementation="inverse_cdf")
    )
    traced = jax.jit(draw_categorical).trace(key, logits)
    for platform, gumbel in (("cpu", False), ("tpu", True), ("cuda", True)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.log" in text) == gumbel, platform
    with pytest.raises(ValueError, match="'gumble'"):
        draw_categorical(key, logits, implementation="gumble")


def temporary_logits_arrays(draw, classes, dtype):
    """Temporary memory of the compiled draw over 64 x 64 positions, in float32 logits arrays."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    logits = jax.ShapeDtypeStruct((1, 64, 64, classes), dtype)
    memory = jax.jit(draw).lower(keys, logits).compile().memory_analysis()
    return memory.temp_size_in_bytes / (logits.size * 4)


@pytest.mark.parametrize(
    ("classes", "dtype"), [(8192, jnp.float32), (8192, jnp.bfloat16), (8191, jnp.float32)]
)
def test_memory_of_the_compiled_draw(classes, dtype):
    """One logits-sized array of probability mass and no second one."""
    whole = lambda keys, logits: draw_categorical(keys[0], logits)
    # As the sampler does: one key per sample, temperature first.
    per_sample = lambda keys, logits: jax.vmap(draw_categorical)(keys, logits / 0.7)
    for name, draw in (("whole", whole), ("per sample", per_sample)):
        arrays = temporary_logits_arrays(draw, classes, dtype)
        print(f"{name}, {classes} classes, {dtype.__name__}: {arrays:.3f} logits arrays")
        assert arrays < 1.1, name
