"""A cell of the factorised methods: corruption x network x sampler, by three config fields.

| field           | values                           |                                           |
|-----------------|----------------------------------|-------------------------------------------|
| cell.corruption | uniform, mask                    | random tokens (Paella), or a mask (MUSE)  |
| cell.network    | unet, transformer, uvit,         | models/paella.py, muse.py, uvit.py,       |
|                 | super_resolution                 | muse_super_resolution.py                  |
| cell.sampler    | random, confidence               | what the sampler corrupts again           |
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.families.token_networks import TokenPredictor
from paella_jax.models.muse import MuseTransformer
from paella_jax.models.muse_super_resolution import SuperResolution
from paella_jax.models.paella import Paella
from paella_jax.models.uvit import UViT
from paella_jax.models.uvit_predictor import UViTPredictor
from paella_jax.noise.masking import MASK_DENSITIES
from paella_jax.sampling.token_sampler import CORRUPTIONS, SAMPLERS, token_settings

NETWORKS = ("unet", "transformer", "uvit", "super_resolution")
# What only the U-Net is conditioned on, and which config field asks for it.
UNET_ONLY = ("model.num_classes", "model.num_segments", "image_encoder.kind")


def check_cell(config: ConfigDict) -> None:
    """Refuses cells that make no sense, before anything is built.

    Raises:
      ConfigError: the first reason found.
    """
    cell = config.cell
    _choice("corruption", cell.corruption, CORRUPTIONS)
    _choice("network", cell.network, NETWORKS)
    _choice("sampler", cell.sampler, SAMPLERS)
    told = {
        "unet": True,
        "transformer": config.transformer.time_width > 0,
        "uvit": config.uvit.micro_conds > 5,
        "super_resolution": config.super_resolution.time_width > 0,
    }[cell.network]
    if cell.corruption == "uniform" and not told:
        field = {"uvit": "uvit.micro_conds=6"}.get(cell.network, f"{cell.network}.time_width=64")
        raise ConfigError(
            f"cell.corruption=uniform needs a network that is told how many tokens are random, "
            f"since they look like clean ones; cell.network={cell.network} is not: set "
            f"--config.{field}, or --config.cell.corruption=mask"
        )
    _check_fields(config)
    if cell.network == "uvit" and cell.corruption == "uniform" and config.uvit.vocabulary_size:
        raise ConfigError(
            "uvit.vocabulary_size is the released models' padded table, which ends in the mask; "
            "leave it 0 with cell.corruption=uniform"
        )
    if cell.network != "unet":
        asked = [name for name in UNET_ONLY if _field(config, name) not in (0, "none")]
        if asked:
            raise ConfigError(
                f"{', '.join(asked)}: only cell.network=unet is conditioned on more than text, "
                f"not {cell.network}"
            )
    if config.text.empty_is_absent and config.text.kind == "clip":
        raise ConfigError(
            "text.empty_is_absent has no effect on text.kind=clip, whose empty text is a text: set "
            "--config.text.empty_is_absent=False"
        )
    if config.text.empty_is_absent and cell.network in ("unet", "uvit"):
        raise ConfigError(
            f"text.empty_is_absent needs a network with a null position; {cell.network} has none: "
            "set --config.text.empty_is_absent=False"
        )
    if (cell.network == "super_resolution") != bool(config.low_tokenizer):
        raise ConfigError(
            "cell.network=super_resolution needs --config.low_tokenizer=RUN, the tokenizer of the "
            "small pictures, and no other network takes one"
        )
    _choice("objective.density", config.objective.density, MASK_DENSITIES)
    try:
        token_settings(cell.corruption, cell.sampler, sampler_fields(config), {})
    except ValueError as error:
        raise ConfigError(f"sampler: {error}") from error


def _check_fields(config: ConfigDict) -> None:
    """Fields of the chosen network that would fail, or blind it, only once it is built."""
    network = config.cell.network
    if network in ("transformer", "super_resolution"):
        width = config[network].time_width
        if width and width < 4:
            raise ConfigError(
                f"{network}.time_width {width} is no embedding of the noise level; give 0 (not "
                "told) or at least 4"
            )
    if network == "uvit" and config.uvit.downsample != config.uvit.upsample:
        raise ConfigError(
            "uvit.downsample and uvit.upsample must be the same: logits need the tokens' grid"
        )
    if network == "uvit" and config.uvit.micro_conds not in (5, 6):
        raise ConfigError(
            f"uvit.micro_conds must be 5, or 6 with the noise level, got {config.uvit.micro_conds}"
        )


def sampler_fields(config: ConfigDict) -> dict[str, Any]:
    """The sampler's settings of a config, without what is about the program."""
    return {k: v for k, v in config.sampler.items() if k != "joint_guidance"}


def make_predictor(
    config: ConfigDict, *, grid: int, text_width: int, pooled_width: int, low: Any = None
) -> TokenPredictor:
    """The network of a cell, in its compute dtype.

    Args:
      config: of a token predictor; its cell is checked.
      grid: side of the training images' token map.
      text_width: of the text encoder's states.
      pooled_width: of the pooled text.
      low: tokenizer of the small pictures, for super-resolution.

    Raises:
      ConfigError: see `check_cell`.
    """
    check_cell(config)
    dtype = jnp.dtype(config.precision)
    masked = config.cell.corruption == "mask"
    codes = config.model.codebook_size
    if config.cell.network == "unet":
        return Paella(**config.model, mask_row=masked, dtype=dtype)
    shared: dict[str, Any] = {"codebook_size": codes, "dtype": dtype}
    if config.cell.network == "transformer":
        return MuseTransformer(**config.transformer, grid=grid, mask_row=masked, **shared)
    if config.cell.network == "super_resolution":
        return SuperResolution(
            **config.super_resolution,
            grid=grid,
            low_codebook_size=low.codebook_size,
            mask_row=masked,
            **shared,
        )
    fields = dict(config.uvit)
    # The table ends in the mask, which uniform corruption never uses.
    fields["vocabulary_size"] = fields["vocabulary_size"] or codes + 1
    network = UViT(**fields, text_width=text_width, pooled_width=pooled_width, **shared)
    return UViTPredictor(network, masks=masked)


def _choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        full = name if "." in name else f"cell.{name}"
        raise ConfigError(f"{full} must be one of {', '.join(known)}, got {value!r}")


def _field(config: ConfigDict, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config
