"""Token predictors: networks, frozen parts and training method of any cell, from a config."""

from __future__ import annotations

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
from paella_jax.encoders.clip_weights import load_clip_vision_folder
from paella_jax.encoders.t5 import T5Encoder
from paella_jax.encoders.text import (
    ClipTokenizer,
    Tokenizer,
    joint_text_encoder,
    make_tokenizer,
)
from paella_jax.families.cells import check_cell, make_predictor
from paella_jax.families.image_encoder import ImageEncoder, joint_image_encoder
from paella_jax.families.networks import NETWORKS, Around, names_where
from paella_jax.families.token_networks import TokenNetworks
from paella_jax.families.vqgan import load_carried_tokenizer
from paella_jax.objectives.token_prediction import token_objective
from paella_jax.runs.frozen import FROZEN, carry, load_carried, place_of
from paella_jax.training.method import Method
from paella_jax.typing import Tree

CLIP = "clip"  # the carried CLIP model


def prepare(config: ConfigDict, workdir: Path) -> None:
    """Checks the cell and puts the frozen networks a run needs into its folder, once.

    Raises:
      ConfigError, CheckpointError: no tokenizer given, not a tokenizer, or unreadable weights.
    """
    check_cell(config)
    needed = (
        "a token predictor needs a trained tokenizer: give --config.tokenizer=RUN, the run "
        "folder of configs/vqgan.py"
    )
    carry("tokenizer", config.tokenizer, workdir, needed)
    carry("low_tokenizer", config.low_tokenizer, workdir)
    carry("text_encoder", config.text.folder, workdir)
    carry(CLIP, config.clip.folder, workdir)


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
    if "low_tokens" in NETWORKS[config.cell.network].takes:
        low, frozen["low_vqgan"] = load_carried_tokenizer(workdir, "low_tokenizer")
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
    grid = config.data.image_size // vqgan.downsampling
    predictor = make_predictor(config, Around(grid, states.width, pooled or states.width, low))
    network = NETWORKS[config.cell.network]
    divisor = vqgan.downsampling * predictor.grid_divisor
    why = f"tokenizer {vqgan.downsampling} x predictor {predictor.grid_divisor}"
    check_sizes(config.data, divisor, why)
    if config.data.buckets and network.fixed_grid:
        able = names_where(lambda other: not other.fixed_grid)
        raise ConfigError(
            f"data.buckets gives maps of several shapes, cell.network={config.cell.network} has "
            f"learned positions for one; leave data.buckets empty or choose {able}"
        )
    return TokenNetworks(
        predictor,
        text.encoder,
        text.tokenizer,
        vqgan,
        network.takes,
        text_is_joint=text.is_joint,
        clip_text=text.clip,
        clip_tokenizer=text.clip_tokenizer,
        image_encoder=image_encoder,
        empty_text_is_absent=config.text.empty_is_absent,
        low_vqgan=low,
        low_grid=config[network.block].low_grid if low is not None else 0,
    )


def _text_networks(config: ConfigDict, workdir: Path, frozen: Tree) -> TextNetworks:
    """Encoders and tokenizers of a prepared run folder; frozen weights go into `frozen`."""
    dtype = jnp.dtype(config.precision)
    if config.text.kind not in ("t5", "clip"):
        raise ConfigError(f"text.kind must be t5 or clip, got {config.text.kind!r}")
    clip = clip_tokenizer = None
    folder = place_of(CLIP, workdir)
    if folder.is_dir():
        clip, frozen["clip_text"] = load_carried(CLIP, workdir)
        clip = clip.clone(dtype=dtype)
        clip_tokenizer = ClipTokenizer(folder)
    if config.text.kind == "clip":
        if clip is None:
            raise ConfigError(
                "text.kind=clip needs --config.clip.folder=FOLDER, a CLIP text model with "
                "projection in Hugging Face layout"
            )
        return TextNetworks(None, None, False, clip, clip_tokenizer)
    is_joint = not place_of("text_encoder", workdir).is_file()
    if is_joint:
        encoder = joint_text_encoder(config.text, config.precision)
    else:
        encoder, frozen["text_encoder"] = load_carried("text_encoder", workdir)
        encoder = encoder.clone(dtype=dtype)
    tokenizer = make_tokenizer(encoder.vocab_size, workdir / FROZEN, config.text.max_length)
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
    folder = place_of(CLIP, workdir)
    if not folder.is_dir():
        raise ConfigError(
            "image_encoder.kind=clip needs --config.clip.folder=FOLDER with both CLIP towers in "
            "Hugging Face layout; or set --config.image_encoder.kind=none"
        )
    module, frozen["image_encoder"] = load_clip_vision_folder(folder)
    return ImageEncoder(module.clone(dtype=jnp.dtype(config.precision)), is_joint=False)


def token_method(config: ConfigDict, workdir: Path) -> Method:
    """Training of a token predictor in a prepared run folder."""
    networks, frozen = load_networks(config, workdir)
    tokenize, length = None, min(config.text.pad_to, config.text.max_length)
    if networks.text_encoder is not None:
        vocabulary = networks.text_encoder.vocab_size
        tokenize = make_tokenizer(vocabulary, workdir / FROZEN, length, truncate=True)
    clip = networks.clip_tokenizer
    transform = ConditionedImageTransform(
        tokenize,
        length,
        clip_tokenize=None if clip is None else clip.truncating(),
        labels=config.model.num_classes > 0,
        segmentation_pixels=networks.vqgan.downsampling if config.model.num_segments else 0,
        micro_conds="micro_conds" in networks.takes,
    )
    empty = None if clip is None else jnp.asarray(clip([""], 77)[0][0])
    return networks_method(config, networks, frozen, training_source(config), transform, empty)


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
    from_images: dict[str, Callable[..., jax.Array]] = {}
    if networks.image_encoder is not None:
        from_images["image_pooled"] = lambda *given: networks.embed_images(*given)[:, None]
    if networks.low_vqgan is not None:
        from_images["low_tokens"] = lambda _, *given: networks.encode_low(*given)
    objective = token_objective(
        networks.features,
        networks.condition,
        networks.encode_images,
        config.objective,
        networks.predictor.codebook_size,
        mask_token=networks.predictor.mask_token,
        from_images=from_images,
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
