"""Token predictors: networks, frozen parts and training method of any cell, from a config."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.data.build import check_sizes, make_source
from paella_jax.data.loader import Source, Transform
from paella_jax.data.shapes import get_spec
from paella_jax.data.shapes_maps import ShapesWithMaps
from paella_jax.data.sources import ShapesSource
from paella_jax.data.transform import ConditionedImageTransform
from paella_jax.encoders.clip_text import ClipText
from paella_jax.encoders.published import (
    load_clip_text_folder,
    load_clip_vision_folder,
    load_t5_folder,
)
from paella_jax.encoders.t5 import T5Encoder, t5_from_hf_config
from paella_jax.encoders.text import (
    ClipTokenizer,
    Tokenizer,
    joint_text_encoder,
    make_tokenizer,
)
from paella_jax.families.cells import check_cell, make_predictor
from paella_jax.families.image_encoder import ImageEncoder, joint_image_encoder
from paella_jax.families.token_networks import TokenNetworks
from paella_jax.families.vqgan import carry_tokenizer, load_carried_tokenizer
from paella_jax.objectives.token_prediction import token_objective
from paella_jax.runs.clip_folder import carry_clip
from paella_jax.runs.weights import load_tree, save_tree
from paella_jax.training.method import Method
from paella_jax.training.state import TrainState
from paella_jax.typing import Tree

TEXT_CONFIG = "text_encoder.json"
TEXT_WEIGHTS = "text_encoder.safetensors"
CLIP = "clip"  # folder of the carried CLIP model
LOW = "frozen/low"  # folder of the carried tokenizer of small pictures
TOKENIZER_FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json",
                   "special_tokens_map.json", "added_tokens.json")  # fmt: skip


def prepare_frozen(config: ConfigDict, workdir: Path) -> None:
    """Checks the cell and puts the frozen networks a run needs into its folder, once.

    Raises:
      ConfigError, CheckpointError: no tokenizer given, not a tokenizer, or unreadable weights.
    """
    check_cell(config)
    if not (workdir / "frozen" / "vqgan.json").is_file():
        if not config.tokenizer:
            raise ConfigError(
                "a token predictor needs a trained tokenizer: give --config.tokenizer=RUN, the run "
                "folder of configs/vqgan.py"
            )
        carry_tokenizer(config.tokenizer, workdir)
    if config.low_tokenizer and not (workdir / LOW / "frozen" / "vqgan.json").is_file():
        carry_tokenizer(config.low_tokenizer, workdir / LOW)
    target = workdir / "frozen" / TEXT_CONFIG
    if config.text.folder and not target.is_file():
        folder = Path(config.text.folder)
        _, params = load_t5_folder(folder)
        save_tree(workdir / "frozen" / TEXT_WEIGHTS, params)
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copy(folder / name, workdir / "frozen" / name)
        shutil.copy(folder / "config.json", target)
    if config.clip.folder and not (workdir / "frozen" / CLIP).is_dir():
        carry_clip(config.clip.folder, workdir / "frozen" / CLIP)


def load_networks(config: ConfigDict, workdir: Path) -> tuple[TokenNetworks, Tree]:
    """Networks and frozen parameters of a prepared run folder.

    Raises:
      ConfigError: tokenizer and predictor do not belong together, or sizes do not divide.
    """
    vqgan, variables = load_carried_tokenizer(workdir)
    frozen = {"vqgan": variables}
    if vqgan.codebook_size != config.model.codebook_size:
        raise ConfigError(
            f"model.codebook_size {config.model.codebook_size} differs from the tokenizer's "
            f"{vqgan.codebook_size}; set --config.model.codebook_size={vqgan.codebook_size}"
        )
    text = _text_networks(config, workdir, frozen)
    low = None
    if config.cell.network == "super_resolution":
        low, frozen["low_vqgan"] = load_carried_tokenizer(workdir / LOW)
    image_encoder = _image_encoder(config, workdir, frozen)
    return assemble(config, vqgan, text, image_encoder, low), frozen


class TextNetworks(NamedTuple):
    """The text side of `TokenNetworks`, in its compute dtype."""

    encoder: T5Encoder | None
    tokenizer: Tokenizer | None
    is_joint: bool
    clip: ClipText | None
    clip_tokenizer: ClipTokenizer | None


def assemble(
    config: ConfigDict,
    vqgan: Any,
    text: TextNetworks,
    image_encoder: ImageEncoder | None,
    low: Any = None,
) -> TokenNetworks:
    """A cell's predictor between its tokenizer and encoders.

    Raises:
      ConfigError: sizes do not divide, or the cell makes no sense.
    """
    states = text.clip if text.encoder is None else text.encoder
    assert states is not None
    pooled = states.width if text.clip is None else text.clip.projection
    predictor = make_predictor(
        config,
        grid=config.data.image_size // vqgan.downsampling,
        text_width=states.width,
        pooled_width=pooled or states.width,
        low=low,
    )
    divisor = vqgan.downsampling * predictor.grid_divisor
    why = f"tokenizer {vqgan.downsampling} x predictor {predictor.grid_divisor}"
    check_sizes(config.data, divisor, why)
    if config.data.buckets and getattr(predictor, "grid", 0):
        raise ConfigError(
            f"data.buckets gives maps of several shapes, cell.network={config.cell.network} has "
            "learned positions for one; leave data.buckets empty or choose unet or uvit"
        )
    return TokenNetworks(
        predictor,
        text.encoder,
        text.tokenizer,
        vqgan,
        text_is_joint=text.is_joint,
        clip_text=text.clip,
        clip_tokenizer=text.clip_tokenizer,
        image_encoder=image_encoder,
        empty_text_is_absent=config.text.empty_is_absent,
        low_vqgan=low,
        low_grid=config.super_resolution.low_grid if low is not None else 0,
    )


def _text_networks(config: ConfigDict, workdir: Path, frozen: Tree) -> TextNetworks:
    """Encoders and tokenizers of a prepared run folder; frozen weights go into `frozen`."""
    dtype = jnp.dtype(config.precision)
    if config.text.kind not in ("t5", "clip"):
        raise ConfigError(f"text.kind must be t5 or clip, got {config.text.kind!r}")
    clip = clip_tokenizer = None
    if (workdir / "frozen" / CLIP).is_dir():
        clip, frozen["clip_text"] = load_clip_text_folder(workdir / "frozen" / CLIP)
        clip = clip.clone(dtype=dtype)
        clip_tokenizer = ClipTokenizer(workdir / "frozen" / CLIP)
    if config.text.kind == "clip":
        if clip is None:
            raise ConfigError(
                "text.kind=clip needs --config.clip.folder=FOLDER, a CLIP text model with "
                "projection in Hugging Face layout"
            )
        return TextNetworks(None, None, False, clip, clip_tokenizer)
    file = workdir / "frozen" / TEXT_CONFIG
    is_joint = not file.is_file()
    if is_joint:
        encoder = joint_text_encoder(config.text, config.precision)
    else:
        encoder = t5_from_hf_config(json.loads(file.read_text())).clone(dtype=dtype)
        frozen["text_encoder"] = load_tree(workdir / "frozen" / TEXT_WEIGHTS)
    tokenizer = make_tokenizer(encoder.vocab_size, workdir / "frozen", config.text.max_length)
    return TextNetworks(encoder, tokenizer, is_joint, clip, clip_tokenizer)


def _image_encoder(config: ConfigDict, workdir: Path, frozen: Tree) -> ImageEncoder | None:
    """The encoder `config.image_encoder.kind` asks for; a frozen one's weights go into `frozen`."""
    kind = config.image_encoder.kind
    if kind == "joint":
        size = config.data.image_size
        return joint_image_encoder(config.image_encoder, size, config.precision)
    if kind == "none":
        return None
    if kind != "clip":
        raise ConfigError(f"image_encoder.kind must be none, clip or joint, got {kind!r}")
    folder = workdir / "frozen" / CLIP
    if not folder.is_dir():
        raise ConfigError(
            "image_encoder.kind=clip needs --config.clip.folder=FOLDER with both CLIP towers in "
            "Hugging Face layout; or set --config.image_encoder.kind=none"
        )
    module, frozen["image_encoder"] = load_clip_vision_folder(folder)
    return ImageEncoder(module.clone(dtype=jnp.dtype(config.precision)), is_joint=False)


