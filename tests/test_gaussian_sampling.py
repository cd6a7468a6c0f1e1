"""Gaussian sampling: DPM-Solver++ against its formula and known data, guidance ramps, editing."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.noise.gaussian import CosineSchedule, diffuse, gaussian_noise
from paella_jax.noise.tokens import sample_keys
from paella_jax.sampling.diffusion import GaussianRandomness, GaussianStart, KnownValues, sample
from paella_jax.sampling.diffusion_settings import DDPMSettings
from paella_jax.sampling.steppers import FEW_STEPS, dpm_corrections

KEY = jax.random.key(0)
SHAPE = (2, 3, 5)
SCHEDULE = CosineSchedule()
bent = lambda x, t, scale: jnp.sin(2.0 * x) + t[:, None, None]


def draw(denoise, settings, shape=SHAPE, key=KEY, **start):
    run = lambda key, start: sample(denoise, key, shape, settings, start=start)
    return jax.jit(run)(key, GaussianStart(**start))


def alpha_bars(settings):
    return np.asarray(SCHEDULE.alpha_bar(settings.times()), np.float64)


# --- DPM-Solver++


@pytest.mark.parametrize("steps", [1, 2, 6, FEW_STEPS + 3])
def test_dpm_is_the_formula(steps):
    """Lu et al. 2022, Algorithm 2, with lambda, h, r and exp as printed there, in float64."""
    settings = DDPMSettings(num_steps=steps, t_start=0.9, stepper="dpm++")
    noise = jax.random.normal(KEY, SHAPE)
    ours = draw(bent, settings, initial=noise)

    times, alpha_bar = settings.times().astype(np.float64), alpha_bars(settings)
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar)
    level = np.log(alpha / sigma)
    x, previous = np.asarray(noise, np.float64), None
    for i in range(steps):
        clean = (x - sigma[i] * (np.sin(2.0 * x) + times[i])) / alpha[i]
        h, towards = level[i + 1] - level[i], clean
        second_order = i > 0 and (i < steps - 1 or steps >= FEW_STEPS)
        if second_order:
            r = (level[i] - level[i - 1]) / h
            towards = (1.0 + 1.0 / (2.0 * r)) * clean - 1.0 / (2.0 * r) * previous
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * (np.exp(-h) - 1.0) * towards
        previous = clean
    np.testing.assert_allclose(ours, x, rtol=2e-4, atol=2e-4)


MEANS, WIDTHS, SHARES = np.float32([[-1.5, 0.2, 2.0], [0.3, 0.15, 0.5], [0.3, 0.3, 0.4]])


def mixture_noise(x, t, scale):
    """The exact prediction where the data are a mixture of three normal distributions."""
    wide = lambda values: values.reshape(1, 1, 3)
    alpha_bar = SCHEDULE.alpha_bar(t).reshape(-1, 1, 1)
    variance = alpha_bar * wide(WIDTHS**2) + 1.0 - alpha_bar
    distance = x[:, :, None] - jnp.sqrt(alpha_bar) * wide(MEANS)
    likelihood = wide(np.log(SHARES)) - 0.5 * jnp.log(variance) - 0.5 * distance**2 / variance
    share = jax.nn.softmax(likelihood, -1)
    return jnp.sqrt(1.0 - alpha_bar[..., 0]) * (share * distance / variance).sum(-1)


@cache
def mixture_samples(stepper, steps):
    settings = DDPMSettings(num_steps=steps, stepper=stepper)
    return np.asarray(draw(mixture_noise, settings, (1, 4096)))


@pytest.mark.parametrize("steps", [8, 12, 20])
def test_dpm_needs_fewer_steps_than_ddim(steps):
    """Both follow the same paths from noise to data; 1000 small steps give where they end."""
    exact = mixture_samples("dpm++", 1000)
    error = {
        stepper: np.sqrt(np.square(mixture_samples(stepper, steps) - exact).mean())
        for stepper in ("ddim", "dpm++")
    }
    print(f"{steps} steps: DDIM {error['ddim']:.4f}, DPM-Solver++ {error['dpm++']:.4f}")
    assert error["dpm++"] < 0.6 * error["ddim"]


def test_many_steps_reach_the_data():
    """Counts of the three modes, their means and widths; 1000 steps meet a clipped schedule."""
    drawn = mixture_samples("dpm++", 1000)
    assert np.isfinite(drawn).all()
    mode = np.abs(drawn.reshape(-1, 1) - MEANS.reshape(1, 3)).argmin(1)
    for i in range(3):
        chosen = drawn.ravel()[mode == i]
        assert abs(len(chosen) / drawn.size - SHARES[i]) < 0.04
        assert abs(chosen.mean() - MEANS[i]) < 0.1 and abs(chosen.std() - WIDTHS[i]) < 0.1


def test_orders_of_convergence():
    """Normal data, where the path is known: halving the steps divides the error by 2 and by 4."""
    mean, deviation, ends = 0.7, 0.4, (0.9, 0.1)
    spread = lambda alpha_bar: np.sqrt(alpha_bar * deviation**2 + 1.0 - alpha_bar)
    first, last = np.asarray(SCHEDULE.alpha_bar(jnp.array(ends)), np.float64)
    start = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    exact = np.sqrt(last) * mean + spread(last) / spread(first) * (start - np.sqrt(first) * mean)

    def denoise(x, t, scale):
        alpha_bar = SCHEDULE.alpha_bar(t)[:, None]
        variance = alpha_bar * deviation**2 + 1.0 - alpha_bar
        return jnp.sqrt(1.0 - alpha_bar) * (x - jnp.sqrt(alpha_bar) * mean) / variance

    def error(stepper, steps):
        points = tuple(float(t) for t in np.linspace(*ends, steps + 1))
        settings = DDPMSettings(time_points=points, stepper=stepper)
        return np.abs(draw(denoise, settings, (1, 64), initial=start) - exact).max()

    for stepper, order in (("ddim", 1), ("dpm++", 2)):
        errors = [error(stepper, steps) for steps in (32, 64, 128)]
        found = -np.diff(np.log2(errors))
        print(f"{stepper}: errors {errors}, orders {found}")
        assert (np.abs(found - order) < 0.3).all()


def test_corrections_of_the_ends_and_of_empty_steps():
    alpha_bar = jnp.array([0.1, 0.1, 0.3, 0.5, 0.8, 0.9])
    level = 0.5 * np.log(alpha_bar / (1 - alpha_bar))
    h = np.diff(level)
    wanted = [0.0, 0.0, h[2] / h[1] / 2, h[3] / h[2] / 2, 0.0]
    np.testing.assert_allclose(dpm_corrections(alpha_bar), wanted, rtol=1e-5)


# --- guidance


def test_guidance_ramps_from_first_to_last():
    seen = []

    def denoise(x, t, scale):
        jax.debug.callback(lambda scale: seen.append(float(scale)), scale, ordered=True)
        return jnp.zeros_like(x)

    draw(denoise, DDPMSettings(num_steps=5, guidance_scale=(6.0, 2.0), stepper="ddim"))
    jax.effects_barrier()
    assert seen == [6.0, 5.0, 4.0, 3.0, 2.0]


def test_equal_ends_are_one_value():
    scale = lambda value: DDPMSettings(num_steps=4, guidance_scale=value).course().guidance_scale
    np.testing.assert_array_equal(scale(3.0), scale((3.0, 3.0)))
    np.testing.assert_array_equal(scale(3.0), np.full(4, 3.0))
    assert scale(1.0) is None and scale((1.0, 1.0)) is None
    np.testing.assert_array_equal(scale((1.0, 4.0)), [1.0, 2.0, 3.0, 4.0])


# --- editing


def test_start_levels():
    near = lambda settings, wanted: np.testing.assert_allclose(settings.times(), wanted, atol=1e-6)
    near(DDPMSettings(num_steps=3, t_start=0.6), [0.6, 0.4, 0.2, 0.0])
    below = DDPMSettings(num_steps=2, t_start=0.6, evaluate_at_one=False)
    near(below, [0.4, 0.2, 0.0])
    points = (1.0, 0.8, 0.5, 0.2, 0.0)
    near(DDPMSettings(time_points=points, t_start=0.6), [0.6, 0.5, 0.2, 0.0])
    near(DDPMSettings(time_points=points, t_start=0.5), [0.5, 0.2, 0.0])
    assert DDPMSettings(time_points=points).times().tolist() == np.float32(points).tolist()


def test_image_to_image_starts_from_the_noised_image():
    settings = DDPMSettings(num_steps=4, t_start=0.5, stepper="dpm++")
    image = jax.random.normal(jax.random.key(7), SHAPE)
    start = gaussian_noise(
        jax.vmap(lambda key: jax.random.fold_in(key, 0))(sample_keys(KEY, jnp.arange(2))), SHAPE[1:]
    )
    noised = diffuse(image, start, SCHEDULE.alpha_bar(jnp.float32(0.5)))
    theirs = draw(bent, settings, initial=noised)
    np.testing.assert_allclose(draw(bent, settings, image=image), theirs, atol=1e-5)
    assert float(jnp.abs(noised - start).max()) > 0.1


def test_inpainting_is_the_formula():
    """Before each step x <- x m + noised(image, t) (1 - m), with noise of its own."""
    settings = DDPMSettings(num_steps=4, stepper="ddim")
    rng = np.random.default_rng(0)
    values, start = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    fresh, noise = rng.normal(size=(2, 4, *SHAPE)).astype(np.float32)
    mask = np.float32([1, 0, 0.5, 1, 0]).reshape(1, 1, 5)
    known = KnownValues(values, mask)
    ours = draw(bent, settings, known=known, randomness=GaussianRandomness(start, fresh, noise))

    alpha_bar, x = alpha_bars(settings), start.astype(np.float64)
    for i, t in enumerate(settings.times()[:-1]):
        noised = np.sqrt(alpha_bar[i]) * values + np.sqrt(1 - alpha_bar[i]) * noise[i]
        x = x * mask + noised * (1 - mask)
        predicted = np.sin(2 * x) + t
        clean = (x - np.sqrt(1 - alpha_bar[i]) * predicted) / np.sqrt(alpha_bar[i])
        x = np.sqrt(alpha_bar[i + 1]) * clean + np.sqrt(1 - alpha_bar[i + 1]) * predicted
    np.testing.assert_allclose(ours, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("stepper", ["ddpm", "dpm++"])
def test_kept_values_stay_whatever_the_rest_does(stepper):
    """With the exact prediction of a point at `values`, kept ones come back; fresh ones differ."""
    values = jax.random.normal(jax.random.key(1), SHAPE)
    settings = DDPMSettings(num_steps=6, stepper=stepper)

    def denoise(x, t, scale):
        alpha_bar = SCHEDULE.alpha_bar(t).reshape(-1, 1, 1)
        target = jnp.where(mask, 3.0, values)
        return (x - jnp.sqrt(alpha_bar) * target) / jnp.sqrt(1.0 - alpha_bar)

    mask = jnp.arange(5).reshape(1, 1, 5) < 2
    drawn = draw(denoise, settings, known=KnownValues(values, mask))
    np.testing.assert_allclose(drawn[..., 2:], values[..., 2:], atol=0.05)
    np.testing.assert_allclose(drawn[..., :2], 3.0, atol=0.05)


def test_a_kept_samples_noise_does_not_depend_on_its_batch():
    values = jax.random.normal(jax.random.key(1), SHAPE)
    mask = jnp.arange(5).reshape(1, 1, 5) < 2
    settings = DDPMSettings(num_steps=3)
    whole = draw(bent, settings, known=KnownValues(values, mask))
    alone = draw(
        bent,
        settings,
        (1, *SHAPE[1:]),
        key=sample_keys(KEY, jnp.array([1])),
        known=KnownValues(values[1:], mask),
    )
    np.testing.assert_allclose(whole[1:], alone, rtol=1e-4, atol=1e-4)


# --- bad input


def test_settings_are_hashable():
    points = (1.0, 0.5, 0.0)
    make = lambda: DDPMSettings(guidance_scale=(4.0, 1.0), time_points=points, t_start=0.8)
    assert hash(make()) == hash(make()) and make() == make()
    assert make() != DDPMSettings(guidance_scale=(4.0, 1.0), time_points=points)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"guidance_scale": (2.0, -1.0)}, r"guidance_scale=\(2.0, -1.0\) must be"),
        ({"guidance_scale": (1.0, 2.0, 3.0)}, r"guidance_scale=\(1.0, 2.0, 3.0\) must be"),
        ({"t_start": 0.0}, "t_start=0.0 must be above 0.0"),
        ({"t_start": 1.5}, "t_start=1.5 must be"),
        ({"t_start": 0.2, "time_points": (1.0, 0.3)}, "t_start=0.2 must be above 0.3"),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(ValueError, match=f"sampler setting {message}"):
        DDPMSettings(**options).check()


ZEROS = np.zeros(SHAPE, np.float32)
WRONG_ARRAYS = {
    "either initial .* or image": {"initial": ZEROS, "image": ZEROS},
    r"initial has shape \(2, 3, 4\)": {"initial": ZEROS[..., :4]},
    r"image has shape \(1, 3, 5\)": {"image": ZEROS[:1]},
    r"known.values has shape \(3, 5\)": {"known": KnownValues(ZEROS[0], ZEROS)},
    r"known.generate has shape \(3, 5\)": {"known": KnownValues(ZEROS, ZEROS[0])},
    r"known.generate has shape \(1, 3, 4\)": {"known": KnownValues(ZEROS, ZEROS[:1, :, :4])},
    "randomness.known is missing": {
        "known": KnownValues(ZEROS, ZEROS),
        "randomness": GaussianRandomness(ZEROS, np.zeros((4, *SHAPE), np.float32)),
    },
}


@pytest.mark.parametrize("message", WRONG_ARRAYS)
def test_wrong_arrays(message):
    with pytest.raises(ValueError, match=message):
        start = GaussianStart(**WRONG_ARRAYS[message])
        sample(bent, KEY, SHAPE, DDPMSettings(num_steps=4), start=start)
