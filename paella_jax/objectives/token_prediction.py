"""A token predictor's training step: corrupt the tokens, predict the clean ones.

Paella replaces tokens by random ones and weighs all positions (docs/models/paella.md 2.6, 3); MUSE
masks an exact number and looks at the masked ones alone (docs/models/muse.md 1.5, 2.8). Both divide
by each image's own weight, so that the loss does not depend on how a batch is cut or sharded
(aMUSEd divides by the batch's masked tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.models.conditioning import Conditioning, ConditionInputs
from paella_jax.noise.masking import add_mask, sample_mask_ratio
from paella_jax.noise.tokens import add_noise, loss_weight, sample_noise_level, split_keys
from paella_jax.objectives.inputs import (
    EMPTY,
    Objective,
    StepInputs,
    drop_rows,
    images_from_batch,
    keys_of_dropout,
)
from paella_jax.ops.cross_entropy import chunked_cross_entropy
from paella_jax.typing import Array, Tree

# In a batch; the second line where frozen networks ran beforehand (data/encoded.py).
CONDITIONS = ("text_ids", "text_mask", "clip_ids", "labels", "segmentation", "micro_conds",
              "text_states", "text_pooled", "image_pooled", "low_tokens")  # fmt: skip

# (params, frozen, images, keep) -> a condition; where `keep` (bool [batch]) is False an image is
# none, and nobody will look.
FromImages = Callable[[Tree, Tree, Array, Array], Array]


class Dropped(NamedTuple):
    """Which samples lose which kind of condition, bool [batch] each."""

    text: Array
    clip_text: Array
    image: Array
    label: Array
    segmentation: Array


class Kinds(NamedTuple):
    """Which kinds of condition a run has, in the order of `Dropped`."""

    text: bool
    clip_text: bool
    image: bool
    label: bool
    segmentation: bool


def draw_dropped(keys: Array, settings: ConfigDict, given: Kinds) -> Dropped:
    """A fraction of the samples, for each kind by its own draw.

    With `one_condition` that share of the samples keeps a single kind of those that the run has,
    each as often, in proportion, as it is kept otherwise: where a text says everything, a network
    learns little of an image beside it.

    Every sample's own key decides. The reference decides once per per-process batch, which makes
    the gradient of a small batch all or nothing; the expected fractions are the same
    (docs/models/paella.md 3). It also skips the image encoder where the whole batch drops it; here
    a frozen one sees about those images that are kept (ops/by_need.py).

    Args:
      keys: [batch].
      settings: `config.objective`.
      given: of the run. Where CLIP's is the only text, `text_drop` is its fraction.
    """
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (5,)))(keys)
    clip_alone = given.clip_text and not given.text
    clip_drop = settings.text_drop if clip_alone else settings.clip_text_drop
    fractions = (settings.text_drop, clip_drop, settings.image_drop,
              settings.label_drop, settings.segmentation_drop)  # fmt: skip
    dropped = uniform < jnp.asarray(fractions)[None, :]
    kept = np.where(given, 1.0 - np.asarray(fractions), 0.0)
    alone = settings.get("one_condition", 0.0)  # older runs lack the field
    if alone and kept.any():
        more = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (2,)))(keys)
        others = _all_but_one(more[:, 0], kept)
        dropped = jnp.where(more[:, 1:] < alone, others, dropped)
    return Dropped(*dropped.T)


def _all_but_one(uniform: Array, weights: np.ndarray) -> Array:
    """Bool [batch, kinds]; the one is drawn in proportion to its weight, by numbers in [0, 1)."""
    ends = jnp.asarray(np.cumsum(weights) / weights.sum(), jnp.float32)
    kind = jnp.searchsorted(ends, uniform, side="right")
    return kind[:, None] != jnp.arange(len(weights))[None, :]


def drop_conditions(
    dropped: Dropped,
    inputs: ConditionInputs,
    empty_clip_ids: Array | None,
    empty: Mapping[str, Array] = MappingProxyType({}),
) -> ConditionInputs:
    """Takes conditions away.

    Text becomes the empty one (a single end token), CLIP text the empty one's ids; images, labels
    and maps become absent. What frozen encoders made of texts beforehand becomes what they made of
    the empty one, `empty`.
    """
    changes: dict[str, Any] = {}
    if inputs.text_mask is not None:
        mask = inputs.text_mask
        first = jnp.arange(mask.shape[1])[None, :] == 0
        changes["text_mask"] = jnp.where(dropped.text[:, None], first, mask)
        if inputs.text_ids is not None:
            ids = inputs.text_ids
            end = jnp.broadcast_to(first.astype(ids.dtype), ids.shape)  # end token 1, padding 0
            changes["text_ids"] = jnp.where(dropped.text[:, None], end, ids)
    if inputs.clip_ids is not None and empty_clip_ids is not None:
        nothing = jnp.broadcast_to(empty_clip_ids[None, :], inputs.clip_ids.shape)
        changes["clip_ids"] = jnp.where(dropped.clip_text[:, None], nothing, inputs.clip_ids)
    states_drop = dropped.clip_text if has_clip_alone(inputs) else dropped.text
    for name, drop in (("text_states", states_drop), ("text_pooled", dropped.clip_text)):
        given = getattr(inputs, name)
        if given is not None:
            changes[name] = drop_rows(drop, given, empty[name])
    if inputs.image_pooled is not None:
        there = ~dropped.image[:, None]
        changes["image_mask"] = jnp.broadcast_to(there, inputs.image_pooled.shape[:2])
    if inputs.labels is not None:
        changes["labels"] = jnp.where(dropped.label, -1, inputs.labels)
    if inputs.segmentation is not None:
        absent = dropped.segmentation[:, None, None]
        changes["segmentation"] = jnp.where(absent, -1, inputs.segmentation)
    return replace(inputs, **changes)


def kinds_of(inputs: ConditionInputs, from_images: Mapping[str, Any]) -> Kinds:
    """Which kinds of condition a run has."""
    clip_alone = has_clip_alone(inputs)
    return Kinds(
        text=not clip_alone,
        clip_text=clip_alone or inputs.clip_ids is not None or inputs.text_pooled is not None,
        image="image_pooled" in from_images or inputs.image_pooled is not None,
        label=inputs.labels is not None,
        segmentation=inputs.segmentation is not None,
    )


def has_clip_alone(inputs: ConditionInputs) -> bool:
    """Whether CLIP's is the only text."""
    return inputs.text_ids is None and inputs.text_mask is None


