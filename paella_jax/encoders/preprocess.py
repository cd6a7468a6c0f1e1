"""Images as the frozen image encoders want them: resized, cropped and normalised, under jit.

The same numbers as torchvision's Resize(antialias=True), CenterCrop and Normalize on float tensors
(docs/models/paella.md 3, docs/models/wuerstchen.md 3).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from paella_jax.ops.resize import resize_antialiased
from paella_jax.typing import Array

Colour = tuple[float, float, float]

CLIP_MEAN: Colour = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Colour = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)
METHODS = ("bicubic", "bilinear")


def clip_preprocess(images: Array, size: int = 224) -> Array:
    """[batch, height, width, 3] in [0, 1] -> [batch, size, size, 3] for CLIP's vision tower.

    Raises:
      ValueError: as `preprocess_images`.
    """
    return preprocess_images(images, size, "bicubic", CLIP_MEAN, CLIP_STD)


def preprocess_images(images: Array, size: int, method: str, mean: Colour, std: Colour) -> Array:
    """Short side to `size`, centre crop to a square, then (x - mean) / std per colour.

    Args:
      images: float [batch, height, width, 3] in [0, 1].
      size: side of the result.
      method: "bicubic" or "bilinear", both antialiased.
      mean: subtracted, per colour.
      std: divided by, per colour.

    Returns:
      float32 [batch, size, size, 3].

    Raises:
      ValueError: images of another shape or dtype, or an unknown method.
    """
    square = centre_crop(resize_short_side(images, size, method), size)
    per_colour = lambda values: np.asarray(values, np.float32).reshape(1, 1, 1, 3)
    return (square - per_colour(mean)) / per_colour(std)


def resize_short_side(images: Array, size: int, method: str = "bicubic") -> Array:
    """Resizes so that the short side is `size` and the long one size * long / short, cut down.

    Bicubic may leave [0, 1] a little, as the reference's does.
    """
    if images.ndim != 4 or images.shape[3] != 3 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be float [batch, height, width, 3] in [0, 1], not {images.dtype} "
            f"{images.shape}; divide integer images by 255"
        )
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, not in {METHODS}")
    height, width = images.shape[1:3]
    short = min(height, width)
    return resize_antialiased(images, size * height // short, size * width // short, method)


def centre_crop(images: Array, size: int) -> Array:
    """The middle [batch, size, size, C] of images at least that large."""
    # Halves round to even, which is how torchvision rounds the offset.
    top, left = (round((side - size) / 2) for side in images.shape[1:3])
    return images[:, top : top + size, left : left + size]


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
