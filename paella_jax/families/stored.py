"""What `encode` computes once for each method, in place of every step (training/method.py).

Only what is frozen: an encoder that trains along goes on reading stored ids or images.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.families.text_side import NAME, TextSide
from paella_jax.families.token_networks import TokenNetworks
from paella_jax.families.vqgan import encoder_arrays
from paella_jax.models.conditioning import ConditionInputs
from paella_jax.objectives.inputs import images_from_batch
from paella_jax.training.method import TEXT_LENGTH, Encoding, Tokenize
from paella_jax.typing import Array, Tree

# Neither encoded nor left out.
KEPT = ("text_mask", "labels", "segmentation", "micro_conds")


def token_encoding(
    config: ConfigDict, networks: TokenNetworks, frozen: Tree, tokenizers: dict[str, Tokenize]
) -> Encoding:
    """Of a token predictor: tokens, low tokens, frozen text states, pooled CLIP embeddings."""
    encoder, images_train = networks.image_encoder, False
    if encoder is not None:
        images_train = encoder.is_joint
    # Padding that is seen depends on the batch's longest text, and so do the states.
    keep_ids = networks.text_is_joint or not config.objective.mask_padding

    def arrays(frozen: Tree, batch: dict[str, Array]) -> dict[str, Array]:
        images = images_from_batch(batch)
        stored: dict[str, Array | None] = {"tokens": networks.encode_images(frozen, images)}
        if networks.low_vqgan is not None:
            stored["low_tokens"] = networks.encode_low(frozen, images)
        if images_train:
            stored["image"] = batch["image"]
        elif encoder is not None:
            stored["image_pooled"] = networks.embed_images({}, frozen, images)[:, None]
        text = {"clip_ids": batch.get("clip_ids"), "text_mask": batch.get("text_mask")}
        if "text_ids" in batch and keep_ids:
            stored["text_ids"] = batch["text_ids"]
        elif "text_ids" in batch:
            text["text_ids"] = batch["text_ids"]
        cond = networks.condition({}, frozen, ConditionInputs(**text), by_length=True)
        stored |= {"text_states": cond.text, "text_pooled": cond.text_pooled}
        stored |= {name: batch.get(name) for name in KEPT}
        return {name: array for name, array in stored.items() if array is not None}

    used = dict(frozen)
    if keep_ids:
        used.pop("text_encoder", None)
    digested = {n: encoder_arrays(t) if n.endswith("vqgan") else t for n, t in used.items()}
    settings = stored_settings(config, text=text_length(config)) | {
        "model.num_classes": config.model.num_classes,
        "model.num_segments": config.model.num_segments,
    }
    largest = {"tokens": networks.vqgan.codebook_size - 1}
    if networks.low_vqgan is not None:
        settings["low_grid of the network"] = networks.low_grid
        largest["low_tokens"] = networks.low_vqgan.codebook_size - 1
    if not keep_ids:
        settings["objective.mask_padding"] = config.objective.mask_padding
    if used.keys() - {"vqgan", "low_vqgan"}:
        settings["precision"] = config.precision
    return Encoding(arrays, digested, tokenizers, settings, largest)


def text_length(config: ConfigDict) -> int:
    """Ids of a text of a token predictor's batches."""
    return min(config.text.pad_to, config.text.max_length)


def stored_settings(config: ConfigDict, text: int) -> dict[str, Any]:
    """What the arrays of every method depend on; `text` is the length of a text's ids."""
    return {"data.image_size": config.data.image_size, TEXT_LENGTH: text}


def text_tokenizers(text: TextSide) -> dict[str, Tokenize]:
    """Of a diffusion stage; none where it sees no text."""
    if text.tokenizer is None:
        return {}

    def tokenize(texts: Any) -> Any:
        pair = text.ids(texts)
        assert pair is not None
        return pair

    return {"text": tokenize}


def stored_text(text: TextSide, frozen: Tree, batch: dict[str, Array]) -> dict[str, Array]:
    """States of a frozen encoder, else ids and mask; nothing without text."""
    if "text_ids" not in batch:
        return {}
    if NAME not in frozen:
        return {name: batch[name] for name in ("text_ids", "text_mask")}
    ids, mask = batch["text_ids"], batch["text_mask"]
    return {"text_states": jnp.asarray(text({}, frozen, ids, mask, len(ids)).text)}
