"""Paella's token predictor: a ConvNeXt U-Net over the token grid (docs/models/paella.md 2)."""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, repeat

from paella_jax.models.blocks import BlockInputs
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.context import Context, both, joined, mapped
from paella_jax.models.layers import Dense, Dtype, layer_norm, timestep_embedding
from paella_jax.models.positions import with_positions
from paella_jax.models.unet import PatchEmbedding, PatchOutput, UNet
from paella_jax.ops.linear import dense
from paella_jax.typing import Array


class ConditioningSequence(nn.Module):
    """Text, pooled text and pooled images -> one normalised sequence of `width`-wide vectors."""

    width: int
    clip_tokens: int
    num_classes: int = 0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, cond: Conditioning) -> tuple[Context, Array | None]:
        """Returns the sequence [B, L, width] and its mask bool [B, L] (None: all real).

        The order is text, pooled text, pooled images, label; an absent input shortens the sequence.
        """
        init = nn.initializers.normal(0.02)
        project = lambda name, tokens: Dense(
            tokens * self.width, kernel_init=init, dtype=self.dtype, name=name
        )
        parts: list[Context] = []
        masks = []
        if cond.text is not None:
            parts.append(mapped(cond.text_context, lambda name, x: project(name, 1)(x), "text"))
            masks.append((cond.text_mask, cond.text.shape[:2]))
        if cond.text_pooled is not None:
            pooled = project("clip_text", self.clip_tokens)(cond.text_pooled)
            parts.append(rearrange(pooled, "b (n c) -> b n c", c=self.width))
            masks.append((None, both(parts[-1]).keys.shape[:2]))
        if cond.image_pooled is not None:
            images = project("clip_image", self.clip_tokens)(cond.image_pooled)
            parts.append(rearrange(images, "b i (n c) -> b (i n) c", c=self.width))
            mask = cond.image_mask
            mask = None if mask is None else repeat(mask, "b i -> b (i n)", n=self.clip_tokens)
            masks.append((mask, both(parts[-1]).keys.shape[:2]))
        if cond.labels is not None:
            shape = (self.num_classes, self.width)
            table = self.param("label_table", nn.initializers.normal(1.0), shape)
            parts.append(jnp.take(table, jnp.maximum(cond.labels, 0), axis=0)[:, None])
            masks.append((cond.labels[:, None] >= 0, both(parts[-1]).keys.shape[:2]))
        if not parts:
            raise ValueError("Paella needs at least one of text, pooled text, images and labels")
        sequence = mapped(joined(parts), lambda _, x: layer_norm(x), "")
        if all(mask is None for mask, _ in masks):
            return sequence, None
        return sequence, jnp.concatenate(
            [jnp.ones(shape, bool) if mask is None else mask for mask, shape in masks], axis=1
        )


class Paella(UNet):
    """Predicts the clean tokens of a noised token map. Defaults are the released 1B model."""

    codebook_size: int = 8192
    mask_row: bool = False  # the input table has one row more, the mask; not in the released model
    token_width: int = 256  # token embedding width, also the width before the classifier
    widths: tuple[int, ...] = (640, 1280, 1280)
    depths: tuple[int, ...] = (6, 16, 6)
    num_heads: tuple[int, ...] = (0, 16, 16)
    patterns: tuple[str, ...] = ("CT", "CTA", "CTA")
    clip_tokens: int = 4  # sequence positions made from one pooled vector
    num_classes: int = 0  # class labels; not in the released model
    num_segments: int = 0  # classes of a segmentation map; not in the released model
    positions: bool = False  # position vectors beside the tokens'; not in the released model

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        t: Array,
        cond: Conditioning,
        *,
        deterministic: bool = True,
        attention_weights: Array | None = None,
        return_features: bool = False,
    ) -> Array:
        """Logits of the clean tokens.

        Args:
          tokens: int32 [batch, h, w]; h and w divisible by `grid_divisor`; with a `mask_row`
            `mask_token` where unknown.
          t: float32 [batch], fraction of replaced tokens in [0, 1].
          cond: conditioning; at least one input must be present.
          deterministic: switches dropout off.
          attention_weights: [L] or [batch, L], multiplies the attention of the last L conditioning
            positions; `cond.text_weights` does the same by text position.
          return_features: stop before the classifier, for a chunked loss.

        Returns:
          float32 [batch, h, w, codebook_size], or the classifier's input [..., token_width].
        """
        self._check(tokens.shape)
        table_init = nn.initializers.normal(math.sqrt(1.0 / self.codebook_size))
        rows = self.codebook_size + self.mask_row
        table = self.param("token_table", table_init, (rows, self.token_width))
        # Starts as a copy of the codes' embeddings, a separate parameter afterwards.
        classifier = self.param("classifier", lambda _: jnp.array(table[: self.codebook_size]).T)

        time = timestep_embedding(t, self.time_width)
        sequence, mask = ConditioningSequence(
            self.cond_width, self.clip_tokens, self.num_classes, self.dtype, name="conditioning"
        )(cond)
        if cond.text_weights is not None:
            rest = (
                both(sequence).keys.shape[1] - cond.text_weights.shape[1]
            )  # what follows the text
            attention_weights = jnp.pad(cond.text_weights, ((0, 0), (0, rest)), constant_values=1.0)
        x = layer_norm(jnp.take(table, tokens, axis=0)).astype(self.dtype)
        if self.positions:
            x = with_positions(x)
        if cond.segmentation is not None:
            x = x + self._segments(cond.segmentation).astype(self.dtype)
        x = PatchEmbedding(self.widths[0], self.patch_size, self.dtype, name="embedding")(x)
        x = self.levels(x, BlockInputs(time, sequence, mask, attention_weights, deterministic))
        features = layer_norm(
            PatchOutput(self.token_width, self.patch_size, self.dtype, name="output")(x)
        )
        if return_features:
            return features
        return dense(features, classifier, precision_dtype=jnp.float32)

    def _segments(self, segmentation: Array) -> Array:
        """What a segmentation map adds to the token embeddings: zero at first and where it is -1.

        The first generation took a condition per position; this brings that back for maps.
        """
        shape = (self.num_segments, self.token_width)
        table = self.param("segment_table", nn.initializers.zeros, shape)
        added = jnp.take(table, jnp.maximum(segmentation, 0), axis=0)
        return jnp.where((segmentation >= 0)[..., None], added, 0.0)

    @property
    def mask_token(self) -> int | None:
        """The id of an unknown token; None where tokens are replaced by random ones."""
        return self.codebook_size if self.mask_row else None

    @property
    def knows_noise_level(self) -> bool:
        """Whether the network reads `t`."""
        return any("T" in pattern for pattern in self.patterns)

    def _check(self, shape: tuple[int, ...]) -> None:
        self.check_fields()
        divisor = self.grid_divisor
        if shape[1] % divisor or shape[2] % divisor:
            raise ValueError(
                f"token map {shape[1]}x{shape[2]} must be divisible by {divisor} "
                "(patch size times 2 per further level); choose another image size"
            )
