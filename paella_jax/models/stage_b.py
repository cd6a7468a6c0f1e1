"""Würstchen's Stage B: compressor latents -> Stage A latents (docs/models/wuerstchen.md 4)."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from paella_jax.models.antialias_resize import antialias_resize
from paella_jax.models.blocks import BlockInputs, LateSkipConvBlock
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.layers import Dense, layer_norm, timestep_embedding
from paella_jax.models.prepared import prepared
from paella_jax.models.unet import PatchEmbedding, PatchOutput, UNet
from paella_jax.typing import Array


class StageB(UNet):
    """Predicts the noise in Stage A's unquantised latents. Defaults are the released v2 model.

    `cond_width` is the width of the text sequence and of the guide maps.
    """

    latent_channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    depths: tuple[int, ...] = (4, 4, 14, 4)
    num_heads: tuple[int, ...] = (0, 10, 20, 20)
    patterns: tuple[str, ...] = ("CT", "CTA", "CTA", "CTA")
    inject: tuple[bool, ...] = (False, True, True, True)  # levels whose C blocks see the guide
    guide_channels: int = 16

    conv_block: ClassVar[type[nn.Module]] = LateSkipConvBlock
    per_level: ClassVar[tuple[str, ...]] = (*UNet.per_level, "inject")

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: Array,
        cond: Conditioning,
        *,
        deterministic: bool = True,
        return_parts: bool = False,
    ) -> Array | tuple[Array, Array]:
        """The predicted noise (x - a) / b with b in [0.001, 0.999]; 2x at initialisation.

        Args:
          x: float [batch, h, w, latent_channels], noised Stage A latents divided by 0.3764; h and
            w divisible by `grid_divisor`.
          t: float32 [batch] in [0, 1], 1 is all noise.
          cond: `text` is needed; `text_mask` and `text_weights` are honoured. `guide` may have any
            size, None stands for zeros. The rest is ignored.
          deterministic: switches dropout off.
          return_parts: return (a, b) instead.

        Returns:
          float32 [batch, h, w, latent_channels], or two of them.

        Raises:
          ValueError: sizes that do not fit each other, or a missing text.
        """
        self.check_fields()
        self._check_inputs(x, cond)
        normal = nn.initializers.normal(0.02)
        text = Dense(self.cond_width, kernel_init=normal, dtype=self.dtype, name="text")(cond.text)
        time = timestep_embedding(t, self.time_width)
        inputs = BlockInputs(
            time, layer_norm(text), cond.text_mask, cond.text_weights, deterministic
        )
        hidden = PatchEmbedding(self.widths[0], self.patch_size, self.dtype, name="embedding")(x)
        maps = lambda x, side, level: self._guide_maps(x.shape, side, level, cond.guide)
        hidden = self.levels(hidden, inputs, maps)
        # The head divides by b: from here on float32, whatever the compute dtype.
        head = PatchOutput(2 * self.latent_channels, self.patch_size, name="output")
        a, b = jnp.split(head(hidden.astype(jnp.float32)), 2, axis=-1)
        b = 0.998 * nn.sigmoid(b) + 0.001
        return (a, b) if return_parts else (x.astype(jnp.float32) - a) / b

    def _guide_maps(
        self, shape: tuple[int, ...], side: str, level: int, guide: Array | None
    ) -> tuple[Array, ...]:
        """The guide at a level's size [batch, h, w, cond_width], the same for its C blocks."""
        if not self.inject[level]:
            return ()
        batch, height, width = shape[:3]
        if guide is None:
            guide = jnp.zeros((batch, 1, 1, self.guide_channels))
        name = f"{side}_{level}_guide"
        init = nn.initializers.normal(0.02)
        mapper = Dense(self.cond_width, kernel_init=init, dtype=self.dtype, name=name)
        resized = lambda: mapper(antialias_resize(guide, height, width))
        return (prepared(self, f"{name}_map", resized),)

    def _check_inputs(self, x: Array, cond: Conditioning) -> None:
        if cond.text is None:
            raise ValueError("Stage B needs a text; for no text give the embedding of an empty one")
        if x.ndim != 4 or x.shape[-1] != self.latent_channels:
            raise ValueError(
                f"latents have shape {x.shape}, need [batch, h, w, {self.latent_channels}]"
            )
        divisor = self.grid_divisor
        if x.shape[1] % divisor or x.shape[2] % divisor:
            raise ValueError(
                f"latents {x.shape[1]}x{x.shape[2]} must be divisible by {divisor} (patch size "
                "times 2 per further level); choose an image size in multiples of 128"
            )
        guide = cond.guide
        if guide is not None and (
            guide.ndim != 4 or (guide.shape[0], guide.shape[3]) != (x.shape[0], self.guide_channels)
        ):
            raise ValueError(
                f"the guide has shape {guide.shape}, need "
                f"[{x.shape[0]}, h, w, {self.guide_channels}]"
            )
