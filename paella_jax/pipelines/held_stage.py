"""The weights of one of Würstchen's stages as its device holds them (narrow.py)."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from paella_jax.families.stage_b import StageBNetworks
from paella_jax.families.stage_c import StageCNetworks
from paella_jax.pipelines.batches import numbered
from paella_jax.pipelines.narrow import narrow
from paella_jax.pipelines.wuerstchen_programs import (
    StageRequest,
    draw_encoded,
    encode_texts,
    plan_b,
    plan_c,
)
from paella_jax.sampling.diffusion_settings import DDPMSettings
from paella_jax.typing import Tree

Weights = tuple[Tree, Tree]  # trained and frozen


def held_stage(
    networks: StageBNetworks | StageCNetworks,
    stage_b: StageBNetworks,
    weights: Weights,
    settings: DDPMSettings,
    shape: tuple[int, int, int],
    guide: tuple[int, int, int],
) -> Weights:
    """A stage's weights as encoder and steps read them; others stay as they are.

    Args:
      networks: of the stage.
      stage_b: of Stage B; the same where it is the stage.
      weights: as they were loaded.
      settings: of the sampler.
      shape: of the stage's latents.
      guide: shape of the compressor's latents, which Stage B reads.
    """
    is_b = isinstance(networks, StageBNetworks)
    ids = networks.text.ids([""])
    latents = np.zeros((1, *guide), np.float32) if is_b else None
    request = StageRequest(numbered([0], 1), ids, ids, guide=latents)
    texts = lambda weights, request: encode_texts(networks, weights, request)
    encoded = jax.eval_shape(texts, weights, request)

    def steps(weights: Weights, request: StageRequest) -> Any:
        if isinstance(networks, StageBNetworks):
            plan = plan_b(networks, weights, request, settings.course(), settings, shape)
        else:
            plan = plan_c(networks, stage_b, weights, request, settings.course(), settings, shape)
        return draw_encoded(plan)

    return narrow(weights, (texts, (request,)), (steps, (encoded,)))
