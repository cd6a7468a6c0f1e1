"""Time and memory of sampling one image with a network of any size and random weights."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.models.conditioning import Conditioning
from paella_jax.models.paella import Paella
from paella_jax.models.vqgan import VQGAN
from paella_jax.sampling.guidance import guide
from paella_jax.sampling.renoise import sample
from paella_jax.sampling.renoise_settings import RenoiseSettings
from paella_jax.sampling.token_loop import Vocabulary
from paella_jax.sampling.token_sampler import token_settings
from paella_jax.training.compiled_step import MIB
from paella_jax.typing import Array, Tree


def abstract_conditioning(batch: int, text_length: int, config: ConfigDict) -> Conditioning:
    """Shapes of text states and CLIP vectors as the released model takes them."""
    text = jax.ShapeDtypeStruct((batch, text_length, config.text.width), jnp.float32)
    pooled = jax.ShapeDtypeStruct((batch, 1024), jnp.float32)
    image = jax.ShapeDtypeStruct((batch, 1, 1024), jnp.float32)
    return Conditioning(text=text, text_pooled=pooled, image_pooled=image)


def random_tree(shapes: Tree, dtype: Any, seed: int = 0) -> Tree:
    """Normal weights of standard deviation 0.02, made on the host leaf by leaf in `dtype`."""
    random = np.random.default_rng(seed)

    def leaf(shape: jax.ShapeDtypeStruct) -> Array:
        return jnp.asarray(random.standard_normal(shape.shape, np.float32) * 0.02, dtype)

    return jax.tree.map(leaf, shapes)


class ProgramCost(NamedTuple):
    """One run of a program: what it gave, and what it took."""

    output: Array
    compile_seconds: float
    seconds: float
    temporaries_mib: int  # as XLA accounts for them


def run_once(function: Callable[..., Array], *inputs: Tree) -> ProgramCost:
    """Compiles a function for its inputs and runs it once."""
    began = time.perf_counter()
    compiled = jax.jit(function).lower(*inputs).compile()
    compile_seconds = time.perf_counter() - began
    began = time.perf_counter()
    output = jax.block_until_ready(compiled(*inputs))
    seconds = time.perf_counter() - began
    memory: Any = compiled.memory_analysis()
    return ProgramCost(output, compile_seconds, seconds, round(memory.temp_size_in_bytes / MIB))


def resident_peak_mib() -> int:
    """The highest resident memory of this process."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def sampling_cost(
    config: ConfigDict, *, image_size: int = 256, text_length: int = 64, params_dtype: str
) -> dict[str, Any]:
    """Compiles and runs guided sampling and decoding of one image, as one program.

    Args:
      config: a config of configs/paella.py; its sampler's settings are used too.
      image_size: pixels.
      text_length: positions of the conditional text; the unconditional one has 1.
      params_dtype: dtype the predictor's parameters are stored in.

    Returns:
      Seconds to compile and to sample, the program's memory as XLA accounts for it, and the highest
      resident memory of the process, in MiB.
    """
    dtype = jnp.dtype(config.precision)
    model = Paella(**config.model, dtype=dtype)
    vqgan = VQGAN(codebook_size=model.codebook_size)
    side = image_size // vqgan.downsampling
    shape = (1, side, side)
    cond = abstract_conditioning(1, text_length, config)
    uncond = replace(abstract_conditioning(1, 1, config), image_pooled=None)
    tokens, t = jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct((1,), jnp.float32)
    init = lambda *inputs: model.init(jax.random.key(0), *inputs)
    params = random_tree(jax.eval_shape(init, tokens, t, cond), params_dtype)
    images = jnp.zeros((1, 4 * vqgan.downsampling, 4 * vqgan.downsampling, 3))
    decoder = jax.jit(vqgan.init)(jax.random.key(1), images)
    settings = token_settings("uniform", "random", config.sampler, {})
    assert isinstance(settings, RenoiseSettings)

    def draw(params: Tree, decoder: Tree, key: Array, cond: Any, uncond: Any) -> Array:
        predict = lambda c: lambda tokens, t: model.apply(params, tokens, t, c)
        denoise = guide(predict(cond), predict(uncond))
        tokens = sample(denoise, key, shape, settings, Vocabulary(model.codebook_size))
        return vqgan.apply(decoder, tokens, method="decode_tokens")

    conditions = (random_tree(cond, jnp.float32), random_tree(uncond, jnp.float32))
    cost = run_once(draw, params, decoder, jax.random.key(2), *conditions)
    image = np.asarray(cost.output)
    return {
        "image": list(image.shape),
        "finite": bool(np.isfinite(image).all()),
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "compile_seconds": round(cost.compile_seconds, 1),
        "sample_seconds": round(cost.seconds, 1),
        "parameters_mib": round(sum(x.nbytes for x in jax.tree.leaves(params)) / MIB),
        "guided_logits_pair_mib": round(2 * side * side * model.codebook_size * 4 / MIB),
        "program_temporaries_mib": cost.temporaries_mib,
        "resident_peak_mib": resident_peak_mib(),
    }
