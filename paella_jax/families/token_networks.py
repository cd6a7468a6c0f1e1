"""The networks of a token predictor's run and the calls between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp

from paella_jax.encoders.by_length import encode_by_length
from paella_jax.models.conditioning import Conditioning, ConditionInputs
from paella_jax.models.prepared import prepare
from paella_jax.ops.by_need import by_need
from paella_jax.typing import Array, Tree

if TYPE_CHECKING:
    from paella_jax.encoders.clip_text import ClipText
    from paella_jax.encoders.t5 import T5Encoder
    from paella_jax.encoders.text import ClipTokenizer, Tokenizer
    from paella_jax.families.image_encoder import ImageEncoder
    from paella_jax.models.vqgan import VQGAN
    from paella_jax.models.vqmodel import VQModel


class TokenPredictor(Protocol):
    """What every network of a cell offers.

    `apply({"params": ...}, tokens, t, cond)` gives float32 logits [batch, h, w, codebook_size];
    with `return_features=True` the input of its "classifier" matrix.
    """

    @property
    def init(self) -> Any:
        """(key, tokens, t, cond) -> variables."""

    @property
    def apply(self) -> Any:
        """(variables, tokens, t, cond, ...) -> logits or features."""

    @property
    def codebook_size(self) -> int:
        """Classes of the output."""

    @property
    def mask_token(self) -> int | None:
        """The id of an unknown token; None where tokens are replaced by random ones."""

    @property
    def grid_divisor(self) -> int:
        """The token map's height and width must be multiples of this."""

    @property
    def knows_noise_level(self) -> bool:
        """Whether the fraction of corrupted tokens is an input."""


