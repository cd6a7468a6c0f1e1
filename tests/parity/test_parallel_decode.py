"""Parallel decoding against diffusers' recorded scheduler traces, token by token."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.convert.amused import AMUSED
from paella_jax.noise.masking import mask_randomly
from paella_jax.sampling.guidance import guide_jointly
from paella_jax.sampling.parallel_decode import ParallelDecodeSettings, parallel_decode
from paella_jax.sampling.token_loop import Randomness, Start

pytestmark = pytest.mark.usefixtures("highest_precision")


def pytest_generate_tests(metafunc):
    """One test per scheduler folder, and one per recorded trace where a test asks for it."""
    root = metafunc.config.getoption("golden")
    folders = sorted(file.parent for file in Path(root).rglob("traces.json"))
    if "trace" in metafunc.fixturenames:
        pairs = [
            pytest.param(folder, name, id=f"{folder.relative_to(root)}-{name}")
            for folder in folders
            for name in sorted(json.loads((folder / "traces.json").read_text()))
            if (folder / f"{name}.npz").exists()
        ]
        metafunc.parametrize(("folder", "trace"), pairs)
    elif "folder" in metafunc.fixturenames:
        ids = [str(folder.relative_to(root)) for folder in folders]
        metafunc.parametrize("folder", folders, ids=ids)


def arrays_of(file):
    with np.load(file) as stored:
        return {name: stored[name] for name in stored}


@cache
def load(folder, name):
    """A trace with its arrays on a grid: [..., h, w] and logits channels last."""
    facts = json.loads((folder / "traces.json").read_text())[name]
    arrays = arrays_of(folder / f"{name}.npz")
    steps, batch = arrays["uniform"].shape[:2]
    grid = arrays["samples"].shape[2:]
    grid = grid if len(grid) == 2 else (1, *grid)
    on_grid = lambda x: jnp.asarray(x).reshape(*x.shape[:2], *grid, *x.shape[3:])
    logits = arrays.get("logits", arrays.get("guided_logits"))
    if logits is not None:
        logits = np.moveaxis(logits, 2, -1) if logits.ndim == 5 else on_grid(logits)
    first, last = (float(t) for t in arrays["temperatures"][[0, -1]])
    scale = float(arrays.get("guidance_scale", 1.0))
    assert arrays["start_step"] == 0 and facts["num_inference_steps"] == steps
    settings = ParallelDecodeSettings(
        num_steps=steps,
        schedule=facts["masking_schedule"],
        choice_temperature=(first, last),
        guidance_scale=(scale, scale),
    )
    # The uniform of a flat trace has no grid yet: [steps, batch, positions].
    flat = lambda x: jnp.asarray(x).reshape(steps, batch, *grid)
    return SimpleNamespace(
        label=name,
        folder=folder,
        facts=facts,
        arrays=arrays,
        shape=(batch, *grid),
        settings=settings,
        logits=None if logits is None else jnp.asarray(logits),
        samples=jnp.asarray(arrays["samples"], jnp.int32).reshape(steps + 1, batch, *grid),
        predicted=jnp.asarray(arrays["pred_original"], jnp.int32).reshape(steps, batch, *grid),
        uniform=flat(arrays["uniform"]),
        exponential=flat_noise(arrays["exp_noise"], grid),
        flat=flat,
    )


def flat_noise(noise, grid):
    return jnp.asarray(noise).reshape(*noise.shape[:2], *grid, noise.shape[-1])


def recorded_draw(case):
    """The reference's draw: the largest probability over an exponential variable."""

    def draw(number, logits, keys):
        del keys
        return jnp.argmax(jax.nn.softmax(logits, axis=-1) / case.exponential[number], axis=-1)

    return draw


def decode(case, denoise):
    mask_token = int(case.arrays["mask_token_id"])
    start = Start(
        initial_tokens=case.samples[0],
        starting_mask_ratio=case.arrays["starting_mask_ratio"],
        randomness=Randomness(case.uniform),
        draw=recorded_draw(case),
    )
    key = jax.random.key(0)
    call = lambda: parallel_decode(
        denoise, key, case.shape, case.settings, mask_token, start, trace=True
    )
    return jax.jit(call)()


