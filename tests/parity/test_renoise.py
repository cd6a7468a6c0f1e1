"""Token noise, guidance and the renoise sampler's whole loop against recorded reference runs."""

from __future__ import annotations

import re
from functools import cache, partial

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from paella_jax.convert.paella import PAELLA
from paella_jax.models.conditioning import Conditioning
from paella_jax.noise.tokens import loss_weight, replace_tokens
from paella_jax.ops.codebook import nearest_code
from paella_jax.sampling.filters import typical_filter
from paella_jax.sampling.guidance import combine, guide, guide_jointly
from paella_jax.sampling.renoise import sample
from paella_jax.sampling.renoise_settings import RenoiseSettings
from paella_jax.sampling.schedule import linear_ramp
from paella_jax.sampling.token_loop import Randomness, Start, Vocabulary

pytestmark = pytest.mark.usefixtures("highest_precision")


def is_sampler(config, _):
    return {"traces", "weights", "codebook"} <= set(config)


def pytest_generate_tests(metafunc):
    """One test per folder, and one per recorded trace where a test asks for `trace`."""
    if "trace" not in metafunc.fixturenames:
        golden.parametrize(metafunc, "folder", is_sampler)
        return
    root = metafunc.config.getoption("golden")
    pairs = [
        pytest.param(folder, name, id=f"{folder.relative_to(root)}-{name}")
        for folder in golden.folders(root, is_sampler)
        for name in sorted(golden.config_of(folder)["traces"])
    ]
    metafunc.parametrize(("folder", "trace"), pairs, scope="module")


@cache
def load(folder):
    """Everything a folder's tests share: label, network, parameters, codebook, arrays."""
    config = golden.config_of(folder)
    weights = folder / config["weights"]
    model = golden.paella_of(golden.config_of(weights.parent)["constructor"])
    params = golden.as_jax(PAELLA.names.load(load_file(weights), model))
    path, tensor = config["codebook"].rsplit(":", 1)
    codebook = jnp.asarray(load_file(folder / path)[tensor])
    return folder.name, model, params, codebook, golden.arrays_of(folder)


@cache
def compiled(model):
    """The network alone, compiled once per kind of input for every trace of a folder."""
    return jax.jit(model.apply)


def values_in(arrays, pattern):
    """(name, numbers in the name) of every recorded array whose whole name fits."""
    found = [(name, re.fullmatch(pattern, name)) for name in arrays]
    found = [(name, [float(n) for n in fit.groups()]) for name, fit in found if fit]
    assert found, f"nothing recorded as {pattern}"
    return found


def test_noise(folder):
    label, _, _, _, arrays = load(folder)
    pick = lambda name: jnp.asarray(arrays[f"add_noise.{name}"])
    noised, mask = jax.jit(replace_tokens)(pick("x"), pick("random_x"), pick("uniform"), pick("t"))
    np.testing.assert_array_equal(noised, arrays["add_noise.noised"])
    np.testing.assert_array_equal(mask, arrays["add_noise.mask"])
    for name, (minimum,) in values_in(arrays, r"loss_weight\.min([\d.]+)"):
        weight = loss_weight(mask, pick("t"), minimum)
        golden.check_close(f"{label} {name}", weight, arrays[name], atol=1e-6, rtol=1e-6)


def test_guidance_and_temperature(folder):
    label, _, _, _, arrays = load(folder)
    cond, uncond = (golden.channels_last(arrays[f"cfg.{name}"]) for name in ("cond", "uncond"))
    for name, (scale,) in values_in(arrays, r"cfg\.out_([\d.]+)"):
        guided = combine(cond, uncond, scale)
        golden.check_close(f"{label} {name}", guided, golden.channels_last(arrays[name]))
    for name, (temperature,) in values_in(arrays, r"softmax\.temp_([\d.]+)"):
        p = jax.nn.softmax(cond / temperature, axis=-1)
        golden.check_close(f"{label} {name}", p, golden.channels_last(arrays[name]), atol=1e-6)


def test_schedules_are_bitwise(folder):
    _, _, _, _, arrays = load(folder)
    for name, _ in values_in(arrays, r"schedule\..*"):
        theirs = arrays[name]
        ours = linear_ramp(theirs[0], theirs[-1], len(theirs))
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_typical_filter(folder):
    label, _, _, _, arrays = load(folder)
    logits = golden.channels_last(arrays["typical.logits"])
    for name, (mass, minimum) in values_in(arrays, r"typical\.mass([\d.]+)_min(\d+)"):
        kept = jax.jit(partial(typical_filter, mass=mass, min_tokens=int(minimum)))(logits)
        np.testing.assert_array_equal(kept, arrays[name], err_msg=f"{label} {name}")


