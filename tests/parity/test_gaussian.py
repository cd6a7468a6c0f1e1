"""Gaussian noise, its schedule and the DDPM/DDIM samplers against recorded reference runs."""

from __future__ import annotations

import re
from functools import cache

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.noise.gaussian import (
    CosineSchedule,
    clean_from_noise,
    diffuse,
    p2_weight,
)
from paella_jax.sampling.diffusion import GaussianRandomness, GaussianStart, sample
from paella_jax.sampling.diffusion_settings import DDPMSettings, segment_times
from paella_jax.sampling.steppers import ddim_step, ddpm_step


def is_diffusion(config, _):
    return config.get("model") == "wuerstchen_diffusion"


@cache
def traces_of(folder):
    """Names of the recorded whole loops."""
    names = [n.removesuffix(".model_output") for n in load(folder) if n.endswith(".model_output")]
    assert names, f"no recorded loop in {folder}"
    return sorted(names)


def pytest_generate_tests(metafunc):
    """One test per folder, and one per recorded loop where a test asks for `trace`."""
    if "trace" not in metafunc.fixturenames:
        golden.parametrize(metafunc, "folder", is_diffusion)
        return
    root = metafunc.config.getoption("golden")
    pairs = [
        pytest.param(folder, name, id=f"{folder.relative_to(root)}-{name}")
        for folder in golden.folders(root, is_diffusion)
        for name in traces_of(folder)
    ]
    metafunc.parametrize(("folder", "trace"), pairs, scope="module")


@cache
def load(folder):
    return golden.arrays_of(folder)


def recorded(folder, pattern):
    """(name, numbers in the name) of every recorded array whose whole name fits."""
    found = [(name, re.fullmatch(pattern, name)) for name in load(folder)]
    found = [(name, [float(n) for n in fit.groups()]) for name, fit in found if fit]
    assert found, f"nothing recorded as {pattern}"
    return found


# At t = 0 the reference's own 1 - 0.9999 is exact to 2e-4 only; the rest agrees to a few ulp.
TIGHT = {"atol": 2e-6, "rtol": 2e-5}


def test_alpha_bar(folder):
    arrays = load(folder)
    tables = [
        (name, CosineSchedule(scaler=scaler))
        for name, (scaler,) in recorded(folder, r"alpha\.(?:scheduler|diffuzz)_scaler([\d.]+)")
    ]
    tables += [
        (name, CosineSchedule(offset=offset))
        for name, (offset,) in recorded(folder, r"alpha\.diffuzz_s([\d.]+)")
    ]
    for name, schedule in tables:
        ours = jax.jit(schedule.alpha_bar)(arrays["alpha.t"])
        assert ours.dtype == jnp.float32
        golden.check_close(f"{folder.name} {name}", ours, arrays[name], **TIGHT)


def test_p2_weight(folder):
    arrays = load(folder)
    alpha_bar = CosineSchedule().alpha_bar(arrays["alpha.t"])
    for name, (k, gamma) in recorded(folder, r"p2\.k([\d.]+)_g([\d.]+)"):
        ours = p2_weight(alpha_bar, k, gamma)
        golden.check_close(f"{folder.name} {name}", ours, arrays[name], **TIGHT)


def test_noising_and_back(folder):
    arrays = load(folder)
    clean, noise, t = (jnp.asarray(arrays[f"add_noise.{name}"]) for name in ("x0", "noise", "t"))
    alpha_bar = CosineSchedule().alpha_bar(t)
    noised = jax.jit(diffuse)(clean, noise, alpha_bar)
    for name in ("add_noise.diffuzz", "add_noise.scheduler"):
        golden.check_close(f"{folder.name} {name}", noised, arrays[name], **TIGHT)
    back = clean_from_noise(noised, noise, alpha_bar)
    golden.check_close(f"{folder.name} clean", back, clean, atol=1e-5)


def test_single_steps(folder):
    """Each sample at its own pair of levels, one of them ending at 0."""
    arrays = load(folder)
    for name in ("ddpm", "ddim"):
        pick = lambda key, name=name: jnp.asarray(arrays[f"diffuzz_{name}.{key}"])
        levels = [CosineSchedule().alpha_bar(pick(key)) for key in ("t", "t_prev")]
        if name == "ddpm":
            last = pick("t_prev") == 0
            assert last.any() and not last.all()
            ours = jax.jit(ddpm_step)(pick("x"), pick("eps"), pick("noise"), *levels, last)
        else:
            ours = jax.jit(ddim_step)(pick("x"), pick("eps"), *levels)
        golden.check_close(f"{folder.name} diffuzz_{name}", ours, pick("out"), **TIGHT)


def settings_for(folder, trace, times):
    """The settings that should give a recorded loop's time points."""
    even = DDPMSettings(num_steps=len(times) - 1)
    if np.array_equal(even.times(), times):
        return even
    return DDPMSettings(time_points=tuple(float(t) for t in times))


def test_whole_loop(folder, trace):
    """The recorded predictions and noise are fed in; every step's result is compared."""
    arrays = load(folder)
    pick = lambda key: jnp.asarray(arrays[f"{trace}.{key}"])
    times, outputs = arrays[f"{trace}.timesteps"], pick("model_output")
    scaler = golden.config_of(folder)["scaler"] if trace.endswith("scaled") else 1.0
    settings = settings_for(folder, trace, times)
    np.testing.assert_array_equal(settings.times(), times)

    def denoise(x, t, scale):
        assert scale is None
        return outputs[jnp.argmax(jnp.asarray(times) == t[0])]

    final, visited = jax.jit(
        lambda randomness: sample(
            denoise,
            jax.random.key(0),
            randomness.initial.shape,
            settings,
            schedule=CosineSchedule(scaler=scaler),
            start=GaussianStart(randomness=randomness),
            trace=True,
        )
    )(GaussianRandomness(pick("x_init"), pick("noise")))
    golden.check_close(f"{folder.name} {trace}.x", visited, arrays[f"{trace}.x"])
    np.testing.assert_array_equal(final, visited[-1])


def test_even_time_points_are_bitwise(folder):
    times = load(folder)["ddpm.timesteps"]
    np.testing.assert_array_equal(DDPMSettings(num_steps=len(times) - 1).times(), times)


def test_default_stage_c_segments(folder):
    theirs = load(folder)["default_stage_c_timesteps"]
    ours = segment_times((1, 2 / 3, 0), (19, 10))
    golden.check_close(f"{folder.name} stage c segments", ours, theirs, atol=2e-7, rtol=0)
