"""A token pipeline's weights as its device holds them (narrow.py)."""

from __future__ import annotations

from typing import Any

import jax

from paella_jax.families.token_networks import TokenNetworks
from paella_jax.models.conditioning import ConditionInputs
from paella_jax.pipelines.batches import numbered
from paella_jax.pipelines.narrow import narrow
from paella_jax.pipelines.request import Form, Request, encode, run_request
from paella_jax.typing import Tree

Weights = tuple[Tree, Tree]  # trained and frozen


def held_tokens(
    networks: TokenNetworks,
    weights: Weights,
    inputs: ConditionInputs,
    grid: tuple[int, int],
    settings: Any,
) -> Weights:
    """A token predictor's weights as encoders and steps read them; others stay as they are.

    Args:
      networks: of the run.
      weights: as they were loaded.
      inputs: of one image.
      grid: of its token map.
      settings: of the sampler.
    """
    texts = lambda weights, inputs: encode(networks, weights[0], weights[1], inputs)
    cond = jax.eval_shape(texts, weights, inputs)
    request = Request((cond,), cond, None, numbered([0], 1))
    form, course = Form(settings.program(), grid, False), settings.course()
    steps = lambda weights, request: run_request(networks, weights, request, course, form)
    return narrow(weights, (texts, (inputs,)), (steps, (request,)))
