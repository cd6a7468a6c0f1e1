"""Time and memory of a full-size Würstchen image with random weights, one stage at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.encoders.clip_text import ClipText
from paella_jax.models.compressor import from_stage_c
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.stage_b import StageB
from paella_jax.models.stage_c import StageC
from paella_jax.models.vqgan import VQGAN
from paella_jax.reports.sampling_speed import random_tree, resident_peak_mib, run_once
from paella_jax.sampling.diffusion import sample
from paella_jax.sampling.diffusion_settings import DDPMSettings, segment_times
from paella_jax.sampling.guidance import guide
from paella_jax.training.compiled_step import MIB
from paella_jax.typing import Array, Tree

TEXT_LENGTH = 77
COMPRESSION = 42 + 2 / 3  # image pixels per Stage C latent
# The released text encoders: CLIP ViT-bigG/14 for Stage C, ViT-H/14 for Stage B.
TEXT_C = ClipText(
    vocab_size=49408, max_length=77, width=1280, num_layers=32, num_heads=20, hidden_dim=5120
)
TEXT_B = ClipText(
    vocab_size=49408, max_length=77, width=1024, num_layers=24, num_heads=16, hidden_dim=4096
)


def wuerstchen_cost(
    stage_c: ConfigDict,
    stage_b: ConfigDict,
    *,
    image_size: int = 512,
    batch: int = 1,
    params_dtype: str = "bfloat16",
) -> dict[str, Any]:
    """Draws images through both text encoders and all stages; a stage's weights leave before the
    next one's are made.

    Args:
      stage_c: a config of configs/stage_c.py; its sampler's settings are used too.
      stage_b: a config of configs/stage_b.py; its sampler's settings are used too.
      image_size: pixels, a multiple of 128.
      batch: images.
      params_dtype: dtype weights are stored in.

    Returns:
      For each stage seconds to compile and to run and MiB of weights and temporaries, and the
      highest resident memory of the process in MiB.
    """
    if image_size % 128:
        raise ValueError(f"image_size {image_size} must be a multiple of 128")
    side, latent = round(image_size / COMPRESSION), image_size // 4
    dtype = jnp.dtype(stage_c.precision)
    report: dict[str, Any] = {}
    ids = jnp.zeros((batch, TEXT_LENGTH), jnp.int32)
    prior, decoder = StageC(**stage_c.model, dtype=dtype), StageB(**stage_b.model, dtype=dtype)
    measure = lambda name, *stage: _measure(report, name, params_dtype, *stage)

    read = lambda module: (
        lambda params, key, ids: module.clone(dtype=dtype).apply(params, ids).last_hidden_state
    )
    text_c, text_b = (
        measure(name, partial(module.init, jax.random.key(0), ids[:1]), read(module), ids)
        for name, module in (("text_c", TEXT_C), ("text_b", TEXT_B))
    )

    draw_c = _draw_c(prior, stage_c.sampler, (batch, side, side, prior.channels))
    latents_c = measure("stage_c", _init(prior, side, prior.channels, text_c), draw_c, text_c)

    draw_b = _draw_b(decoder, stage_b.sampler, (batch, latent, latent, decoder.latent_channels))
    init_b = _init(decoder, latent, decoder.latent_channels, text_b)
    latents_b = measure("stage_b", init_b, draw_b, text_b, latents_c)
    vqgan = VQGAN(dtype=dtype)
    decode = lambda params, key, latents: vqgan.apply(
        params, latents, method=lambda module, x: jnp.clip(module.decode(module.unscale(x)), 0, 1)
    )
    blank = jnp.zeros((1, 16, 16, 3))
    images = measure("stage_a", lambda: vqgan.init(jax.random.key(0), blank), decode, latents_b)
    report["image"] = list(images.shape)
    report["finite"] = bool(np.isfinite(np.asarray(images)).all())
    report["resident_peak_mib"] = resident_peak_mib()
    return report


def _draw_c(prior: StageC, sampler: ConfigDict, shape: tuple[int, ...]) -> Callable[..., Array]:
    """Stage C's sampler with its run's settings, guided by an empty text."""
    settings = DDPMSettings(
        time_points=segment_times(sampler.edges, sampler.segments),
        guidance_scale=sampler.guidance_scale,
        stepper=sampler.stepper,
    )

    def draw(params: Tree, key: Array, text: Array) -> Array:
        predict = lambda text: lambda x, t: prior.apply(params, x, t, Conditioning(text=text))
        denoise = guide(predict(text), predict(jnp.zeros_like(text)))
        return from_stage_c(sample(denoise, key, shape, settings))

    return draw


def _draw_b(decoder: StageB, sampler: ConfigDict, shape: tuple[int, ...]) -> Callable[..., Array]:
    """Stage B's sampler, unguided as released."""
    settings = DDPMSettings(num_steps=sampler.num_steps)

    def draw(params: Tree, key: Array, text: Array, latents: Array) -> Array:
        cond = Conditioning(text=text, guide=latents)
        predict = lambda x, t: decoder.apply(params, x, t, cond)
        return sample(guide(predict, None), key, shape, settings)

    return draw


def _init(module: StageB | StageC, size: int, channels: int, text: Array) -> Callable[[], Tree]:
    """What makes a stage's weights, for latents of a size and text states of a width."""
    latents = jnp.zeros((1, size, size, channels))
    cond = Conditioning(text=jnp.zeros((1, 1, text.shape[-1])))
    return partial(module.init, jax.random.key(0), latents, jnp.zeros((1,)), cond)


def _measure(
    report: dict[str, Any],
    name: str,
    params_dtype: str,
    init: Callable[[], Tree],
    function: Callable[..., Array],
    *inputs: Array,
) -> Array:
    """Makes a stage's weights, compiles and runs it, and lets its weights go."""
    params = random_tree(jax.eval_shape(init), params_dtype)
    cost = run_once(function, params, jax.random.key(1), *inputs)
    report[name] = {
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "weights_mib": round(sum(x.nbytes for x in jax.tree.leaves(params)) / MIB),
        "temporaries_mib": cost.temporaries_mib,
        "compile_seconds": round(cost.compile_seconds, 1),
        "seconds": round(cost.seconds, 2),
    }
    jax.tree.map(lambda x: x.delete(), params)
    return cost.output