def unmasked_padding(inputs: ConditionInputs) -> ConditionInputs:
    """Shows the networks the padding up to the batch's longest text, as the reference does.

    It pads a batch to its longest caption and gives no mask (docs/models/paella.md 3). An empty
    text stays its end token alone: the reference drops the texts of a whole batch, which is then
    not padded, and that is what the sampler's guidance is made of.
    """
    if inputs.text_mask is None:
        return inputs
    empty = inputs.text_mask.sum(axis=1, keepdims=True) <= 1
    used = inputs.text_mask.any(axis=0)[None, :] & ~empty
    return replace(inputs, text_mask=inputs.text_mask | used)


def sample_level(keys: Array, settings: ConfigDict) -> Array:
    """The fraction of tokens to corrupt, one per sample; keys [batch] -> float32 [batch].

    Density "uniform" is Paella's, "cosine" MUSE's arccos density, which has its mass near 1.
    """
    if settings.density == "uniform":
        return sample_noise_level(keys, settings.minimum_t)
    return sample_mask_ratio(keys, settings.density, settings.minimum_t)


def corrupt(
    keys: Array, tokens: Array, t: Array, codebook_size: int, mask_token: int | None
) -> tuple[Array, Array]:
    """Corrupted tokens and where (bool), both [batch, h, w].

    Without a `mask_token` every token is replaced by a random one with probability t; with it an
    exact fraction t becomes the mask.
    """
    if mask_token is None:
        return add_noise(keys, tokens, t, codebook_size)
    return add_mask(keys, tokens, t, mask_token)


def token_weight(
    noise_mask: Array, t: Array, settings: ConfigDict, mask_token: int | None
) -> Array:
    """Loss weights float32 [batch, h, w]: corrupted tokens alone, or all by Paella's formula.

    `settings.loss_positions` chooses; None is what each corruption was published with.
    """
    published = "all" if mask_token is None else "corrupted"
    if (settings.get("loss_positions") or published) == "all":
        return loss_weight(noise_mask, t, settings.minimum_weight)
    return noise_mask.astype(jnp.float32)


