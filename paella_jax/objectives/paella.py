"""Paella's training step: noise the tokens, predict the clean ones (reference/paella.md 2.6, 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.models.conditioning import Conditioning
from paella_jax.noise.tokens import add_noise, sample_noise_level
from paella_jax.objectives.inputs import Objective, StepInputs, images_from_batch
from paella_jax.objectives.tokens import weighted_token_loss

Array = jax.Array
Tree = Any


def drop_text(keys: Array, ids: Array, mask: Array, share: float) -> tuple[Array, Array]:
    """Replaces a share of the captions by the empty one: a single end token.

    Per sample, by its own key. The reference decides once per per-process batch, which makes the
    gradient of a small batch all or nothing; the expected share is the same (paella.md 3).
    """
    drop = jax.vmap(lambda key: jax.random.uniform(key) < share)(keys)[:, None]
    first = jnp.arange(ids.shape[1])[None, :] == 0
    empty_ids = jnp.broadcast_to(first.astype(ids.dtype), ids.shape)  # end token 1, then padding 0
    return jnp.where(drop, empty_ids, ids), jnp.where(drop, first, mask)


def paella_objective(
    predict: Callable[..., Array],
    encode_text: Callable[..., Conditioning],
    encode_images: Callable[[Tree, Array], Array],
    settings: ConfigDict,
    codebook_size: int,
) -> Objective:
    """Builds the objective.

    Args:
      predict: (params, tokens, t, cond, dropout_key) -> features before the classifier.
      encode_text: (params, frozen, ids, mask, dropout_key) -> Conditioning.
      encode_images: (frozen, images) -> tokens, the frozen tokenizer.
      settings: `config.objective` of configs/paella.py.
      codebook_size: vocabulary.
    """

    def objective(params: Tree, inputs: StepInputs) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        split = jax.vmap(lambda key: jax.random.split(key, 4))(inputs.keys)
        level_keys, noise_keys, drop_keys, dropout_keys = split.T
        batch = inputs.batch
        tokens = batch.get("tokens")
        if tokens is None:
            tokens = encode_images(inputs.frozen, images_from_batch(batch))
        ids, mask = drop_text(drop_keys, batch["text_ids"], batch["text_mask"], settings.text_drop)
        text_key, network_key = jax.random.split(dropout_keys[0])
        cond = encode_text(params, inputs.frozen, ids, mask, text_key)
        t = sample_noise_level(level_keys, settings.minimum_t)
        noised, noise_mask = add_noise(noise_keys, tokens, t, codebook_size)
        features = predict(params, noised, t, cond, network_key)
        loss, metrics = weighted_token_loss(
            features,
            params["predictor"]["classifier"],
            tokens,
            noise_mask,
            t,
            smoothing=settings.label_smoothing,
            minimum=settings.minimum_weight,
            chunks=settings.loss_chunks,
        )
        return loss, (metrics, inputs.model_state)

    return objective
