"""CLIP's vision tower: OpenAI and OpenCLIP weights load into it, and it trains from scratch.

Radford et al. 2021, section 2.4, and Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words";
where the released models differ: docs/models/muse.md, traps 1 and 12.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from paella_jax.encoders.clip_transformer import ClipOutput, ClipTower, tower_config, tower_fields
from paella_jax.ops.linear import strided_conv
from paella_jax.typing import Array

# torch's default for convolutions, U(+-1/sqrt(inputs)); the release starts from it.
torch_uniform = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


class ClipVision(ClipTower):
    """Images to one vector per patch (behind the class token's) and one per image."""

    image_size: int = 224
    patch_size: int = 14
    channels: int = 3

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @nn.compact
    def __call__(
        self, images: Array, *, all_hidden: bool = False, interpolate: bool = False
    ) -> ClipOutput:
        """Encodes a batch of images.

        Args:
          images: [batch, image_size, image_size, channels], normalised (`clip_preprocess`). Pixels
            behind the last whole patch are not seen.
          all_hidden: also return the states on the way.
          interpolate: take images of other sizes too, the position embeddings being resized
            (bicubic). Without it another size is an error.

        Returns:
          States of length 1 + number of patches, the class token first, patches row by row.

        Raises:
          ValueError: images of another shape, or the module's sizes do not fit.
        """
        self._check(images, interpolate)
        x = self._tokens(images, interpolate)
        states = self.run(self.norm("pre_norm")(x), None, all_hidden)
        pooled = self.norm("post_norm")(states[-1][:, 0])
        return self.output(states[-1], pooled, states, all_hidden)

    def _tokens(self, images: Array, interpolate: bool) -> Array:
        """Class token and patches with their positions, float32 [batch, 1 + patches, width]."""
        patch, init = self.patch_size, nn.initializers.normal(self.width**-0.5)
        shape = (patch, patch, self.channels, self.width)
        kernel = self.param("patch_kernel", torch_uniform, shape)
        first = self.param("class_embedding", init, (self.width,))
        length = (1 + self.grid**2, self.width)
        positions = self.param("position_embedding", init, length)

        rows, columns = images.shape[1] // patch, images.shape[2] // patch
        whole = images[:, : rows * patch, : columns * patch].astype(self.dtype)
        patches = strided_conv(whole, kernel.astype(self.dtype), stride=patch)
        patches = patches.reshape(len(images), rows * columns, self.width).astype(jnp.float32)
        first = jnp.broadcast_to(first.astype(jnp.float32), (len(images), 1, self.width))
        positions = positions.astype(jnp.float32)
        if interpolate and (rows, columns) != (self.grid, self.grid):
            positions = self._resized(positions, rows, columns)
        return jnp.concatenate([first, patches], axis=1) + positions[None]

    def _resized(self, positions: Array, rows: int, columns: int) -> Array:
        """The patches' positions resized as torch's bicubic interpolation does."""
        square = positions[1:].reshape(self.grid, self.grid, self.width)
        shape = (rows, columns, self.width)
        resized = jax.image.resize(square, shape, "cubic-pytorch", antialias=False)
        return jnp.concatenate([positions[:1], resized.reshape(rows * columns, self.width)])

    def _check(self, images: Array, interpolate: bool) -> None:
        size, patch = self.image_size, self.patch_size
        if size < patch:
            raise ValueError(f"image_size {size} is smaller than patch_size {patch}")
        if images.ndim != 4 or images.shape[3] != self.channels:
            raise ValueError(
                f"images have shape {images.shape}, not [batch, height, width, {self.channels}]"
            )
        if not interpolate and images.shape[1:3] != (size, size):
            raise ValueError(
                f"images are {images.shape[1]} x {images.shape[2]}, the tower takes {size} x "
                f"{size}; resize them (clip_preprocess) or pass interpolate=True"
            )
        if min(images.shape[1:3]) < patch:
            raise ValueError(f"images {images.shape[1:3]} are smaller than a patch ({patch})")


def clip_vision_from_hf_config(config: dict[str, Any]) -> ClipVision:
    """The vision tower that a Hugging Face `config.json` describes.

    Reads those of CLIPVisionModel, CLIPVisionModelWithProjection and of a whole CLIPModel. Absent
    fields have transformers' defaults, as it leaves those out when it saves a whole model.

    Raises:
      ValueError: another model type, or a field this tower has no form for.
    """
    fields, projection = tower_config(config, "vision")
    return ClipVision(
        image_size=_side(fields, "image_size", 224),
        patch_size=_side(fields, "patch_size", 32),
        projection=projection,
        channels=fields.get("num_channels", 3),
        **tower_fields(fields, width=768, num_heads=12, hidden_dim=3072),
    )


def _side(fields: dict[str, Any], name: str, default: int) -> int:
    side = fields.get(name, default)
    if not isinstance(side, int):
        raise ValueError(f"{name} is {side!r}; the vision tower takes squares, given as one number")
    return side
