"""The image and the mask of a call: of any size, brought to the size that is drawn.

One rule: both are scaled so that they cover it, and cut to their middle.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from paella_jax.images.read import ImageError, ImageLike, read_mask
from paella_jax.images.write import to_uint8


class GivenImage(NamedTuple):
    """An image in the size that is drawn.

    Attributes:
      pixels: float32 [height, width, 3] in [0, 1].
      marked: bool [height, width], what is drawn anew; None without a mask.
    """

    pixels: np.ndarray
    marked: np.ndarray | None

    def keep(self, images: np.ndarray) -> np.ndarray:
        """Drawn images [count, height, width, 3] with every pixel of this one that is not marked.

        Images of another size, as a stopped call may have, stay as they are.
        """
        if self.marked is None or images.shape[1:] != self.pixels.shape:
            return images
        return np.where(self.marked[..., None], images, self.pixels)


def read_given(
    pipe: Any, image: ImageLike, mask: ImageLike | None, size: tuple[int, int]
) -> GivenImage:
    """An image, and a mask of it, in the size (height, width) that is drawn.

    Raises:
      ImageError: unusable, a mask of other proportions, or one that marks nothing or everything.
    """
    pixels = pipe.read(image)
    if mask is None:
        return GivenImage(fit_image(pixels, size), None)
    marked = read_mask(mask)
    if marked.shape != pixels.shape[:2]:
        marked = _to_size_of(marked, pixels)
    fitted = fit_mask(marked, size)
    if not marked.any() or not fitted.any():
        raise ImageError("the mask marks nothing that is drawn; paint white what to draw anew")
    if fitted.all():
        raise ImageError("the mask marks everything, so nothing would stay; leave it out")
    return GivenImage(fit_image(pixels, size), fitted)


def fit_image(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float [h, w, 3] in [0, 1] -> float32 [*size, 3]: scaled to cover, cut to the middle."""
    if pixels.shape[:2] == tuple(size):
        return pixels
    image = Image.fromarray(to_uint8(pixels))
    fitted = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)
    return np.asarray(fitted, np.float32) / np.float32(255)


def fit_mask(marked: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [h, w] -> bool `size`, as `fit_image`; a pixel is marked where any part of it is."""
    if marked.shape == tuple(size):
        return marked
    image = Image.fromarray(np.where(marked, 255, 0).astype(np.uint8))
    fitted = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BOX)
    return np.asarray(fitted) > 0


def _to_size_of(marked: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """A mask that was painted on a smaller or larger copy of the image, in the image's size."""
    (height, width), (own_height, own_width) = pixels.shape[:2], marked.shape
    # Copies have sides that were rounded, so that the proportions differ by a pixel.
    if abs(own_height * width - own_width * height) > max(height, width, own_height, own_width):
        raise ImageError(
            f"the mask is {own_height}x{own_width} pixels (height x width), the image "
            f"{height}x{width}; give a mask of the image's proportions"
        )
    image = Image.fromarray(np.where(marked, 255, 0).astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST)) > 0
