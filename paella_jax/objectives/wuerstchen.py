"""Training steps of Würstchen's Stage B and Stage C (docs/models/wuerstchen.md 4.4, 5.3, 5.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.models.conditioning import Conditioning
from paella_jax.noise.gaussian import CosineSchedule, diffuse, gaussian_noise
from paella_jax.noise.tokens import split_keys, uniform_per_sample
from paella_jax.objectives.inputs import (
    EMPTY,
    Objective,
    StepInputs,
    drop_rows,
    images_from_batch,
    keys_of_dropout,
)
from paella_jax.objectives.noise_prediction import noise_prediction_loss
from paella_jax.typing import Array, Tree

# (params, frozen, ids, mask, batch size, dropout key or None) -> the text part of a conditioning
EncodeText = Callable[[Tree, Tree, Array | None, Array | None, int, Array | None], Conditioning]


def drop_text(
    keys: Array, ids: Array, mask: Array, empty: tuple[np.ndarray, np.ndarray], fraction: float
) -> tuple[Array, Array]:
    """Replaces the ids and mask [batch, length] of a fraction of the samples by the empty text's.

    Every sample's own key decides. The reference decides once per batch; the expected fraction is
    equal.
    """
    drop = (uniform_per_sample(keys) < fraction)[:, None]
    choose = lambda given, nothing: jnp.where(drop, jnp.asarray(nothing)[None, :], given)
    return choose(ids, empty[0]), choose(mask, empty[1])


def disturb_guide(
    keys: Array, guide: Array, schedule: CosineSchedule, settings: ConfigDict
) -> Array:
    """Zeroes a fraction of the guides, and noises a fraction of the others: t' ~ U(0, guide_noise).

    It keeps Stage B from trusting the compressor's latents to the last digit, which Stage C cannot
    predict. The reference zeroes whole batches; here it is per sample.
    """
    drop_keys, choice_keys, level_keys, noise_keys = split_keys(keys, 4)
    wide = lambda x: x[:, None, None, None]
    level = uniform_per_sample(level_keys) * settings.guide_noise
    noise = gaussian_noise(noise_keys, guide.shape[1:])
    noised = diffuse(guide, noise, schedule.alpha_bar(level))
    chosen = uniform_per_sample(choice_keys) < settings.guide_noise_share
    guide = jnp.where(wide(chosen), noised, guide)
    return jnp.where(wide(uniform_per_sample(drop_keys) < settings.guide_drop), 0.0, guide)


def stage_b_objective(
    predict: Callable[[Tree, Array, Array, Conditioning, Array | None], Array],
    encode_text: EncodeText,
    encode_latents: Callable[[Tree, Array], Array],
    compress: Callable[[Tree, Tree, Tree, Array, Array | None], tuple[Array, Tree]],
    empty: tuple[np.ndarray, np.ndarray] | None,
    schedule: CosineSchedule,
    settings: ConfigDict,
) -> Objective:
    """Predicts the noise in Stage A's latents, guided by the compressor's.

    Args:
      predict: (params, noised, t, cond, dropout key or None) -> noise.
      encode_text: an `EncodeText`.
      encode_latents: (frozen, images) -> Stage A latents, scaled.
      compress: (params, frozen, model_state, images, dropout key or None) -> raw guide, new
        model_state.
      empty: ids and mask of the empty text; None without text.
      schedule: the noise schedule.
      settings: `config.objective` of configs/stage_b.py.
    """

    def objective(params: Tree, inputs: StepInputs) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        noise_keys, text_keys, guide_keys, dropout_keys = split_keys(inputs.keys, 4)
        text_key, guide_key, network_key = keys_of_dropout(inputs, dropout_keys[0], settings, 3)
        batch, frozen, model_state = inputs.batch, inputs.frozen, inputs.model_state
        latents = batch.get("latents")
        if latents is None:
            latents = encode_latents(frozen, images_from_batch(batch))
        guide = batch.get("guide")
        if guide is None:
            images = images_from_batch(batch)
            guide, model_state = compress(params, frozen, model_state, images, guide_key)
        guide = disturb_guide(guide_keys, guide, schedule, settings)
        run = lambda ids, mask: encode_text(params, frozen, ids, mask, len(latents), text_key)
        cond = replace(_text(run, inputs, text_keys, empty, settings.text_drop), guide=guide)
        denoise = lambda x, t: predict(params, x, t, cond, network_key)
        loss, metrics = noise_prediction_loss(denoise, latents, noise_keys, schedule, settings)
        return loss, (metrics, model_state)

    return objective


def stage_c_objective(
    predict: Callable[[Tree, Array, Array, Conditioning, Array | None], Array],
    encode_text: EncodeText,
    compress: Callable[[Tree, Array], Array],
    empty: tuple[np.ndarray, np.ndarray],
    schedule: CosineSchedule,
    settings: ConfigDict,
) -> Objective:
    """Predicts the noise in the compressor's latents, given the text.

    Args:
      predict: (params, noised, t, cond, dropout key or None) -> noise.
      encode_text: an `EncodeText`.
      compress: (frozen, images) -> latents in Stage C's scale.
      empty: ids and mask of the empty text.
      schedule: the noise schedule.
      settings: `config.objective` of configs/stage_c.py.
    """

    def objective(params: Tree, inputs: StepInputs) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        noise_keys, text_keys, dropout_keys = split_keys(inputs.keys, 3)
        text_key, network_key = keys_of_dropout(inputs, dropout_keys[0], settings, 2)
        latents, frozen = inputs.batch.get("latents"), inputs.frozen
        if latents is None:
            latents = compress(frozen, images_from_batch(inputs.batch))
        run = lambda ids, mask: encode_text(params, frozen, ids, mask, len(latents), text_key)
        cond = _text(run, inputs, text_keys, empty, settings.text_drop)
        denoise = lambda x, t: predict(params, x, t, cond, network_key)
        loss, metrics = noise_prediction_loss(denoise, latents, noise_keys, schedule, settings)
        return loss, (metrics, inputs.model_state)

    return objective


def _text(
    run: Callable[[Array | None, Array | None], Conditioning],
    inputs: StepInputs,
    keys: Array,
    empty: tuple[np.ndarray, np.ndarray] | None,
    fraction: float,
) -> Conditioning:
    """The text that is left: encoded by `run` (ids, mask), or beforehand by a frozen encoder."""
    batch = inputs.batch
    if empty is None:
        return run(None, None)
    if "text_states" in batch:
        drop = uniform_per_sample(keys) < fraction
        nothing = inputs.frozen[EMPTY]["text_states"]
        return Conditioning(text=drop_rows(drop, batch["text_states"], nothing))
    return run(*drop_text(keys, batch["text_ids"], batch["text_mask"], empty, fraction))


def direct_decoder_objective(
    decode: Callable[[Tree, Array, int, int], Array], compress: Callable[[Tree, Array], Array]
) -> Objective:
    """Builds the objective.

    Args:
      decode: (params, latents, height, width) -> images.
      compress: (frozen, images) -> latents.
    """

    def objective(params: Tree, inputs: StepInputs) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        images = images_from_batch(inputs.batch)
        latents = jax.lax.stop_gradient(compress(inputs.frozen, images))
        error = jnp.square(decode(params, latents, *images.shape[1:3]) - images).mean()
        return error, ({"mse": error}, inputs.model_state)

    return objective
