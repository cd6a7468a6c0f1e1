"""Methods whose frozen networks are shapes only: what a preset needs to be compiled without files.

Frozen networks that a run reads from folders have their published sizes here: ByT5-XL's encoder and
both towers of CLIP ViT-H/14 (docs/models/paella.md 1), T5-XXL's encoder, aMUSEd's CLIP ViT-L/14
text tower and the ResNet VQGANs at f16 and f8 (docs/models/muse.md 1.1, 2.1, 2.5).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.config import ConfigError, load_config
from paella_jax.data.transform import whole_image_conds
from paella_jax.encoders.clip_text import ClipText
from paella_jax.encoders.clip_vision import ClipVision
from paella_jax.encoders.published import TEXT, VISION
from paella_jax.encoders.t5 import T5Encoder
from paella_jax.encoders.text import joint_text_encoder, make_tokenizer
from paella_jax.families.image_encoder import ImageEncoder, joint_image_encoder
from paella_jax.families.tokens import TextNetworks, assemble, networks_method
from paella_jax.families.vqgan import vqgan_method
from paella_jax.models.vqgan import VQGAN
from paella_jax.models.vqmodel import VQModel
from paella_jax.training.method import Method
from paella_jax.training.sharding import frozen_shardings
from paella_jax.typing import Tree

SMALLEST_LARGE = 128  # pixels; below, a preset is for the embedded data
BYT5_XL = T5Encoder(
    vocab_size=384, width=2560, num_layers=36, num_heads=32, head_dim=64, hidden_dim=6720
)
T5_XXL = T5Encoder(
    vocab_size=32128, width=4096, num_layers=24, num_heads=64, head_dim=64, hidden_dim=10240
)
# A preset tells by its text width which frozen encoder it reads.
FROZEN_TEXT = {encoder.width: encoder for encoder in (BYT5_XL, T5_XXL)}
CLIP_L_TEXT = ClipText(
    vocab_size=49408, max_length=77, width=768, num_layers=12, num_heads=12, hidden_dim=3072,
    projection=768, activation="quick_gelu",
)  # fmt: skip
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
    if config.method == "tokens":
        return _tokens(config)
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


def _tokens(config: ConfigDict) -> Method:
    """Encoders read from folders have the released Paella's, MUSE's or aMUSEd's sizes."""
    if config.cell.network == "super_resolution" and not config.low_tokenizer:
        config = config.copy_and_resolve_references()
        config.low_tokenizer = "shapes only"  # a run's folder elsewhere; here nothing is read
    vqgan, variables = _tokenizer(config)
    frozen = {"vqgan": variables}
    blank: dict[str, np.ndarray] = {}
    text, empty = _text(config, frozen, blank)
    low = None
    if config.cell.network == "super_resolution":
        low = VQModel(codebook_size=config.model.codebook_size)
        frozen["low_vqgan"] = _shapes_of(low)
    side = config.data.image_size // vqgan.downsampling
    if config.model.num_classes:
        blank["labels"] = np.zeros((), np.int32)
    if config.model.num_segments:
        blank["segmentation"] = np.zeros((side, side), np.int32)
    if config.cell.network == "uvit":
        blank["micro_conds"] = whole_image_conds(config.data.image_size, config.data.image_size)
    encoder = _image_encoder(config)
    if config.image_encoder.kind == "clip":
        frozen["image_encoder"] = VISION.shapes(CLIP_VISION)
    networks = assemble(config, vqgan, text, encoder, low)
    return networks_method(config, networks, frozen, [_blank(config, **blank)], _as_it_is, empty)


def _tokenizer(config: ConfigDict) -> tuple[Any, Tree]:
    """Paella's f4, or MUSE's f16 and f8 where the images are large; and its shapes."""
    codes, network = config.model.codebook_size, config.cell.network
    model: Any = VQModel(codebook_size=codes)
    if network == "unet" or config.data.image_size < SMALLEST_LARGE:
        model = VQGAN(codebook_size=codes)
    elif network == "super_resolution":
        widths = load_config("resnet_vqgan:f8").model.widths
        levels = (False,) * len(widths)
        model = VQModel(
            codebook_size=codes, widths=widths, encoder_attention=levels, decoder_attention=levels
        )
    return model, _shapes_of(model)


def _shapes_of(model: Any) -> Tree:
    side = model.downsampling
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, side, side, 3))))


def _text(
    config: ConfigDict, frozen: Tree, blank: dict[str, np.ndarray]
) -> tuple[TextNetworks, jax.Array | None]:
    """Encoders and the empty text's CLIP ids; adds shapes to `frozen` and ids to the sample."""
    dtype = jnp.dtype(config.precision)
    uses_clip = config.text.kind == "clip" or config.image_encoder.kind == "clip"
    clip = None
    if uses_clip:
        clip = (CLIP_L_TEXT if config.text.kind == "clip" else CLIP_TEXT).clone(dtype=dtype)
        frozen["clip_text"] = TEXT.shapes(clip)
        blank["clip_ids"] = np.zeros(77, np.int32)
    empty = jnp.zeros(77, jnp.int32) if uses_clip else None
    if config.text.kind == "clip":
        return TextNetworks(None, None, False, clip, None), empty
    length = min(config.text.pad_to, config.text.max_length)
    blank |= {"text_ids": np.zeros(length, np.int32), "text_mask": np.ones(length, bool)}
    encoder = FROZEN_TEXT.get(config.text.width)
    is_joint = encoder is None
    if encoder is None:
        encoder = joint_text_encoder(config.text, config.precision)
    else:
        encoder, ids = encoder.clone(dtype=dtype), jnp.zeros((1, 4), jnp.int32)
        frozen["text_encoder"] = jax.eval_shape(lambda: encoder.init(jax.random.key(0), ids))[
            "params"
        ]
    tokenizer = make_tokenizer(BYT5_XL.vocab_size, "", config.text.max_length)
    return TextNetworks(encoder, tokenizer, is_joint, clip, None), empty


def _image_encoder(config: ConfigDict) -> ImageEncoder | None:
    if config.image_encoder.kind == "clip":
        dtype = jnp.dtype(config.precision)
        return ImageEncoder(CLIP_VISION.clone(dtype=dtype), is_joint=False)
    if config.image_encoder.kind == "joint":
        return joint_image_encoder(config.image_encoder, config.data.image_size, config.precision)
    return None
