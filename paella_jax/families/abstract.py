"""Methods whose frozen networks are shapes only: what a preset needs to be compiled without files.

Frozen networks that a run reads from folders have their published sizes here: ByT5-XL's encoder and
both towers of CLIP ViT-H/14 (docs/models/paella.md 1), T5-XXL's encoder and aMUSEd's CLIP ViT-L/14
text tower (docs/models/muse.md 1.1, 2.1), and for Stage C the one of CLIP ViT-bigG/14
(docs/models/wuerstchen.md 1). Tokenizers are told by families/networks.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.config import load_config
from paella_jax.data.embeddings import NAMES as EMBEDDINGS
from paella_jax.encoders.clip_text import ClipText
from paella_jax.encoders.clip_vision import ClipVision
from paella_jax.encoders.published import TEXT, VISION
from paella_jax.encoders.t5 import T5Encoder
from paella_jax.encoders.text import joint_text_encoder, make_tokenizer
from paella_jax.families.cells import check_network
from paella_jax.families.clip_prior import clip_prior_method
from paella_jax.families.direct_decoder import decoding_method
from paella_jax.families.image_encoder import JOINT, ImageEncoder, joint_image_encoder
from paella_jax.families.networks import NETWORKS, SMALLEST_LARGE, frozen_form
from paella_jax.families.stage_b import StageBNetworks, assemble_stage_b, stage_b_networks_method
from paella_jax.families.stage_c import (
    StageCNetworks,
    assemble_stage_c,
    stage_c_networks_method,
)
from paella_jax.families.text_side import CLIP_LENGTH, NAME, TextSide, load_text
from paella_jax.families.token_networks import TokenNetworks
from paella_jax.families.token_training import networks_method
from paella_jax.families.tokens import TextNetworks, assemble
from paella_jax.families.vqgan_training import vqgan_method
from paella_jax.models.vqgan import VQGAN
from paella_jax.models.vqmodel import VQModel
from paella_jax.runs.frozen import COMPRESSOR
from paella_jax.training.method import Method
from paella_jax.training.sharding import frozen_shardings
from paella_jax.typing import Tree

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
CLIP_BIG_TEXT = ClipText(
    vocab_size=49408, max_length=77, width=1280, num_layers=32, num_heads=20, hidden_dim=5120,
    projection=1280,
)  # fmt: skip
CLIP_VISION = ClipVision(
    image_size=224, patch_size=14, width=1280, num_layers=32, num_heads=16, hidden_dim=5120,
    projection=1024,
)  # fmt: skip


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


def _blank(config: ConfigDict, **extra: Any) -> dict[str, Any]:
    side = config.data.image_size
    return {"image": np.zeros((side, side, 3), np.uint8), "caption": "", **extra}


# --- one method each: config -> Method with shapes for frozen networks and one blank sample


def abstract_vqgan(config: ConfigDict) -> Method:
    """Training of a tokenizer."""
    return vqgan_method(config, [_blank(config)])


def abstract_clip_prior(config: ConfigDict) -> Method:
    """Training of a CLIP prior."""
    embedding = np.zeros(config.model.clip_width, np.float32)
    return clip_prior_method(config, [dict.fromkeys(EMBEDDINGS, embedding)])


def abstract_tokens(config: ConfigDict) -> Method:
    """Training of a token predictor, with the released Paella's, MUSE's or aMUSEd's encoders."""
    networks, frozen = token_networks(config)
    side = config.data.image_size
    conditions = {"label": np.int32(0), "segmentation": np.zeros((side, side), np.int32)}
    return networks_method(config, networks, frozen, [_blank(config, **conditions)])


def token_networks(config: ConfigDict) -> tuple[TokenNetworks, Tree]:
    """The networks of `abstract_tokens`, and the shapes of the frozen ones' parameters."""
    check_network(config)
    network = NETWORKS[config.cell.network]
    vqgan, low = network.tokenizer(config), None
    frozen = {"vqgan": _shapes_of(vqgan)}
    if "low_tokens" in network.takes:
        low = VQModel(codebook_size=config.model.codebook_size)
        frozen["low_vqgan"] = _shapes_of(low)
        config = config.copy_and_resolve_references()
        config.low_tokenizer = config.low_tokenizer or "shapes only"  # of which nothing is read
    text = _text(config, frozen)
    encoder = _image_encoder(config)
    if config.image_encoder.kind == "clip":
        frozen["image_encoder"] = VISION.shapes(CLIP_VISION)
    return assemble(config, vqgan, text, encoder, low), frozen


def abstract_stage_b(config: ConfigDict) -> Method:
    """Training of a Stage B on the published Stage A."""
    networks, frozen = stage_b_networks(config)
    if not networks.joint_compressor:
        frozen[COMPRESSOR] = _compressor_shapes(networks)
    return stage_b_networks_method(config, networks, frozen, [_blank(config)])


