"""Every token network, one record each: all that the package has to know of a `cell.network`.

A new one is a file in models/, a record here and a block in configs/cells.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.config import ConfigError, load_config
from paella_jax.models.vqgan import VQGAN

if TYPE_CHECKING:
    from paella_jax.families.token_networks import TokenPredictor
    from paella_jax.models.vqmodel import VQModel

SMALLEST_LARGE = 128  # pixels; below, a preset is for the embedded data


class Around(NamedTuple):
    """What a network is built to fit.

    Attributes:
      grid: side of the training images' token map.
      text_width: of the text encoder's states.
      pooled_width: of the pooled text.
      low: tokenizer of the small images, for super-resolution.
    """

    grid: int
    text_width: int
    pooled_width: int
    low: Any = None


@dataclass(frozen=True)
class Network:
    """One `cell.network`.

    Attributes:
      block: its fields in a config.
      make: (config, what it must fit) -> the network in its compute dtype, a `TokenPredictor`.
      untold: the setting "field=value" that tells it the noise level; empty where it is told.
      takes: fields of `Conditioning` that it reads beside the text and its pooled form.
      null_text: whether it has a position for "no text", so that an empty one may be absent.
      fixed_grid: whether it has learned positions, for one shape of the token map only.
      widths: fields of its block that `compare` scales to change its size.
      tokenizer: config -> the tokenizer it was published with, or a small one.
      check: raises ConfigError for fields that would fail, or blind it, only once it is built.
    """

    block: str
    make: Callable[[ConfigDict, Around], Any]
    untold: Callable[[ConfigDict], str] = lambda config: ""
    takes: frozenset[str] = frozenset()
    null_text: bool = False
    fixed_grid: bool = False
    widths: tuple[str, ...] = ("width",)
    tokenizer: Callable[[ConfigDict], VQGAN | VQModel] = lambda config: VQGAN(
        codebook_size=config.model.codebook_size
    )
    check: Callable[[ConfigDict], None] = lambda config: None


def common_fields(config: ConfigDict) -> dict[str, Any]:
    """What a config says of every network outside of its block, as module fields.

    `mask_row` says whether unknown tokens are masks, which the input table has a row for; else they
    are random ones.
    """
    return {
        "codebook_size": config.model.codebook_size,
        "mask_row": config.cell.corruption == "mask",
        "dtype": jnp.dtype(config.precision),
    }


def frozen_form(config: ConfigDict) -> dict[str, Any]:
    """Fields of frozen encoders that a config decides: they go with the network they serve."""
    block = NETWORKS[config.cell.network].block if "cell" in config else "model"
    return {
        "dtype": jnp.dtype(config.precision),
        "loop": bool(config[block].get("loop", False)),
        "kernel": config.text.get("attention", "xla"),  # older runs lack the field
    }


# Each network's file is imported when it is made: a run needs but its own.


def _make_unet(config: ConfigDict, around: Around) -> TokenPredictor:
    from paella_jax.models.paella import Paella

    return Paella(**dict(config.model) | common_fields(config))


def _make_transformer(config: ConfigDict, around: Around) -> TokenPredictor:
    from paella_jax.models.muse import MuseTransformer

    return MuseTransformer(**config.transformer, grid=around.grid, **common_fields(config))


def _make_super_resolution(config: ConfigDict, around: Around) -> TokenPredictor:
    from paella_jax.models.muse_super_resolution import SuperResolution

    fields = common_fields(config) | {"low_codebook_size": around.low.codebook_size}
    return SuperResolution(**config.super_resolution, grid=around.grid, **fields)


def _make_uvit(config: ConfigDict, around: Around) -> TokenPredictor:
    from paella_jax.models.uvit import UViT
    from paella_jax.models.uvit_predictor import UViTPredictor

    fields = common_fields(config) | dict(config.uvit)
    # The table ends in the mask, which uniform corruption never uses.
    fields["vocabulary_size"] = fields["vocabulary_size"] or fields["codebook_size"] + 1
    masks = fields.pop("mask_row")
    widths = {"text_width": around.text_width, "pooled_width": around.pooled_width}
    return UViTPredictor(UViT(**fields, **widths), masks=masks)


def _check_uvit(config: ConfigDict) -> None:
    uvit = config.uvit
    if uvit.downsample != uvit.upsample:
        raise ConfigError(
            "uvit.downsample and uvit.upsample must be the same: logits need the tokens' grid"
        )
    if uvit.micro_conds not in (5, 6):
        raise ConfigError(
            f"uvit.micro_conds must be 5, or 6 with the noise level, got {uvit.micro_conds}"
        )
    if config.cell.corruption == "uniform" and uvit.vocabulary_size:
        raise ConfigError(
            "uvit.vocabulary_size is the released models' padded table, which ends in the mask; "
            "leave it 0 with cell.corruption=uniform"
        )


def _check_muse(config: ConfigDict) -> None:
    """Refuses a width that is no embedding of the noise level, and runs of an older network."""
    block = NETWORKS[config.cell.network].block
    width = config[block].time_width
    if "tied_head" not in config[block]:
        raise ConfigError(
            f"this run's {config.cell.network} is older than the norm behind its embeddings, "
            "without which it hardly saw positions (docs/results.md 5): its weights do not fit "
            "the network of today. Train it again in a new folder"
        )
    if width and width < 4:
        raise ConfigError(
            f"{block}.time_width {width} is no embedding of the noise level; give 0 (not "
            "told) or at least 4"
        )


def _untold_time(config: ConfigDict) -> str:
    block = NETWORKS[config.cell.network].block
    return "" if config[block].time_width > 0 else f"{block}.time_width=64"


def _f16(config: ConfigDict) -> VQGAN | VQModel:
    """The tokenizer of MUSE and aMUSEd where the images are large, else a small one."""
    from paella_jax.models.vqmodel import VQModel

    network = VQModel if config.data.image_size >= SMALLEST_LARGE else VQGAN
    return network(codebook_size=config.model.codebook_size)


def _f8(config: ConfigDict) -> VQGAN | VQModel:
    """The tokenizer of MUSE's super-resolution where the images are large, else a small one."""
    if config.data.image_size < SMALLEST_LARGE:
        return _f16(config)
    from paella_jax.models.vqmodel import VQModel

    fields = load_config("resnet_vqgan:f8").model
    return VQModel(**dict(fields) | {"codebook_size": config.model.codebook_size})


