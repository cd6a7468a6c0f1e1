"""The Paella family: its networks, frozen parts and training method, built from a config."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.convert.clip import load_clip_text_folder, load_clip_vision_folder
from paella_jax.convert.t5 import load_t5_folder
from paella_jax.data.build import check_sizes, make_source
from paella_jax.data.conditions import ConditionedImageTransform
from paella_jax.data.loader import Source, Transform
from paella_jax.data.shapes import get_spec
from paella_jax.data.shapes_maps import ShapesWithMaps
from paella_jax.data.sources import ShapesSource
from paella_jax.encoders.t5 import t5_from_hf_config
from paella_jax.encoders.text import ClipTokenizer, joint_text_encoder, make_tokenizer
from paella_jax.families.clip_folder import carry_clip
from paella_jax.families.image_encoder import ImageEncoder, joint_image_encoder
from paella_jax.families.paella_networks import PaellaNetworks
from paella_jax.families.vqgan import carry_tokenizer, load_carried_tokenizer
from paella_jax.models.paella import Paella
from paella_jax.objectives.paella import paella_objective
from paella_jax.training.method import Method
from paella_jax.training.state import TrainState
from paella_jax.training.weights import load_tree, save_tree

Tree = Any
TEXT_CONFIG = "text_encoder.json"
TEXT_WEIGHTS = "text_encoder.safetensors"
CLIP = "clip"  # folder of the carried CLIP model
TOKENIZER_FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json",
                   "special_tokens_map.json", "added_tokens.json")  # fmt: skip


def prepare_frozen(config: ConfigDict, workdir: Path) -> None:
    """Puts the frozen networks a run needs into its folder, once.

    Raises:
      ConfigError, CheckpointError: no tokenizer given, not a tokenizer, or unreadable weights.
    """
    if not (workdir / "frozen" / "vqgan.json").is_file():
        if not config.tokenizer:
            raise ConfigError(
                "Paella needs a trained tokenizer: give --config.tokenizer=RUN, the run folder of "
                "configs/vqgan.py"
            )
        carry_tokenizer(config.tokenizer, workdir)
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


def load_networks(config: ConfigDict, workdir: Path) -> tuple[PaellaNetworks, Tree]:
    """Networks and frozen parameters of a prepared run folder.

    Raises:
      ConfigError: tokenizer and predictor do not belong together, or sizes do not divide.
    """
    dtype = jnp.dtype(config.precision)
    predictor = Paella(**config.model, dtype=dtype)
    vqgan, variables = load_carried_tokenizer(workdir)
    if vqgan.codebook_size != predictor.codebook_size:
        raise ConfigError(
            f"model.codebook_size {predictor.codebook_size} differs from the tokenizer's "
            f"{vqgan.codebook_size}; set --config.model.codebook_size={vqgan.codebook_size}"
        )
    divisor = vqgan.downsampling * predictor.grid_divisor
    why = f"tokenizer {vqgan.downsampling} x predictor {predictor.grid_divisor}"
    check_sizes(config.data, divisor, why)
    frozen = {"vqgan": variables}
    file = workdir / "frozen" / TEXT_CONFIG
    if not file.is_file():
        encoder = joint_text_encoder(config.text, config.precision)
    else:
        encoder = t5_from_hf_config(json.loads(file.read_text())).clone(dtype=dtype)
        frozen["text_encoder"] = load_tree(workdir / "frozen" / TEXT_WEIGHTS)
    tokenizer = make_tokenizer(encoder.vocab_size, workdir / "frozen", config.text.max_length)
    clip_text = clip_tokenizer = None
    if (workdir / "frozen" / CLIP).is_dir():
        clip_text, frozen["clip_text"] = load_clip_text_folder(workdir / "frozen" / CLIP)
        clip_tokenizer = ClipTokenizer(workdir / "frozen" / CLIP)
    networks = PaellaNetworks(
        predictor,
        encoder,
        tokenizer,
        vqgan,
        text_is_joint=not file.is_file(),
        clip_text=None if clip_text is None else clip_text.clone(dtype=dtype),
        clip_tokenizer=clip_tokenizer,
        image_encoder=_image_encoder(config, workdir, frozen),
    )
    return networks, frozen


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


def paella_method(
    config: ConfigDict,
    workdir: Path,
    preview: Callable[[TrainState, Tree, Path], dict[str, float]] | None = None,
) -> Method:
    """Training of configs/paella.py in a prepared run folder."""
    networks, frozen = load_networks(config, workdir)
    text = config.text
    tokenize = make_tokenizer(
        networks.text_encoder.vocab_size,
        workdir / "frozen",
        min(text.pad_to, text.max_length),
        truncate=True,
    )
    predictor, length = networks.predictor, min(text.pad_to, text.max_length)
    clip = networks.clip_tokenizer
    transform = ConditionedImageTransform(
        tokenize,
        length,
        clip_tokenize=None if clip is None else clip.truncating(),
        labels=predictor.num_classes > 0,
        segmentation_pixels=networks.vqgan.downsampling if predictor.num_segments else 0,
    )
    empty = None if clip is None else jnp.asarray(clip([""], 77)[0][0])
    method = networks_method(config, networks, frozen, training_source(config), transform, empty)
    return dataclasses.replace(method, preview=preview)


def networks_method(
    config: ConfigDict,
    networks: PaellaNetworks,
    frozen: Tree,
    source: Source,
    transform: Transform,
    empty_clip_ids: jax.Array | None,
) -> Method:
    """Training of given networks on given data, without a preview.

    Args:
      config: of configs/paella.py.
      networks: predictor, tokenizer and encoders.
      frozen: parameters of the frozen ones, or their shapes.
      source: training samples.
      transform: sample -> arrays.
      empty_clip_ids: int32 [77], CLIP's tokens of the empty text, where CLIP text is used.
    """
    grid = config.data.image_size // networks.vqgan.downsampling
    objective = paella_objective(
        networks.features,
        networks.condition,
        networks.encode_images,
        config.objective,
        networks.predictor.codebook_size,
        embed_images=None if networks.image_encoder is None else networks.embed_images,
        empty_clip_ids=empty_clip_ids,
    )
    return Method(
        title="paella",
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
