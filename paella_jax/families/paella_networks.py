"""The networks of a Paella run and the calls between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from paella_jax.encoders.clip_text import ClipText
from paella_jax.encoders.t5 import T5Encoder
from paella_jax.encoders.text import ClipTokenizer, Tokenizer
from paella_jax.families.image_encoder import ImageEncoder
from paella_jax.models.conditioning import Conditioning, ConditionInputs
from paella_jax.models.paella import Paella
from paella_jax.models.vqgan import VQGAN

Array = jax.Array
Tree = Any


@dataclass(frozen=True)
class PaellaNetworks:
    """Predictor, tokenizer and encoders.

    Parameters come in two trees: `params` (trained: "predictor", and "text_encoder" and
    "image_encoder" when they train along) and `frozen` ("vqgan", and "text_encoder", "clip_text",
    "image_encoder" when frozen).
    """

    predictor: Paella
    text_encoder: T5Encoder
    text_tokenizer: Tokenizer
    vqgan: VQGAN
    text_is_joint: bool
    clip_text: ClipText | None = None
    clip_tokenizer: ClipTokenizer | None = None
    image_encoder: ImageEncoder | None = None

    def condition(
        self, params: Tree, frozen: Tree, inputs: ConditionInputs, key: Array | None = None
    ) -> Conditioning:
        """Runs the text encoders. `key` switches dropout on (jointly trained encoder only)."""
        text = None
        if inputs.text_ids is not None:
            text = self._encode_text(params, frozen, inputs.text_ids, inputs.text_mask, key)
        text_pooled = None
        if inputs.clip_ids is not None and self.clip_text is not None:
            output = self.clip_text.apply({"params": frozen["clip_text"]}, inputs.clip_ids)
            text_pooled = jax.lax.stop_gradient(output.embedding)
        return Conditioning(
            text=text,
            text_mask=inputs.text_mask,
            text_weights=inputs.text_weights,
            text_pooled=text_pooled,
            image_pooled=inputs.image_pooled,
            image_mask=inputs.image_mask,
            labels=inputs.labels,
            segmentation=inputs.segmentation,
        )

    def _encode_text(
        self, params: Tree, frozen: Tree, ids: Array, mask: Array | None, key: Array | None
    ) -> Array:
        train = key is not None and self.text_is_joint
        states = self.text_encoder.apply(
            {"params": (params if self.text_is_joint else frozen)["text_encoder"]},
            ids,
            mask,
            deterministic=not train,
            rngs={"dropout": key} if train else None,
        )
        return states if self.text_is_joint else jax.lax.stop_gradient(states)

    def embed_texts(self, frozen: Tree, clip_ids: Array) -> Array:
        """CLIP's ids [batch, 77] -> pooled, projected embeddings float32 [batch, width]."""
        assert self.clip_text is not None, "this run has no CLIP text tower"
        output = self.clip_text.apply({"params": frozen["clip_text"]}, clip_ids)
        return output.embedding.astype(jnp.float32)

    def embed_images(self, params: Tree, frozen: Tree, images: Array) -> Array:
        """Images in [0, 1] [batch, height, width, 3] -> embeddings float32 [batch, width]."""
        assert self.image_encoder is not None, "this run has no image encoder"
        return self.image_encoder(params, frozen, images)

    def features(
        self, params: Tree, tokens: Array, t: Array, cond: Conditioning, key: Array
    ) -> Array:
        """The predictor's classifier input, with dropout."""
        return self.predictor.apply(
            {"params": params["predictor"]},
            tokens,
            t,
            cond,
            deterministic=False,
            return_features=True,
            rngs={"dropout": key},
        )

    def logits(self, params: Tree, tokens: Array, t: Array, cond: Conditioning) -> Array:
        """float32 [batch, h, w, codes]."""
        return self.predictor.apply({"params": params["predictor"]}, tokens, t, cond)

    def encode_images(self, frozen: Tree, images: Array) -> Array:
        """Images in [0, 1] -> tokens."""
        return self.vqgan.apply(frozen["vqgan"], images, method="encode_tokens")

    def decode_tokens(self, frozen: Tree, tokens: Array) -> Array:
        """Tokens -> images in [0, 1]."""
        return self.vqgan.apply(frozen["vqgan"], tokens, method="decode_tokens")

    def init(self, key: Array, grid: int) -> Tree:
        """Fresh trainable parameters; every kind of condition that the run may use gets its own."""
        text_key, predictor_key, image_key = jax.random.split(key, 3)
        ids = jnp.zeros((1, 4), jnp.int32)
        variables = self.text_encoder.init(text_key, ids)
        params: dict[str, Any] = {}
        if self.text_is_joint:
            params["text_encoder"] = variables["params"]
        image_width = None
        if self.image_encoder is not None:
            image_width = self.image_encoder.width
            if self.image_encoder.is_joint:
                params["image_encoder"] = self.image_encoder.init(image_key)
        cond = Conditioning(
            text=self.text_encoder.apply(variables, ids),
            text_pooled=None
            if self.clip_text is None
            else jnp.zeros((1, self.clip_text.projection)),
            image_pooled=None if image_width is None else jnp.zeros((1, 1, image_width)),
            labels=jnp.zeros((1,), jnp.int32) if self.predictor.num_classes else None,
            segmentation=jnp.zeros((1, grid, grid), jnp.int32)
            if self.predictor.num_segments
            else None,
        )
        tokens, t = jnp.zeros((1, grid, grid), jnp.int32), jnp.zeros((1,))
        params["predictor"] = self.predictor.init(predictor_key, tokens, t, cond)["params"]
        return params