def token_objective(
    predict: Callable[..., Array],
    condition: Callable[..., Conditioning],
    encode_images: Callable[[Tree, Array], Array],
    settings: ConfigDict,
    codebook_size: int,
    *,
    mask_token: int | None = None,
    from_images: Mapping[str, FromImages] = MappingProxyType({}),
    empty_clip_ids: Array | None = None,
) -> Objective:
    """Builds the objective.

    Args:
      predict: (params, tokens, t, cond, dropout_key) -> features before the classifier; without a
        key nothing is dropped.
      condition: (params, frozen, ConditionInputs, dropout_key) -> Conditioning.
      encode_images: (frozen, images) -> tokens, the frozen tokenizer.
      settings: `config.objective` of configs/paella.py.
      codebook_size: vocabulary.
      mask_token: the mask's id; None replaces tokens by random ones.
      from_images: conditions made of the images themselves: a field of `ConditionInputs` -> its
        `FromImages`.
      empty_clip_ids: int32 [77], CLIP's tokens of the empty text, where CLIP text is used.
    """

    def objective(params: Tree, inputs: StepInputs) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        level_keys, noise_keys, drop_keys, dropout_keys = split_keys(inputs.keys, 4)
        batch, frozen = inputs.batch, inputs.frozen
        tokens = batch.get("tokens")
        if tokens is None:
            tokens = encode_images(frozen, images_from_batch(batch))
        given = ConditionInputs(**{name: batch.get(name) for name in CONDITIONS})
        dropped = draw_dropped(drop_keys, settings, kinds_of(given, from_images))
        for name, make in from_images.items():
            if getattr(given, name) is None:
                value = make(params, frozen, images_from_batch(batch), ~dropped.image)
                given = replace(given, **{name: value})
        given = drop_conditions(dropped, given, empty_clip_ids, frozen.get(EMPTY, {}))
        if not settings.mask_padding:
            given = unmasked_padding(given)
        text_key, network_key = keys_of_dropout(inputs, dropout_keys[0], settings, 2)
        cond = condition(params, frozen, given, text_key)
        t = sample_level(level_keys, settings)
        noised, noise_mask = corrupt(noise_keys, tokens, t, codebook_size, mask_token)
        features = predict(params, noised, t, cond, network_key)
        loss, metrics = weighted_token_loss(
            *with_bias(features, params["predictor"]),
            tokens,
            noise_mask,
            token_weight(noise_mask, t, settings, mask_token),
            smoothing=settings.label_smoothing,
            chunks=settings.loss_chunks,
        )
        return loss, (metrics, inputs.model_state)

    return objective


def weighted_token_loss(
    features: Array,
    classifier: Array,
    targets: Array,
    noise_mask: Array,
    weight: Array,
    *,
    smoothing: float = 0.1,
    chunks: int = 1,
) -> tuple[Array, dict[str, Array]]:
    """Label-smoothed cross-entropy, weighted per token and normalised per image.

    Args:
      features: [batch, h, w, width], the predictor's output before its classifier.
      classifier: [width, codes].
      targets: int32 [batch, h, w], the clean tokens.
      noise_mask: bool [batch, h, w].
      weight: float32 [batch, h, w], the weight of each token's loss; an image whose weights are all
        0, as no token of it happened to be corrupted, has no loss.
      smoothing: label smoothing.
      chunks: of `chunked_cross_entropy`.

    Returns:
      The scalar loss, and metrics: accuracy over all tokens, over the noised ones, and the
      unweighted loss of the noised ones.
    """
    scores = chunked_cross_entropy(
        features, classifier, targets, smoothing=smoothing, chunks=chunks
    )
    total = weight.sum((1, 2))
    per_image = (scores.loss * weight).sum((1, 2)) / jnp.where(total > 0, total, 1.0)
    noised = noise_mask.astype(jnp.float32)
    count = jnp.maximum(noised.sum(), 1.0)
    metrics = {
        "accuracy": scores.correct.mean(),
        "accuracy_noised": (scores.correct * noised).sum() / count,
        "loss_noised": (scores.loss * noised).sum() / count,
    }
    return per_image.mean(), metrics


def with_bias(features: Array, predictor: Tree) -> tuple[Array, Array]:
    """Features and classifier of a predictor's parameters, for a product without a bias.

    A bias (of U-ViTs with `use_bias` and of tied heads) becomes the classifier's last row, with
    ones as the features' last column. A tied head's classifier is the codes' embeddings.
    """
    bias = predictor.get("classifier_bias")
    if bias is None:
        return features, predictor["classifier"]
    tied = "classifier" not in predictor
    classifier = (
        predictor["embedding"]["token_table"][: len(bias)].T if tied else predictor["classifier"]
    )
    ones = jnp.ones((*features.shape[:-1], 1), features.dtype)
    return jnp.concatenate([features, ones], -1), jnp.concatenate([classifier, bias[None]])
