"""Tokenizers: building and loading a VQGAN, Paella's or MUSE's.

`config.architecture` says which: "paella" (models/vqgan.py) or "resnet" (models/vqmodel.py). Runs
from before there was a choice are Paella's. Training is in families/vqgan_training.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.config import ConfigError, flatten_config
from paella_jax.models.quantizer import is_decoder
from paella_jax.models.vqgan import VQGAN
from paella_jax.runs.frozen import load_carried, tokenizer_run
from paella_jax.typing import Tree

if TYPE_CHECKING:
    from paella_jax.models.vqmodel import VQModel

ARCHITECTURES = ("paella", "resnet")
# Fields of the networks that only the decoder has; they do not touch an image's tokens.
DECODER_FIELDS = {
    "model.bottleneck_blocks",
    "model.decoder_widths",
    "model.decoder_blocks_per_level",
    "model.decoder_attention",
}


def make_vqgan(config: ConfigDict) -> VQGAN | VQModel:
    """The network of a config, in its compute dtype.

    Raises:
      ConfigError: unknown `architecture`, or fields of `model` that do not fit together.
    """
    name = architecture_of(config)
    if name not in ARCHITECTURES:
        raise ConfigError(f"architecture must be one of {sorted(ARCHITECTURES)}, got {name!r}")
    dtype = jnp.dtype(config.precision)
    if name == "paella":
        model, least = config.model, 2 ** (config.model.levels - 1)
        if model.width < least:
            raise ConfigError(
                f"model.width must be at least {least}, got {model.width}: it is halved from each "
                f"of the {model.levels} levels to the next (model.levels)"
            )
        return VQGAN(**model, dtype=dtype)
    # Imported here: a run with Paella's tokenizer does without.
    from paella_jax.models.vqmodel import VQModel

    model = VQModel(**config.model, dtype=dtype)
    try:
        model.check()
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    return model


def architecture_of(config: ConfigDict) -> str:
    """Which network a tokenizer's config describes."""
    return config.get("architecture", "paella")


def load_vqgan_run(workdir: str | Path) -> tuple[ConfigDict, VQGAN | VQModel, Tree]:
    """Config, network and variables of a trained tokenizer.

    Raises:
      CheckpointError: not a tokenizer's run folder, or unreadable.
    """
    config, variables = tokenizer_run(workdir)
    return config, make_vqgan(config), variables


def load_carried_tokenizer(
    workdir: str | Path, part: str = "tokenizer"
) -> tuple[VQGAN | VQModel, Tree]:
    """Network and variables of a tokenizer in another run's folder.

    Raises:
      CheckpointError: there is none, or it is damaged.
    """
    config, variables = load_carried(part, workdir)
    return make_vqgan(config), variables


def load_carried_vqgan(workdir: str | Path) -> tuple[VQGAN, Tree]:
    """A carried tokenizer that must be Paella's: Würstchen's Stage B works on its latents.

    Raises:
      ConfigError: the folder carries a tokenizer of another architecture.
    """
    model, variables = load_carried_tokenizer(workdir)
    if not isinstance(model, VQGAN):
        raise ConfigError(
            f"{workdir} carries a tokenizer of architecture 'resnet'; this needs one of "
            "configs/vqgan.py"
        )
    return model, variables


def differing_codes(first: tuple[ConfigDict, Tree], second: tuple[ConfigDict, Tree]) -> list[str]:
    """Names of what differs, to the bit, between two tokenizers' encoders and codebooks.

    Args:
      first: config and variables of a tokenizer.
      second: those of another. Their decoders do not count.
    """
    networks = [_encoder_fields(config) for config, _ in (first, second)]
    fields = sorted(
        name
        for name in networks[0].keys() | networks[1].keys()
        if networks[0].get(name) != networks[1].get(name)
    )
    if fields:
        return fields
    trees = [encoder_arrays(variables) for _, variables in (first, second)]
    return sorted(
        name
        for name in trees[0].keys() | trees[1].keys()
        if name not in trees[0]
        or name not in trees[1]
        or not np.array_equal(np.asarray(trees[0][name]), np.asarray(trees[1][name]))
    )


def _encoder_fields(config: ConfigDict) -> dict[str, Any]:
    fields = {"architecture": architecture_of(config), "precision": config.precision}
    for name, value in flatten_config(config).items():
        if name.startswith("model.") and name not in DECODER_FIELDS:
            fields[name] = value
    return fields


def encoder_arrays(variables: Tree) -> dict[str, Any]:
    """A tokenizer's arrays that decide an image's latents and tokens, by their paths."""
    kept = {name: tree for name, tree in variables["params"].items() if not is_decoder(name)}
    kept = {"params": kept, "batch_stats": variables.get("batch_stats", {})}
    leaves = jax.tree_util.tree_flatten_with_path(kept)[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def swap_decoder(
    workdir: str | Path, variables: Tree, decoder_run: str | Path
) -> tuple[VQGAN | VQModel, Tree]:
    """The tokenizer of `decoder_run` in the place of the one that a predictor's run carries.

    Args:
      workdir: the predictor's run folder.
      variables: its tokenizer's, as loaded.
      decoder_run: a tokenizer trained from that one with `train_decoder_only`.

    Returns:
      Network and variables. Encoder and codebook are the same bits; only the decoder is another.

    Raises:
      ConfigError: the two tokenizers give other tokens; all that differs is listed.
      CheckpointError: `decoder_run` is no tokenizer's run folder, or unreadable.
    """
    config, model, swapped = load_vqgan_run(decoder_run)
    ours = load_carried("tokenizer", workdir)[0]
    check_same_codes((ours, variables), (config, swapped), decoder_run)
    return model, swapped


def check_same_codes(
    ours: tuple[ConfigDict, Tree], theirs: tuple[ConfigDict, Tree], name: str | Path
) -> None:
    """Raises ConfigError where two tokenizers differ in more than their decoders."""
    differing = differing_codes(ours, theirs)
    if not differing:
        return
    shown = ", ".join(differing[:5]) + (", ..." if len(differing) > 5 else "")
    raise ConfigError(
        f"{name} has another encoder or codebook than the tokenizer this predictor was trained "
        f"with ({shown}); give a run of train_decoder_only that started from that tokenizer"
    )
