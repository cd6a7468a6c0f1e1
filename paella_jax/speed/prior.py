"""A CLIP prior's prediction and its sampler, on embeddings of made-up texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.families.clip_prior import make_clip_prior
from paella_jax.noise.gaussian import CosineSchedule
from paella_jax.pipelines.narrow import narrow
from paella_jax.sampling.diffusion import FROM_UNIT_NOISE, plan
from paella_jax.sampling.diffusion_settings import DDPMSettings
from paella_jax.sampling.guidance import guide
from paella_jax.sampling.loop import Loop, advance, padded, run
from paella_jax.speed.case import Case
from paella_jax.typing import Array, Tree


def prior_prediction(
    config: ConfigDict, images: int
) -> tuple[Callable[..., Array], Tree, Any, Any]:
    """(parameters, x, t, texts) -> noise, and shapes of its parameters, of x and of texts."""
    model = make_clip_prior(config)
    embedding = jax.ShapeDtypeStruct((images, model.clip_width), np.float32)
    t = jax.ShapeDtypeStruct((images,), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), embedding, t, embedding)["params"]
    predict = lambda params, x, t, text: model.apply({"params": params}, x, t, text)
    return predict, params, embedding, embedding


def prior_sampling_case(config: ConfigDict, images: int) -> Case:
    """All steps from texts' embeddings to images', as families/clip_prior.py runs them."""
    predict, params, embedding, _ = prior_prediction(config, images)
    schedule, settings = CosineSchedule(**config.schedule), DDPMSettings(**config.sampler)
    course, shape = settings.course(), embedding.shape

    def loop(params: Tree, texts: Array, keys: Array, course: Any) -> Loop:
        of = lambda text: lambda x, t: predict(params, x, t, text)
        denoise = guide(of(texts), of(jnp.zeros_like(texts)))
        own = settings.program()
        return plan(denoise, keys, shape, own, schedule, FROM_UNIT_NOISE, course)

    def steps(params: Tree, texts: Array, keys: Array, course: Any) -> Array:
        made, nothing = loop(params, texts, keys, course), jnp.zeros(shape)
        reached = made.carry, (nothing, nothing)
        return advance(made, reached, course.edges[0], course.edges[-1])[0][0]

    whole = lambda params, texts, keys: run(loop(params, texts, keys, course), False)[0]
    keys = jax.ShapeDtypeStruct((images,), jax.random.key(0).dtype)
    params = narrow(params, (whole, (embedding, keys)))
    guided = "" if course.guidance_scale is None else "guided "
    return Case(
        f"CLIP prior: {settings.num_steps} {guided}steps",
        jax.jit(steps),
        (params, embedding, keys, padded(course)),
        images,
        (whole, (params, embedding, keys)),
    )
