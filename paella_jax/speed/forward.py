"""One prediction of the network that a preset trains, without dropout and without its encoders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from paella_jax.compile.programs import stage_sampling, token_sampling
from paella_jax.pipelines.narrow import narrow
from paella_jax.pipelines.request import encode
from paella_jax.pipelines.wuerstchen_programs import encode_texts
from paella_jax.speed.case import Case
from paella_jax.speed.prior import prior_prediction
from paella_jax.typing import Array, Tree

Predict = Callable[..., Array]  # (parameters, maps, t [images], conditions) -> a prediction


def forward_case(config: ConfigDict, images: int) -> Case:
    """The forward pass on maps of `config.data.image_size`, a noise level and conditions each.

    What encoders make of texts (and the guide of Stage B) is given. All that the network itself
    makes of them, as keys and values of every block, is part of the pass.

    Args:
      config: of a method with "tokens", "stage_b", "stage_c" or "clip_prior".
      images: of the batch.
    """
    made = {"tokens": _of_tokens, "clip_prior": prior_prediction}
    predict, params, x, cond = made.get(config.method, _of_stage)(config, images)
    inputs = (x, jax.ShapeDtypeStruct((images,), np.float32), cond)
    params = narrow(params, (predict, inputs))  # as a pipeline holds them
    return Case("forward", jax.jit(predict), (params, *inputs), images)


def _of_tokens(config: ConfigDict, images: int) -> tuple[Predict, Tree, Any, Any]:
    made = token_sampling(config, images)
    texts: Any = made.request.conditions[0]
    cond = jax.eval_shape(partial(encode, made.networks), made.params, made.frozen, texts)
    apply = made.networks.predictor.apply
    predict = lambda params, tokens, t, cond: apply({"params": params}, tokens, t, cond)
    tokens = jax.ShapeDtypeStruct((images, *made.form.grid), np.int32)
    return predict, made.params["predictor"], tokens, cond


def _of_stage(config: ConfigDict, images: int) -> tuple[Predict, Tree, Any, Any]:
    made = stage_sampling(config, images)
    texts = partial(encode_texts, made.networks)
    request = jax.eval_shape(texts, (made.params, made.frozen), made.request)
    module = getattr(made.networks, config.method)
    predict = lambda params, x, t, cond: module.apply({"params": params}, x, t, cond)
    latents = jax.ShapeDtypeStruct((images, *made.shape), np.float32)
    return (
        predict,
        made.params[config.method],
        latents,
        request.texts.replace(guide=request.guide),
    )
