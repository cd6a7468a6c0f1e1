"""Images as conditions: a CLIP vision tower, frozen or trained along, or small convolutions."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.encoders.clip_vision import ClipVision
from paella_jax.encoders.conv_vision import ConvVision
from paella_jax.encoders.preprocess import clip_preprocess
from paella_jax.typing import Array, Tree

JOINT = ("joint", "conv")  # kinds that train along: a CLIP tower, and convolutions


@dataclass(frozen=True)
class ImageEncoder:
    """The tower, and where its parameters are: "image_encoder" in the trained or frozen tree."""

    module: ClipVision | ConvVision
    is_joint: bool

    @property
    def width(self) -> int:
        """How many numbers an embedding has.

        Raises:
          ValueError: the tower has no projection, so it makes no embeddings.
        """
        if self.module.projection is None:
            raise ValueError(
                "this CLIP vision tower has no projection; give one of class "
                "CLIPVisionModelWithProjection or CLIPModel"
            )
        return self.module.projection

    def __call__(self, params: Tree, frozen: Tree, images: Array) -> Array:
        """Images in [0, 1] [batch, height, width, 3] -> embeddings float32 [batch, projection]."""
        weights = (params if self.is_joint else frozen)["image_encoder"]
        pixels = clip_preprocess(images, self.module.image_size)
        embedding = self.module.apply({"params": weights}, pixels).embedding
        return embedding if self.is_joint else jax.lax.stop_gradient(embedding)

    def init(self, key: Array) -> Tree:
        """Fresh parameters."""
        side = self.module.image_size
        return self.module.init(key, jnp.zeros((1, side, side, 3)))["params"]


def joint_image_encoder(settings: ConfigDict, image_size: int, precision: str) -> ImageEncoder:
    """A small tower on the training images themselves, from `config.image_encoder`."""
    if settings.kind == "conv":
        conv = ConvVision(
            image_size=image_size,
            width=settings.width // 2,
            projection=settings.projection,
            dtype=jnp.dtype(precision),
        )
        return ImageEncoder(conv, is_joint=True)
    module = ClipVision(
        image_size=image_size,
        patch_size=settings.patch_size,
        width=settings.width,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        hidden_dim=4 * settings.width,
        projection=settings.projection,
        dtype=jnp.dtype(precision),
    )
    return ImageEncoder(module, is_joint=True)