def abstract_stage_c(config: ConfigDict) -> Method:
    """Training of a Stage C on the published compressor, or on a small one."""
    networks, stage_b, frozen = stage_c_networks(config)
    return stage_c_networks_method(config, networks, stage_b, frozen, [_blank(config)])


def stage_c_networks(config: ConfigDict) -> tuple[StageCNetworks, StageBNetworks, Tree]:
    """Stage C, the Stage B it draws for, and the shapes of the frozen networks' parameters."""
    stage_b = _some_stage_b(config, config.model.channels)
    frozen = {COMPRESSOR: _compressor_shapes(stage_b)}
    networks = assemble_stage_c(config, stage_b, _stage_text(config, CLIP_BIG_TEXT, frozen))
    return networks, stage_b, frozen


def abstract_direct_decoder(config: ConfigDict) -> Method:
    """Training of a direct decoder, on the same compressors."""
    stage_b = _some_stage_b(config)
    return decoding_method(
        config, stage_b, {COMPRESSOR: _compressor_shapes(stage_b)}, [_blank(config)]
    )


# --- their parts


def stage_b_networks(config: ConfigDict) -> tuple[StageBNetworks, Tree]:
    """Stage B on the published Stage A, and the shapes of the frozen networks' parameters."""
    vqgan = VQGAN()
    frozen = {"vqgan": _shapes_of(vqgan)}
    return assemble_stage_b(config, vqgan, _stage_text(config, CLIP_TEXT, frozen)), frozen


def _some_stage_b(config: ConfigDict, channels: int | None = None) -> StageBNetworks:
    """The Stage B that a config's run would be given: the released one, or a small one."""
    large = config.data.image_size >= SMALLEST_LARGE
    stage_b = load_config("stage_b:v2" if large else "stage_b:shapes")
    stage_b.data.image_size = config.data.image_size
    if channels is not None:
        stage_b.model.guide_channels = channels
    return stage_b_networks(stage_b)[0]


def _compressor_shapes(networks: StageBNetworks) -> Tree:
    side = networks.compressor.downsampling
    images = jnp.zeros((1, side, side, 3))
    return jax.eval_shape(lambda: networks.compressor.init(jax.random.key(0), images))


class _BlankTokenizer:
    """Stands for CLIP's, whose files are not there."""

    max_length = CLIP_LENGTH

    def __call__(
        self, texts: Sequence[str], pad_to: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        shape = (len(texts), pad_to or self.max_length)
        return np.zeros(shape, np.int32), np.ones(shape, bool)

    def truncating(self) -> _BlankTokenizer:
        return self

    def cut(self, text: str) -> str:
        return text


def _stage_text(config: ConfigDict, tower: ClipText, frozen: Tree) -> TextSide:
    """A diffusion stage's text; a frozen tower is the published one and has a blank tokenizer."""
    if config.text.kind != "clip":
        return load_text(config, Path(), "", frozen)
    frozen[NAME] = TEXT.shapes(tower)
    module = tower.clone(**frozen_form(config))
    return TextSide(module, _BlankTokenizer(), CLIP_LENGTH)


def _shapes_of(model: VQGAN | VQModel) -> Tree:
    side = model.downsampling
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, side, side, 3))))


def _text(config: ConfigDict, frozen: Tree) -> TextNetworks:
    """Encoders with blank or byte tokenizers; the frozen ones' shapes go into `frozen`."""
    clip = None
    clip_tokenizer: Any = None
    if "clip" in (config.text.kind, config.image_encoder.kind):
        clip = (CLIP_L_TEXT if config.text.kind == "clip" else CLIP_TEXT).clone(
            **frozen_form(config)
        )
        clip_tokenizer = _BlankTokenizer()
        frozen["clip_text"] = TEXT.shapes(clip)
    if config.text.kind == "clip":
        return TextNetworks(None, None, False, clip, clip_tokenizer)
    encoder = FROZEN_TEXT.get(config.text.width)
    is_joint = encoder is None
    if encoder is None:
        encoder = joint_text_encoder(config.text, config.precision)
    else:
        encoder, ids = encoder.clone(**frozen_form(config)), jnp.zeros((1, 4), jnp.int32)
        frozen["text_encoder"] = jax.eval_shape(lambda: encoder.init(jax.random.key(0), ids))[
            "params"
        ]
    rows = encoder.vocab_size if is_joint else BYT5_XL.vocab_size
    tokenizer = make_tokenizer(rows, "", config.text.max_length)
    return TextNetworks(encoder, tokenizer, is_joint, clip, clip_tokenizer)


def _image_encoder(config: ConfigDict) -> ImageEncoder | None:
    if config.image_encoder.kind == "clip":
        return ImageEncoder(CLIP_VISION.clone(**frozen_form(config)), is_joint=False)
    if config.image_encoder.kind in JOINT:
        return joint_image_encoder(config.image_encoder, config.data.image_size, config.precision)
    return None