@dataclass(frozen=True)
class TokenNetworks:
    """Predictor, tokenizer and encoders.

    Parameters come in two trees: `params` (trained: "predictor", and "text_encoder" and
    "image_encoder" when they train along) and `frozen` ("vqgan", and "text_encoder", "clip_text",
    "image_encoder", "low_vqgan" when frozen).

    Attributes:
      predictor: of the cell.
      text_encoder: T5; None where CLIP's states are the text (`clip_text` then serves both).
      text_tokenizer: of the T5.
      vqgan: the tokenizer of images.
      takes: fields of `Conditioning` that the predictor reads beside the text.
      text_is_joint: whether the T5 trains along.
      clip_text: CLIP's text tower.
      clip_tokenizer: its tokenizer.
      image_encoder: for conditioning on images.
      empty_text_is_absent: the network sees nothing of an empty text, as in MUSE, instead of its
        end token; needs a network with a null position.
      low_vqgan: tokenizer of the small images that a super-resolution network enlarges.
      low_grid: side of their token map.
      text_buckets: lengths that a frozen T5 sorts texts by, where it is asked to.
    """

    predictor: TokenPredictor
    text_encoder: T5Encoder | None
    text_tokenizer: Tokenizer | None
    vqgan: VQGAN | VQModel
    takes: frozenset[str]
    text_is_joint: bool
    clip_text: ClipText | None = None
    clip_tokenizer: ClipTokenizer | None = None
    image_encoder: ImageEncoder | None = None
    empty_text_is_absent: bool = False
    low_vqgan: VQGAN | VQModel | None = None
    low_grid: int = 0
    text_buckets: int = 1

    def condition(
        self,
        params: Tree,
        frozen: Tree,
        inputs: ConditionInputs,
        key: Array | None = None,
        by_length: bool = False,
    ) -> Conditioning:
        """Runs the text encoders, but for those whose outputs are given.

        `key` switches dropout on (jointly trained encoder only). With `by_length` a frozen T5
        sorts the texts (encoders/by_length.py), and a CLIP tower beside it encodes the empty text
        once: for large batches, as more is compiled.
        """
        text, values, text_mask = inputs.text_states, None, inputs.text_mask
        if inputs.text_ids is not None:
            buckets = self.text_buckets if by_length else 1
            text = self._encode_text(params, frozen, inputs.text_ids, text_mask, key, buckets)
            text, values = text if isinstance(text, tuple) else (text, None)
        if self.empty_text_is_absent and text_mask is not None:
            text_mask = text_mask & (text_mask.sum(1, keepdims=True) > 1)
        text_pooled = inputs.text_pooled
        if inputs.clip_ids is not None and by_length and self.text_encoder is not None:
            text_pooled = jax.lax.stop_gradient(self._pool_texts(frozen, inputs.clip_ids))
        elif inputs.clip_ids is not None and self.clip_text is not None:
            output = self.clip_text.apply({"params": frozen["clip_text"]}, inputs.clip_ids)
            output = jax.lax.stop_gradient(output)
            text_pooled = output.embedding
            if self.text_encoder is None:
                # All 77 positions, behind the layer before the last (docs/models/muse.md 2.1).
                text = output.penultimate_hidden_state
        return Conditioning(
            text=text,
            text_values=values,
            text_mask=text_mask,
            text_weights=inputs.text_weights,
            text_pooled=text_pooled,
            image_pooled=inputs.image_pooled,
            image_mask=inputs.image_mask,
            labels=inputs.labels,
            segmentation=inputs.segmentation,
            micro_conds=inputs.micro_conds,
            low_tokens=inputs.low_tokens,
        )

    def _encode_text(
        self,
        params: Tree,
        frozen: Tree,
        ids: Array,
        mask: Array | None,
        key: Array | None,
        buckets: int,
    ) -> Any:
        assert self.text_encoder is not None
        variables = {"params": (params if self.text_is_joint else frozen)["text_encoder"]}
        if self.text_is_joint:
            rngs = None if key is None else {"dropout": key}
            return self.text_encoder.apply(
                variables, ids, mask, deterministic=key is None, rngs=rngs
            )
        encode = partial(self.text_encoder.apply, variables)
        if mask is None or buckets == 1:
            return jax.lax.stop_gradient(encode(ids, mask))
        return jax.lax.stop_gradient(encode_by_length(encode, ids, mask, buckets))

    def _pool_texts(self, frozen: Tree, ids: Array) -> Array:
        """`embed_texts`, of which the empty text, as dropped ones are, is encoded once."""
        assert self.clip_tokenizer is not None
        encode = partial(self.embed_texts, frozen)
        empty = jnp.asarray(self.clip_tokenizer([""])[0], ids.dtype)
        once = encode(empty)
        nothing = lambda some: jnp.broadcast_to(once, (len(some), once.shape[1]))
        return by_need([nothing, encode], (ids != empty).any(1).astype(jnp.int32), ids)

    def embed_texts(self, frozen: Tree, clip_ids: Array) -> Array:
        """CLIP's ids [batch, 77] -> pooled, projected embeddings float32 [batch, width]."""
        assert self.clip_text is not None, "this run has no CLIP text tower"
        output = self.clip_text.apply({"params": frozen["clip_text"]}, clip_ids)
        return output.embedding.astype(jnp.float32)

    def embed_images(
        self, params: Tree, frozen: Tree, images: Array, keep: Array | None = None
    ) -> Array:
        """Images in [0, 1] [batch, height, width, 3] -> embeddings float32 [batch, width].

        Where `keep` (bool [batch]) is False nobody will look, and a frozen encoder may give zeros.
        """
        assert self.image_encoder is not None, "this run has no image encoder"
        embed = partial(self.image_encoder, params, frozen)
        if keep is None or self.image_encoder.is_joint:
            return embed(images)
        nothing = lambda some: jnp.zeros((len(some), self.image_encoder.width))
        return by_need([nothing, embed], keep.astype(jnp.int32), images)

    def features(
        self, params: Tree, tokens: Array, t: Array, cond: Conditioning, key: Array | None
    ) -> Array:
        """The predictor's classifier input; `key` switches dropout on."""
        return self.predictor.apply(
            {"params": params["predictor"]},
            tokens,
            t,
            cond,
            deterministic=key is None,
            return_features=True,
            rngs=None if key is None else {"dropout": key},
        )

    def prepare(self, params: Tree, tokens: Array, cond: Conditioning) -> Tree:
        """What all steps of a sampler have in common, for `logits`; tokens give their shape."""
        t = jnp.zeros(tokens.shape[:1])
        return prepare(self.predictor.apply, params["predictor"], tokens, t, cond)

    def logits(self, prepared: Tree, tokens: Array, t: Array, cond: Conditioning) -> Array:
        """float32 [batch, h, w, codes], of what `prepare` made for the same condition."""
        return self.predictor.apply(prepared, tokens, t, cond)

    def encode_images(self, frozen: Tree, images: Array) -> Array:
        """Images in [0, 1] -> tokens."""
        return self.vqgan.apply(frozen["vqgan"], images, method="encode_tokens")

    def decode_tokens(self, frozen: Tree, tokens: Array) -> Array:
        """Tokens -> images in [0, 1]."""
        return self.vqgan.apply(frozen["vqgan"], tokens, method="decode_tokens")

    def encode_low(self, frozen: Tree, images: Array) -> Array:
        """Images in [0, 1] of any size -> tokens of the small image [batch, low, low]."""
        assert self.low_vqgan is not None, "this run enlarges no pictures"
        side = self.low_grid * self.low_vqgan.downsampling
        shape = (images.shape[0], side, side, 3)
        small = jax.image.resize(images, shape, "linear", antialias=True)
        return self.low_vqgan.apply(frozen["low_vqgan"], small, method="encode_tokens")

    @property
    def num_classes(self) -> int:
        """Class labels the predictor is conditioned on; 0 without."""
        return getattr(self.predictor, "num_classes", 0)

    @property
    def num_segments(self) -> int:
        """Classes of the segmentation maps it is conditioned on; 0 without."""
        return getattr(self.predictor, "num_segments", 0)

    def init(self, key: Array, grid: int) -> Tree:
        """Fresh trainable parameters; every kind of condition that the run may use gets its own."""
        text_key, predictor_key, image_key = jax.random.split(key, 3)
        params: dict[str, Any] = {}
        cond: dict[str, Any] = {}
        if self.text_encoder is not None:
            ids = jnp.zeros((1, 4), jnp.int32)
            variables = self.text_encoder.init(text_key, ids)
            if self.text_is_joint:
                params["text_encoder"] = variables["params"]
            text = self.text_encoder.apply(variables, ids)
            cond["text"], cond["text_values"] = text if isinstance(text, tuple) else (text, None)
        if self.clip_text is not None:
            if self.text_encoder is None:
                cond["text"] = jnp.zeros((1, 4, self.clip_text.width))
            if self.clip_text.projection is not None:
                cond["text_pooled"] = jnp.zeros((1, self.clip_text.projection))
        if self.image_encoder is not None:
            cond["image_pooled"] = jnp.zeros((1, 1, self.image_encoder.width))
            if self.image_encoder.is_joint:
                params["image_encoder"] = self.image_encoder.init(image_key)
        if self.num_classes:
            cond["labels"] = jnp.zeros((1,), jnp.int32)
        if self.num_segments:
            cond["segmentation"] = jnp.zeros((1, grid, grid), jnp.int32)
        if "micro_conds" in self.takes:
            cond["micro_conds"] = jnp.zeros((1, 5))
        if self.low_vqgan is not None:
            cond["low_tokens"] = jnp.zeros((1, self.low_grid, self.low_grid), jnp.int32)
        tokens, t = jnp.zeros((1, grid, grid), jnp.int32), jnp.zeros((1,))
        inputs = (predictor_key, tokens, t, Conditioning(**cond))
        params["predictor"] = self.predictor.init(*inputs)["params"]
        return params
