"""The method of token predictors: what a run of any cell carries, and its training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.data.build import make_source
from paella_jax.data.encoded import EncodedSource
from paella_jax.data.loader import Source
from paella_jax.data.shapes import get_spec
from paella_jax.data.shapes_maps import ShapesWithMaps
from paella_jax.data.sources import ShapesSource
from paella_jax.data.transform import ConditionedImageTransform
from paella_jax.encoders.text import CLIP_LIMITS, TEXT_LIMITS, truncating
from paella_jax.families.cells import check_cell
from paella_jax.families.stored import text_length, token_encoding
from paella_jax.families.token_networks import TokenNetworks
from paella_jax.families.tokens import CLIP, load_networks
from paella_jax.objectives.token_prediction import token_objective
from paella_jax.runs.frozen import carry
from paella_jax.training.method import Method, Tokenize
from paella_jax.typing import Tree


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


def token_method(config: ConfigDict, workdir: Path) -> Method:
    """Training of a token predictor in a prepared run folder."""
    networks, frozen = load_networks(config, workdir)
    return networks_method(config, networks, frozen, source_of(config, "train"))


def networks_method(
    config: ConfigDict, networks: TokenNetworks, frozen: Tree, source: Source
) -> Method:
    """Training of given networks on given data, without a preview; `frozen` may be shapes."""
    length, text, clip = text_length(config), networks.text_tokenizer, networks.clip_tokenizer
    text = None if text is None else truncating(text, length)
    clip = None if clip is None else truncating(clip, clip.max_length)
    tokenizers = {TEXT_LIMITS: text, CLIP_LIMITS: clip}
    stored: dict[str, Tokenize] = {}
    if text is not None:
        stored["text"] = lambda texts: text(texts, length)
    if clip is not None:
        stored["clip"] = lambda texts: clip(texts, 77)
    grid = config.data.image_size // networks.vqgan.downsampling
    from_images: dict[str, Callable[..., jax.Array]] = {}
    if networks.image_encoder is not None:
        from_images["image_pooled"] = lambda *given: networks.embed_images(*given)[:, None]
    if networks.low_vqgan is not None:
        from_images["low_tokens"] = lambda params, frozen, images, keep: networks.encode_low(
            frozen, images
        )
    objective = token_objective(
        networks.features,
        partial(networks.condition, by_length=True),
        networks.encode_images,
        config.objective,
        networks.predictor.codebook_size,
        mask_token=networks.predictor.mask_token,
        from_images=from_images,
        empty_clip_ids=None if clip is None else jnp.asarray(clip([""], 77)[0][0]),
    )
    return Method(
        title=config.cell.network,
        init=lambda key: (networks.init(key, grid), {}),
        objective=objective,
        frozen=frozen,
        source=source,
        transform=ConditionedImageTransform(
            text,
            length,
            clip_tokenize=clip,
            labels=config.model.num_classes > 0,
            segmentation_pixels=networks.vqgan.downsampling if config.model.num_segments else 0,
            micro_conds="micro_conds" in networks.takes,
        ),
        rebuild=lambda frozen, images: networks.decode_tokens(
            frozen, networks.encode_images(frozen, images)
        ),
        encoding=token_encoding(config, networks, frozen, stored),
        tokenizers={limits: t for limits, t in tokenizers.items() if t is not None},
        held=lambda: source_of(config, "validation"),
    )


def source_of(config: ConfigDict, split: str) -> Source:
    """The images of a split, with labels and maps where the predictor is conditioned on them.

    Raises:
      ConfigError: the data has none, or more classes than the predictor.
    """
    source = make_source(config.data, split, config.seed)
    classes, segments = config.model.num_classes, config.model.num_segments
    if not (classes or segments) or isinstance(source, EncodedSource):
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