def token_method(
    config: ConfigDict,
    workdir: Path,
    preview: Callable[[TrainState, Tree, Path], dict[str, float]] | None = None,
) -> Method:
    """Training of a token predictor in a prepared run folder."""
    networks, frozen = load_networks(config, workdir)
    tokenize, length = None, min(config.text.pad_to, config.text.max_length)
    if networks.text_encoder is not None:
        vocabulary = networks.text_encoder.vocab_size
        tokenize = make_tokenizer(vocabulary, workdir / "frozen", length, truncate=True)
    clip = networks.clip_tokenizer
    transform = ConditionedImageTransform(
        tokenize,
        length,
        clip_tokenize=None if clip is None else clip.truncating(),
        labels=config.model.num_classes > 0,
        segmentation_pixels=networks.vqgan.downsampling if config.model.num_segments else 0,
        micro_conds=config.cell.network == "uvit",
    )
    empty = None if clip is None else jnp.asarray(clip([""], 77)[0][0])
    method = networks_method(config, networks, frozen, training_source(config), transform, empty)
    return dataclasses.replace(method, preview=preview)


def networks_method(
    config: ConfigDict,
    networks: TokenNetworks,
    frozen: Tree,
    source: Source,
    transform: Transform,
    empty_clip_ids: jax.Array | None,
) -> Method:
    """Training of given networks on given data, without a preview.

    Args:
      config: of a token predictor.
      networks: predictor, tokenizer and encoders.
      frozen: parameters of the frozen ones, or their shapes.
      source: training samples.
      transform: sample -> arrays.
      empty_clip_ids: int32 [77], CLIP's tokens of the empty text, where CLIP text is used.
    """
    grid = config.data.image_size // networks.vqgan.downsampling
    objective = token_objective(
        networks.features,
        networks.condition,
        networks.encode_images,
        config.objective,
        networks.predictor.codebook_size,
        mask_token=networks.predictor.mask_token,
        embed_images=None if networks.image_encoder is None else networks.embed_images,
        encode_low=None if networks.low_vqgan is None else networks.encode_low,
        empty_clip_ids=empty_clip_ids,
    )
    return Method(
        title=config.cell.network,
        init=lambda key: (networks.init(key, grid), {}),
        objective=objective,
        frozen=frozen,
        source=source,
        transform=transform,
    )


def training_source(config: ConfigDict) -> Source:
    """The training images, with labels and maps where the predictor is conditioned on them.

    Raises:
      ConfigError: the data has none, or more classes than the predictor.
    """
    source = make_source(config.data, "train", config.seed)
    classes, segments = config.model.num_classes, config.model.num_segments
    if not (classes or segments):
        return source
    if not isinstance(source, ShapesSource):
        raise ConfigError(
            "model.num_classes and model.num_segments need labelled data, which only "
            "data.source=shapes has"
        )
    shapes = len(get_spec(source.spec_name).shapes)
    for name, value, needed in (("classes", classes, shapes), ("segments", segments, shapes + 1)):
        if 0 < value < needed:
            raise ConfigError(f"model.num_{name} is {value}, the data has {needed}")
    return ShapesWithMaps(source)


def parameter_count(params: Tree) -> int:
    """Number of scalars in a tree."""
    return sum(x.size for x in jax.tree.leaves(params))