def test_soft_codes(folder):
    label, _, _, codebook, arrays = load(folder)
    cond = golden.channels_last(arrays["cfg.cond"])
    temperature = golden.config_of(folder)["temps"][0]
    soft = jax.nn.softmax(cond / temperature, axis=-1) @ codebook
    golden.check_close(f"{label} quant.soft", soft, arrays["quant.soft"], atol=1e-6)
    nearest, theirs = jax.jit(nearest_code)(soft, codebook), arrays["quant.indices"]
    lead = golden.lead_of_the_nearest(arrays["quant.soft"], codebook)
    golden.same_where_clear(f"{label} quant.indices", nearest, theirs, lead, 1e-5)


class Recording:
    """One recorded run: its settings, inputs and both predictions."""

    def __init__(self, folder, trace):
        self.label, self.model, self.params, self.codebook, self.arrays = load(folder)
        self.label = f"{self.label} trace.{trace}"
        self.config = golden.config_of(folder)["traces"][trace]
        self.trace = trace
        self.steps = self.config["steps"]
        self.settings = self._settings()

    def array(self, name):
        return self.arrays[f"trace.{self.trace}.{name}"]

    @property
    def batched(self):
        """Whether the reference made one call of both halves (with equal text lengths)."""
        return f"trace.{self.trace}.logits_cond_uncond" in self.arrays

    @property
    def recorded_draws(self):
        return self.config["draw"].startswith("recorded")

    def _settings(self):
        quantize = re.search(r"steps? (\d+)\S* soft", self.config["draw"])
        return RenoiseSettings(
            num_steps=self.steps,
            t_start=self.config.get("t_start", 1.0),
            temperature=tuple(self.config["temperature"]),
            guidance_scale=tuple(self.config["cfg"]),
            guided_steps=self.config.get("sampling_conditional_steps"),
            renoise_steps=self.config.get("renoise_steps"),
            draw="categorical" if self.recorded_draws else "argmax",
            quantize_from_step=int(quantize[1]) if quantize else None,
        )

    def after(self):
        """Recorded tokens after each step: what enters the next one, and the final tokens."""
        return np.concatenate([self.array("x_in")[1:], self.array("final")[None]])

    def drawn(self):
        """Recorded tokens of each step before renoising."""
        sampled = self.array("sampled")
        return np.concatenate([sampled, self.after()[len(sampled) :]])

    def conditionings(self):
        pick = lambda name: jnp.asarray(self.arrays[f"trace.{name}"])
        own = f"{self.trace}.uncond_byt5"
        uncond_text = pick(own if f"trace.{own}" in self.arrays else "uncond.byt5")
        images = None if "clip_image" in self.config else pick("cond.clip_image")[:, None]
        cond = Conditioning(
            text=pick("cond.byt5"), text_pooled=pick("cond.clip"), image_pooled=images
        )
        return cond, Conditioning(text=uncond_text, text_pooled=pick("uncond.clip"))

    def predictions(self, alone=False):
        """(conditional, unconditional) callables: for the sampler, or compiled and `alone`."""
        cond, uncond = self.conditionings()
        weights = None
        if "attn_weights" in self.config:
            weights = jnp.asarray(self.arrays["trace.attn_weights"])
        return self.predict_with(cond, weights, alone=alone), self.predict_with(uncond, alone=alone)

    def predict_with(self, cond, weights=None, alone=False):
        apply = compiled(self.model) if alone else self.model.apply
        variables = {"params": self.params}
        return lambda tokens, t: apply(variables, tokens, t, cond, attention_weights=weights)

    def joint_prediction(self):
        """Both halves in one call: the shorter half is padded and masked."""
        cond, uncond = self.conditionings()
        length = max(cond.text.shape[1], uncond.text.shape[1])
        fill = lambda text: jnp.pad(text, ((0, 0), (0, length - text.shape[1]), (0, 0)))
        real = lambda text: jnp.broadcast_to(
            jnp.arange(length)[None] < text.shape[1], (text.shape[0], length)
        )
        stack = lambda f, a, b: jnp.concatenate([f(a), f(b)])
        images, image_mask = cond.image_pooled, None
        if images is not None:
            image_mask = stack(lambda seen: jnp.full(images.shape[:2], seen), True, False)
            images = stack(lambda scale: images * scale, 1.0, 0.0)
        both = Conditioning(
            text=stack(fill, cond.text, uncond.text),
            text_mask=stack(real, cond.text, uncond.text),
            text_pooled=stack(jnp.asarray, cond.text_pooled, uncond.text_pooled),
            image_pooled=images,
            image_mask=image_mask,
        )
        return self.predict_with(both)

    def inputs(self):
        """Randomness and first tokens of the run."""
        tokens = lambda name: jnp.asarray(self.arrays[f"trace.{name}"], jnp.int32)
        masks = jnp.asarray(self.arrays["trace.mask_uniform"][: self.steps])
        start = self.config.get("init")
        first = None if start is None else tokens(start.removeprefix("trace."))
        return Randomness(masks, initial=tokens("init_noise")), first

    def sample(self, denoise, draw=None):
        randomness, first = self.inputs()
        shape = randomness.initial.shape
        vocabulary = Vocabulary(self.model.codebook_size, codebook=self.codebook)
        call = jax.jit(
            lambda randomness, first: sample(
                denoise,
                jax.random.key(0),
                shape,
                self.settings,
                vocabulary,
                Start(initial_tokens=first, randomness=randomness, draw=draw),
                trace=True,
            )
        )
        return call(randomness, first)