NETWORKS: dict[str, Network] = {
    "unet": Network(
        block="model",
        make=_make_unet,
        takes=frozenset({"labels", "segmentation", "image_pooled", "text_weights"}),
        widths=("token_width", "cond_width", "widths"),
    ),
    "transformer": Network(
        block="transformer",
        make=_make_transformer,
        untold=_untold_time,
        null_text=True,
        fixed_grid=True,
        widths=("width", "feed_forward_width"),
        tokenizer=_f16,
        check=_check_muse,
    ),
    "uvit": Network(
        block="uvit",
        make=_make_uvit,
        untold=lambda config: "" if config.uvit.micro_conds > 5 else "uvit.micro_conds=6",
        takes=frozenset({"micro_conds"}),
        widths=("token_width", "conv_width", "width", "feed_forward_width"),
        tokenizer=_f16,
        check=_check_uvit,
    ),
    "super_resolution": Network(
        block="super_resolution",
        make=_make_super_resolution,
        untold=_untold_time,
        takes=frozenset({"low_tokens"}),
        null_text=True,
        fixed_grid=True,
        widths=("width", "feed_forward_width"),
        tokenizer=_f8,
        check=_check_muse,
    ),
}


def names_where(wanted: Callable[[Network], bool]) -> str:
    """The networks of some kind, as a message lists them: "unet or uvit"."""
    return " or ".join(name for name, network in NETWORKS.items() if wanted(network))
