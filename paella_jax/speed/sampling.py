"""The programs behind a pipeline's call, one by one: encoders, steps, decoder."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.compile.programs import (
    TokenSampling,
    canonical,
    stage_sampling,
    token_sampling,
)
from paella_jax.families import abstract
from paella_jax.pipelines.narrow import narrow
from paella_jax.pipelines.request import advance_request, encode, run_request
from paella_jax.pipelines.wuerstchen_programs import advance_stage, empty_state, encode_texts
from paella_jax.sampling.loop import padded, run
from paella_jax.speed.case import Case
from paella_jax.typing import Tree


def token_sampling_cases(config: ConfigDict, images: int) -> list[Case]:
    """Texts through their encoders, the sampler's steps, and tokens to images."""
    made = token_sampling(config, images)
    networks, request = made.networks, made.request
    encoder = partial(encode, networks)
    inputs: Any = request.conditions[0]
    cond = jax.eval_shape(encoder, made.params, made.frozen, inputs)
    encoded = replace(request, conditions=(cond,), unconditional=cond)
    params, frozen = narrow(
        (made.params, made.frozen),
        (lambda weights, inputs: encoder(weights[0], weights[1], inputs), (inputs,)),
        (lambda weights, request: _steps(made, weights, request), (encoded,)),
    )
    decode = jax.jit(networks.decode_tokens)
    tokens = jax.ShapeDtypeStruct((images, *made.form.grid), np.int32)
    texts = {name: tree for name, tree in frozen.items() if name != "vqgan"}
    return [
        Case("text encoders", jax.jit(encoder), (params, texts, inputs), images),
        _step_case(made, params, frozen, encoded, images),
        Case("decode tokens", decode, ({"vqgan": frozen["vqgan"]}, tokens), images),
    ]


def _steps(made: TokenSampling, weights: Any, request: Any) -> Any:
    return run_request(made.networks, weights, request, made.course, made.form)


def _step_case(made: TokenSampling, params: Tree, frozen: Tree, request: Any, images: int) -> Case:
    """All steps, as a pipeline runs them; the sampler reads the predictor and the codebook."""
    own = {"predictor": params["predictor"]}
    weights = (own, {"vqgan": {"params": {"codebook": frozen["vqgan"]["params"]["codebook"]}}})
    empty = jax.ShapeDtypeStruct((images, *made.form.grid), np.int32)
    edges = made.course.edges
    span = (jnp.int32(edges[0]), jnp.int32(edges[-1]))
    advance = jax.jit(partial(advance_request, made.networks, form=made.form))
    steps = int(edges[-1] - edges[0])
    return Case(
        f"{steps} {'guided ' if made.request.unconditional is not None else ''}steps",
        advance,
        (weights, request, padded(made.course), (empty, empty), span),
        images,
        (partial(_steps, made), (weights, request)),
    )


def stage_sampling_cases(config: ConfigDict, images: int) -> list[Case]:
    """Of Stage C or Stage B: texts through the encoder, and the sampler's steps."""
    made = stage_sampling(config, images)
    texts = partial(encode_texts, made.networks)
    weights = (made.params, made.frozen)
    encoded = jax.eval_shape(texts, weights, made.request)
    run_all = lambda weights, request: run(
        made.plan(weights, request, made.settings.course(), made.settings, made.shape), False
    )
    params, frozen = narrow(weights, (texts, (made.request,)), (run_all, (encoded,)))
    course = made.settings.course()
    steps = partial(advance_stage, made.plan, settings=made.settings.program(), shape=made.shape)
    span = (jnp.int32(course.edges[0]), jnp.int32(course.edges[-1]))
    state = canonical(empty_state(images, made.shape, made.settings))
    stage = {"stage_b": "Stage B", "stage_c": "Stage C"}[config.method]
    guided = "" if course.guidance_scale is None else "guided "
    own: tuple[Tree, Tree] = ({config.method: params[config.method]}, {})
    return [
        Case(f"{stage}'s text encoder", jax.jit(texts), ((params, frozen), made.request), images),
        Case(
            f"{stage}: {int(span[1] - span[0])} {guided}steps",
            jax.jit(steps),
            (own, encoded, padded(course), state, span),
            images,
            (run_all, (own, encoded)),
        ),
    ]


def decoder_case(config: ConfigDict, images: int) -> Case:
    """Stage B's latents to images, by Stage A."""
    networks, frozen = abstract.stage_b_networks(config)
    side = networks.latent_side(config.data.image_size)
    latents = jax.ShapeDtypeStruct((images, side, side, networks.vqgan.latent_channels), np.float32)
    given = {"vqgan": frozen["vqgan"]}
    return Case("Stage A: decode", jax.jit(networks.decode_latents), (given, latents), images)
