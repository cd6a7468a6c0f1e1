"""From a config's data block to a source of captioned images."""

from __future__ import annotations

from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.data.buckets import BucketedFolderSource
from paella_jax.data.folder import FolderSource
from paella_jax.data.loader import Source
from paella_jax.data.one_image import OneImageSource
from paella_jax.data.shapes import get_spec
from paella_jax.data.sources import ShapesSource


def make_source(data: ConfigDict, split: str, seed: int) -> Source:
    """The training or validation source.

    Raises:
      ConfigError: unknown source or spec, wrong image size, a folder without images or captions, or
        an unfit single image or its caption.
    """
    cropping = {name: data[name] for name in ("crop", "resize", "flip") if name in data}
    try:
        if data.source == "folder":
            options = cropping | {"split": split, "captions": data.captions}
            if data.buckets and split == "train":
                return BucketedFolderSource(data.folder, data.buckets, **options)
            return FolderSource(data.folder, data.image_size, **options)
        if data.source == "one_image":
            return OneImageSource(data.image_file, data.caption, data.image_size, **cropping)
        if data.source == "shapes":
            spec = get_spec(data.spec)
            if spec.image_size != data.image_size:
                raise ValueError(
                    f"data.image_size {data.image_size} does not fit spec {spec.name!r}, whose "
                    f"images have {spec.image_size} pixels"
                )
            return ShapesSource(data.spec, split, data.size, seed)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    raise ConfigError(f"data.source must be 'shapes', 'folder' or 'one_image', got {data.source!r}")
