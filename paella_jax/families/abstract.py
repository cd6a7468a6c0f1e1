"""Methods whose frozen networks are shapes only: what a preset needs to be compiled without files.

Frozen encoders that a run reads from folders have their published sizes here
(reference/paella.md 1): ByT5-XL's encoder and both towers of CLIP ViT-H/14.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.convert.clip import text_shapes, vision_shapes
from paella_jax.convert.vqgan import abstract_vqgan
from paella_jax.encoders.clip_text import ClipText
from paella_jax.encoders.clip_vision import ClipVision
from paella_jax.encoders.t5 import T5Encoder
from paella_jax.encoders.text import joint_text_encoder, make_tokenizer
from paella_jax.families.image_encoder import ImageEncoder, joint_image_encoder
from paella_jax.families.paella import networks_method
from paella_jax.families.paella_networks import PaellaNetworks
from paella_jax.families.vqgan import vqgan_method
from paella_jax.models.paella import Paella
from paella_jax.models.vqgan import VQGAN
from paella_jax.training.lora import frozen_shardings
from paella_jax.training.method import Method

Tree = Any
BYT5_XL = T5Encoder(
    vocab_size=384, width=2560, num_layers=36, num_heads=32, head_dim=64, hidden_dim=6720
)
CLIP_TEXT = ClipText(
    vocab_size=49408, max_length=77, width=1024, num_layers=24, num_heads=16, hidden_dim=4096,
    projection=1024,
)  # fmt: skip
CLIP_VISION = ClipVision(
    image_size=224, patch_size=14, width=1280, num_layers=32, num_heads=16, hidden_dim=5120,
    projection=1024,
)  # fmt: skip


def abstract_method(config: ConfigDict) -> Method:
    """The method of a config with abstract frozen networks and one blank sample.

    Raises:
      ConfigError: a method that has no such form.
    """
    if config.method == "vqgan":
        return vqgan_method(config, [_blank(config)])
    if config.method == "paella":
        return _paella(config)
    raise ConfigError(f"method {config.method!r} cannot be compiled without its files")


def abstract_frozen(frozen: Tree, mesh: Mesh) -> Tree:
    """Adds the shardings the loop would place the frozen networks with."""
    shardings = frozen_shardings(frozen, mesh)
    place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    whole = lambda tree, s: jax.tree.map(lambda x: place(x, s), tree)
    placed = {}
    for name, tree in frozen.items():
        sharding = shardings[name]
        single = isinstance(sharding, jax.sharding.Sharding)
        placed[name] = whole(tree, sharding) if single else jax.tree.map(place, tree, sharding)
    return placed


def _blank(config: ConfigDict, **extra: np.ndarray) -> dict[str, np.ndarray]:
    side = config.data.image_size
    return {"image": np.zeros((side, side, 3), np.uint8), **extra}


def _as_it_is(sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return sample


def _paella(config: ConfigDict) -> Method:
    dtype = jnp.dtype(config.precision)
    released = config.image_encoder.kind == "clip"
    text = BYT5_XL.clone(dtype=dtype) if released else None
    predictor = Paella(**config.model, dtype=dtype)
    vqgan = VQGAN(codebook_size=predictor.codebook_size)
    encoder, frozen = _image_encoder(config), {"vqgan": abstract_vqgan(vqgan)}
    length = min(config.text.pad_to, config.text.max_length)
    blank = {"text_ids": np.zeros(length, np.int32), "text_mask": np.ones(length, bool)}
    if text is not None:
        ids = jnp.zeros((1, 4), jnp.int32)
        shapes = jax.eval_shape(lambda: text.init(jax.random.key(0), ids))
        frozen["text_encoder"] = shapes["params"]
        frozen["clip_text"] = text_shapes(CLIP_TEXT)
        frozen["image_encoder"] = vision_shapes(CLIP_VISION)
        blank["clip_ids"] = np.zeros(77, np.int32)
    side = config.data.image_size // vqgan.downsampling
    if predictor.num_classes:
        blank["labels"] = np.zeros((), np.int32)
    if predictor.num_segments:
        blank["segmentation"] = np.zeros((side, side), np.int32)
    networks = PaellaNetworks(
        predictor,
        text or joint_text_encoder(config.text, config.precision),
        make_tokenizer(BYT5_XL.vocab_size, "", config.text.max_length),
        vqgan,
        text_is_joint=text is None,
        clip_text=CLIP_TEXT.clone(dtype=dtype) if released else None,
        image_encoder=encoder,
    )
    empty = jnp.zeros(77, jnp.int32) if released else None
    return networks_method(config, networks, frozen, [_blank(config, **blank)], _as_it_is, empty)


def _image_encoder(config: ConfigDict) -> ImageEncoder | None:
    if config.image_encoder.kind == "clip":
        dtype = jnp.dtype(config.precision)
        return ImageEncoder(CLIP_VISION.clone(dtype=dtype), is_joint=False)
    if config.image_encoder.kind == "joint":
        return joint_image_encoder(config.image_encoder, config.data.image_size, config.precision)
    return None