def check_trace(case, tokens, visited):
    np.testing.assert_array_equal(visited.tokens, case.samples[1:])
    np.testing.assert_array_equal(visited.predicted, case.predicted)
    np.testing.assert_array_equal(visited.masked, case.arrays["mask_len"])
    np.testing.assert_array_equal(tokens, case.samples[-1])
    theirs = case.flat(case.arrays["confidence"])[:-1]  # not computed in the last step
    label = f"{case.label} confidence"
    golden.check_close(label, visited.confidence[:-1], theirs, atol=1e-3, rtol=1e-6)


def test_recorded_logits(folder, trace):
    """The scheduler alone: the recorded logits of every step are given."""
    case = load(folder, trace)
    if case.logits is None:
        pytest.skip("this trace was recorded without its logits")
    ratios = np.concatenate([np.ones(1, np.float32), case.settings.mask_ratios()[:-1]])

    def denoise(tokens, t, scale):
        # The step is told by t, the share masked before it.
        step = jnp.argmin(jnp.abs(jnp.asarray(ratios) - t[0]))
        return case.logits[step]

    check_trace(case, *decode(case, denoise))


def test_temperatures(folder, trace):
    case = load(folder, trace)
    stored = case.arrays["temperatures"]
    ours = np.linspace(*case.settings.choice_temperature, len(stored), dtype=np.float32)
    np.testing.assert_allclose(ours, stored, atol=1e-6)
    np.testing.assert_array_equal(case.arrays["timesteps"], np.arange(len(stored))[::-1])


def network(case):
    """Guided prediction by the trace's own model: both halves in one batch."""
    model_folder = (case.folder / case.facts["model"]).resolve()
    model = AMUSED.foreign.read(golden.config_of(model_folder))
    weights = golden.weights_of(model_folder, "diffusion_pytorch_model.safetensors")
    variables = {"params": golden.as_jax(AMUSED.names.load(weights, model))}
    text, pooled = (
        jnp.concatenate([case.arrays[name], case.arrays[f"negative_{name}"]])
        for name in ("encoder_hidden_states", "pooled_text_emb")
    )
    micro = jnp.asarray(case.arrays["micro_conds"])
    both = lambda tokens, t: model.apply(
        variables, tokens, text, pooled, jnp.concatenate([micro, micro])
    )
    return guide_jointly(lambda tokens, t: both(jnp.concatenate([tokens, tokens]), t), both)


def test_whole_loop_with_the_network(folder):
    """The network inside the scan, from all masked to the last token."""
    facts = json.loads((folder / "traces.json").read_text())
    names = [name for name, value in facts.items() if "model" in value]
    assert names
    for name in names:
        case = load(folder, name)
        denoise = network(case)
        check_trace(case, *decode(case, denoise))
        if case.logits is not None:
            scale = case.settings.guidance_scale[0]
            run = jax.jit(lambda x, d=denoise, c=case, s=scale: d(x, jnp.ones(c.shape[0]), s))
            for step, theirs in enumerate(case.logits):
                label = f"{name} guided logits {step}"
                golden.check_close(label, run(case.samples[step]), theirs, atol=3e-3, rtol=0.0)


def test_mask_lengths_of_the_whole_table(folder):
    table = arrays_of(folder / "mask_len_table.npz")
    assert table
    for name, theirs in table.items():
        schedule, steps, positions = re.fullmatch(r"(\w+)_T(\d+)_L(\d+)", name).groups()
        settings = ParallelDecodeSettings(num_steps=int(steps), schedule=schedule)
        # Tokens still masked after every step but the last, before clamping.
        lengths = np.floor(np.float32(positions) * settings.mask_ratios()[:-1])
        np.testing.assert_array_equal(lengths, theirs, name)


def test_masking_an_image(folder):
    """The reference's add_noise: the start of image-to-image."""
    arrays = arrays_of(folder / "add_noise.npz")
    config = json.loads((folder / "scheduler_config.json").read_text())
    steps = len(arrays["timesteps"])
    settings = ParallelDecodeSettings(num_steps=steps, schedule=config["masking_schedule"])
    # The last ratio is rounding alone: its sign depends on the cosine's last bit.
    np.testing.assert_allclose(settings.mask_ratios(), arrays["mask_ratio"], atol=1e-7)
    for step in range(steps):
        tokens, mask = mask_randomly(
            jnp.asarray(arrays["sample"], jnp.int32),
            jnp.asarray(arrays["uniform"][step]),
            settings.mask_ratios()[step],
            int(arrays["mask_token_id"]),
        )
        np.testing.assert_array_equal(tokens, arrays["noised"][step])
        np.testing.assert_array_equal(tokens == arrays["mask_token_id"], mask)
