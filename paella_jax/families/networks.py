"""Every token network, one record each: all that the package has to know of a `cell.network`.

A new one is a file in models/, a record here and a block in configs/cells.py. A network's file is
imported when it is made: a run needs its own only.
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
    from paella_jax.models.muse import MuseTransformer
    from paella_jax.models.muse_super_resolution import SuperResolution
    from paella_jax.models.paella import Paella
    from paella_jax.models.uvit_predictor import UViTPredictor
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


def shared_fields(config: ConfigDict) -> dict[str, Any]:
    """Fields of every network that a config says outside of the network's block."""
    return {"codebook_size": config.model.codebook_size, "dtype": jnp.dtype(config.precision)}


def is_masked(config: ConfigDict) -> bool:
    """Whether unknown tokens are masks; else they are random ones."""
    return config.cell.corruption == "mask"


# --- the U-Net


def _make_unet(config: ConfigDict, around: Around) -> Paella:
    from paella_jax.models.paella import Paella

    dtype = jnp.dtype(config.precision)
    return Paella(**config.model, mask_row=is_masked(config), dtype=dtype)


# --- MUSE's transformers


def _make_transformer(config: ConfigDict, around: Around) -> MuseTransformer:
    from paella_jax.models.muse import MuseTransformer

    return MuseTransformer(
        **config.transformer,
        grid=around.grid,
        mask_row=is_masked(config),
        **shared_fields(config),
    )


def _make_super_resolution(config: ConfigDict, around: Around) -> SuperResolution:
    from paella_jax.models.muse_super_resolution import SuperResolution

    return SuperResolution(
        **config.super_resolution,
        grid=around.grid,
        low_codebook_size=around.low.codebook_size,
        mask_row=is_masked(config),
        **shared_fields(config),
    )


def _untold_time(block: str) -> Callable[[ConfigDict], str]:
    return lambda config: "" if config[block].time_width > 0 else f"{block}.time_width=64"


def _check_time(block: str) -> Callable[[ConfigDict], None]:
    def check(config: ConfigDict) -> None:
        width = config[block].time_width
        if width and width < 4:
            raise ConfigError(
                f"{block}.time_width {width} is no embedding of the noise level; give 0 (not "
                "told) or at least 4"
            )

    return check


def _f16(config: ConfigDict) -> VQGAN | VQModel:
    """MUSE's and aMUSEd's, where the images are large."""
    from paella_jax.models.vqmodel import VQModel

    network = VQModel if config.data.image_size >= SMALLEST_LARGE else VQGAN
    return network(codebook_size=config.model.codebook_size)


def _f8(config: ConfigDict) -> VQGAN | VQModel:
    """MUSE's super-resolution model's."""
    if config.data.image_size < SMALLEST_LARGE:
        return _f16(config)
    from paella_jax.models.vqmodel import VQModel

    fields = load_config("resnet_vqgan:f8").model
    return VQModel(**{**fields, "codebook_size": config.model.codebook_size})


# --- aMUSEd's U-ViT


def _make_uvit(config: ConfigDict, around: Around) -> UViTPredictor:
    from paella_jax.models.uvit import UViT
    from paella_jax.models.uvit_predictor import UViTPredictor

    fields, shared = dict(config.uvit), shared_fields(config)
    # The table ends in the mask, which uniform corruption never uses.
    fields["vocabulary_size"] = fields["vocabulary_size"] or shared["codebook_size"] + 1
    widths = {"text_width": around.text_width, "pooled_width": around.pooled_width}
    return UViTPredictor(UViT(**fields, **widths, **shared), masks=is_masked(config))


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
    if not is_masked(config) and uvit.vocabulary_size:
        raise ConfigError(
            "uvit.vocabulary_size is the released models' padded table, which ends in the mask; "
            "leave it 0 with cell.corruption=uniform"
        )


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
        untold=_untold_time("transformer"),
        null_text=True,
        fixed_grid=True,
        widths=("width", "feed_forward_width"),
        tokenizer=_f16,
        check=_check_time("transformer"),
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
        untold=_untold_time("super_resolution"),
        takes=frozenset({"low_tokens"}),
        null_text=True,
        fixed_grid=True,
        widths=("width", "feed_forward_width"),
        tokenizer=_f8,
        check=_check_time("super_resolution"),
    ),
}


def names_where(wanted: Callable[[Network], bool]) -> str:
    """The networks of some kind, as a message lists them: "unet or uvit"."""
    return " or ".join(name for name, network in NETWORKS.items() if wanted(network))
