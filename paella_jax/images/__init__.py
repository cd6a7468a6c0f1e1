"""Images in and out: one reader for whatever a user gives; grids, movies and curves as files."""

from paella_jax.images.read import ImageError, read_image, read_mask, read_rgb

__all__ = ["ImageError", "read_image", "read_mask", "read_rgb"]
