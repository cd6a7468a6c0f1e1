"""Images as the semantic compressor wants them (docs/models/wuerstchen.md 3), under jit."""

from __future__ import annotations

import numpy as np

from paella_jax.encoders.clip_preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    preprocess_images,
    resize_short_side,
)
from paella_jax.typing import Array

DOWNSAMPLING = 32  # image pixels per latent side


def compressor_preprocess(images: Array, size: int = 768, square: bool = True) -> Array:
    """Short side to `size` (bilinear, antialiased), centre crop, ImageNet's mean and deviation.

    Args:
      images: float [batch, height, width, 3] in [0, 1].
      size: short side of the result: 768 for the released model, 384 for its first version and
        for training at low resolution.
      square: crop to size x size. Otherwise each side only loses what it has beyond a multiple
        of 32, for batches of one aspect ratio.

    Returns:
      float32 [batch, size, size, 3], or [batch, h, w, 3] of the images' aspect ratio.

    Raises:
      ValueError: `size` is not positive (or below 32 without a square), or images of another
        shape or dtype.
    """
    smallest = 1 if square else DOWNSAMPLING
    if size < smallest:
        raise ValueError(f"the compressor's image size {size} must be at least {smallest}")
    if square:
        return preprocess_images(images, size, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    resized = resize_short_side(images, size, "bilinear")
    height, width = (side // DOWNSAMPLING * DOWNSAMPLING for side in resized.shape[1:3])
    top, left = (round((side % DOWNSAMPLING) / 2) for side in resized.shape[1:3])
    return normalise(resized[:, top : top + height, left : left + width])


def normalise(images: Array) -> Array:
    """[batch, height, width, 3] in [0, 1] -> ImageNet's mean and deviation removed, per colour."""
    per_colour = lambda values: np.asarray(values, np.float32).reshape(1, 1, 1, 3)
    return (images - per_colour(IMAGENET_MEAN)) / per_colour(IMAGENET_STD)
