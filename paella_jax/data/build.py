"""From a config's data block to a source of captioned images."""

from __future__ import annotations

from ml_collections import ConfigDict

from paella_jax.config import IMPLIED, ConfigError
from paella_jax.data.buckets import BucketedFolderSource
from paella_jax.data.encoded import EncodedSource
from paella_jax.data.folder import FolderSource
from paella_jax.data.loader import Source
from paella_jax.data.one_image import OneImageSource
from paella_jax.data.shapes import get_spec
from paella_jax.data.sources import ShapesSource
from paella_jax.data.split import Held

CROPPING = ("crop", "resize", "flip")
# Fields of `Held` and of a config's data block.
HELD = {"folder": "validation_folder", "fraction": "split", "seed": "split_seed",
        "column": "split_column"}  # fmt: skip


def make_source(data: ConfigDict, split: str, seed: int) -> Source:
    """The training or validation source.

    Raises:
      ConfigError: unknown source or spec, wrong image size, a folder without images or captions, or
        an unfit single image or its caption.
    """
    if data.get("encoded"):
        return EncodedSource(data.encoded, split)
    # Old runs lack settings that came later.
    options = {name: data[name] for name in (*CROPPING, "background") if name in data}
    try:
        _refuse_unused(data)
        if data.source == "folder":
            options |= {name: data[name] for name in ("captions", "caption_lines") if name in data}
            held = {own: data[name] for own, name in HELD.items() if name in data}
            options |= {"split": split, "held": Held(**held)}
            if data.buckets and split == "train":
                return BucketedFolderSource(data.folder, data.buckets, **options)
            return FolderSource(data.folder, data.image_size, **options)
        if data.source == "one_image":
            return OneImageSource(data.image_file, data.caption, data.image_size, **options)
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


def _refuse_unused(data: ConfigDict) -> None:
    """Raises ConfigError for images that are given and would not be read."""
    for name, source in IMPLIED.items():
        given = data.get(name.removeprefix("data."))
        if given and data.source in ("shapes", *IMPLIED.values()) and data.source != source:
            raise ConfigError(
                f"{name} is {given!r}, but data.source {data.source!r} would not read it: give "
                f"--config.data.source={source}, or leave {name} out"
            )
