"""A cell of the factorised methods: corruption x network x sampler, by three config fields.

| field           | values                           |                                           |
|-----------------|----------------------------------|-------------------------------------------|
| cell.corruption | uniform, mask                    | random tokens (Paella), or a mask (MUSE)  |
| cell.network    | unet, transformer, uvit,         | families/networks.py                      |
|                 | super_resolution                 |                                           |
| cell.sampler    | random, confidence               | what the sampler corrupts again           |
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.families.networks import NETWORKS, Around, Network, names_where
from paella_jax.families.token_networks import TokenPredictor
from paella_jax.noise.masking import MASK_DENSITIES
from paella_jax.sampling.token_sampler import CORRUPTIONS, SAMPLERS, token_settings

# Config fields that ask for a condition, which not every network takes.
ASKED_FOR = {
    "model.num_classes": "labels",
    "model.num_segments": "segmentation",
    "image_encoder.kind": "image_pooled",
}
# Fields of `config.sampler` that are no setting of a sampler.
ABOUT = ("joint_guidance", "image_guidance")


def check_cell(config: ConfigDict) -> None:
    """Refuses cells that make no sense, before anything is built.

    Raises:
      ConfigError: the first reason found.
    """
    cell = config.cell
    _choice("corruption", cell.corruption, CORRUPTIONS)
    check_network(config)
    _choice("sampler", cell.sampler, SAMPLERS)
    network = NETWORKS[cell.network]
    untold = network.untold(config)
    if cell.corruption == "uniform" and untold:
        raise ConfigError(
            f"cell.corruption=uniform needs a network that is told how many tokens are random, "
            f"since they look like clean ones; cell.network={cell.network} is not: set "
            f"--config.{untold}, or --config.cell.corruption=mask"
        )
    network.check(config)
    _check_conditions(config, network)
    _choice("objective.density", config.objective.density, MASK_DENSITIES)
    positions = config.objective.get("loss_positions")  # which older runs do not name
    if positions is not None:
        _choice("objective.loss_positions", positions, ("all", "corrupted"))
    try:
        token_settings(cell.corruption, cell.sampler, sampler_fields(config), {})
    except ValueError as error:
        raise ConfigError(f"sampler: {error}") from error


def _check_conditions(config: ConfigDict, network: Network) -> None:
    name = config.cell.network
    asked = [
        field
        for field, condition in ASKED_FOR.items()
        if condition not in network.takes and _field(config, field) not in (0, "none")
    ]
    if asked:
        able = names_where(lambda other: any(ASKED_FOR[field] in other.takes for field in asked))
        raise ConfigError(
            f"{', '.join(asked)}: only cell.network={able} is conditioned on more than text, "
            f"not {name}"
        )
    if config.text.empty_is_absent and config.text.kind == "clip":
        raise ConfigError(
            "text.empty_is_absent has no effect on text.kind=clip, whose empty text is a text: set "
            "--config.text.empty_is_absent=False"
        )
    if config.text.empty_is_absent and not network.null_text:
        raise ConfigError(
            f"text.empty_is_absent needs a network with a null position; {name} has none: "
            "set --config.text.empty_is_absent=False"
        )
    if ("low_tokens" in network.takes) != bool(config.low_tokenizer):
        able = names_where(lambda other: "low_tokens" in other.takes)
        raise ConfigError(
            f"cell.network={able} needs --config.low_tokenizer=RUN, the tokenizer of the "
            "small pictures, and no other network takes one"
        )


def check_network(config: ConfigDict) -> None:
    """Raises ConfigError for a network that there is not."""
    _choice("network", config.cell.network, NETWORKS)


def sampler_fields(config: ConfigDict) -> dict[str, Any]:
    """The sampler's settings of a config, without what is about the program or a task."""
    return {k: v for k, v in config.sampler.items() if k not in ABOUT}


def make_predictor(config: ConfigDict, around: Around) -> TokenPredictor:
    """The network of a token predictor's cell, in its compute dtype.

    Raises:
      ConfigError: see `check_cell`.
    """
    check_cell(config)
    return NETWORKS[config.cell.network].make(config, around)


def _choice(name: str, value: Any, known: Iterable[str]) -> None:
    if value not in known:
        full = name if "." in name else f"cell.{name}"
        raise ConfigError(f"{full} must be one of {', '.join(known)}, got {value!r}")


def _field(config: ConfigDict, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config