@pytest.fixture
def recording(folder, trace):
    return Recording(folder, trace)


def recorded_logits(recording):
    """Recorded (conditional, unconditional) logits per step, channels last."""
    last = lambda logits: np.moveaxis(logits, 2, -1)
    if recording.batched:
        return np.split(last(recording.array("logits_cond_uncond")), 2, axis=1)
    return last(recording.array("logits_cond")), last(recording.array("logits_uncond"))


def test_logits_of_every_step(recording):
    """Both predictions at the recorded tokens and our own schedule."""
    settings = recording.settings
    times = linear_ramp(settings.t_start, settings.t_end, recording.steps + 1)
    entering = jnp.asarray(recording.array("x_in"), jnp.int32)
    both = zip(recording.predictions(alone=True), recorded_logits(recording), strict=True)
    for name, (predict, theirs) in zip(("cond", "uncond"), both, strict=True):
        steps = zip(entering, times, strict=False)
        ours = [predict(x, jnp.full(x.shape[0], t)) for x, t in list(steps)[: len(theirs)]]
        golden.check_close(f"{recording.label}.logits_{name}", np.stack(ours), theirs)


def check_tokens(recording, final, visited):
    np.testing.assert_array_equal(final, recording.array("final"))
    np.testing.assert_array_equal(visited, recording.after())
    print(f"{recording.label}: {visited.size} tokens over {len(visited)} steps, all equal")


def recorded_guided_logits(recording, step):
    """From the recorded halves: guided where the run was, divided by the temperature."""
    settings = recording.settings
    cond, uncond = recorded_logits(recording)
    scale = linear_ramp(*settings.guidance_scale, recording.steps)[step]
    temperature = linear_ramp(*settings.temperature, recording.steps)[step]
    guided = step < (settings.guided_steps or recording.steps)
    logits = cond[step] * scale + uncond[step] * (1 - scale) if guided else cond[step]
    return logits / temperature


def injected_draws(recording, seen):
    """A draw that returns the recorded tokens and notes the logits it was given."""
    tokens = jnp.asarray(recording.drawn(), jnp.int32)

    def draw(index, logits, keys):
        jax.debug.callback(lambda i, values: seen.update({int(i): np.array(values)}), index, logits)
        return tokens[index]

    return draw


def test_whole_loop(recording):
    """Token for token. Recorded multinomial draws are injected, their logits compared."""
    seen = {}
    draw = injected_draws(recording, seen) if recording.recorded_draws else None
    final, visited = recording.sample(guide(*recording.predictions()), draw)
    check_tokens(recording, final, visited)
    if draw is None:
        return
    jax.effects_barrier()
    assert sorted(seen) == list(range(recording.steps))
    for step, logits in sorted(seen.items()):
        # Guidance and temperature multiply the network's tolerance of 5e-5.
        settings = recording.settings
        factor = 2 * max(settings.guidance_scale) / min(settings.temperature)
        theirs = recorded_guided_logits(recording, step)
        label = f"{recording.label} step {step} guided"
        golden.check_close(label, logits, theirs, atol=5e-5 * factor)


def test_joint_guidance_gives_the_same_tokens(recording):
    """Both halves in one call, as on an accelerator, padded and masked to one length."""
    if "attn_weights" in recording.config:
        pytest.skip("re-weighted attention is for the conditional half only: two calls")
    denoise = guide_jointly(recording.predictions()[0], recording.joint_prediction())
    draw = injected_draws(recording, {}) if recording.recorded_draws else None
    check_tokens(recording, *recording.sample(denoise, draw))
