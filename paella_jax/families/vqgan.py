"""The tokenizer family: building, training and loading a VQGAN, Paella's or MUSE's.

`config.architecture` says which: "paella" (models/vqgan.py) or "resnet" (models/vqmodel.py). Runs
from before there was a choice are Paella's.

With `config.train_decoder_only` the encoder and the codebook of `config.init_from` stay as they
are, to the bit, and only the decoder is trained (docs/models/muse.md 1.1). They then live in the
model state under "fixed", out of the optimiser's reach; `variables_of` puts the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.config import ConfigError, flatten_config
from paella_jax.data.build import check_sizes, make_source
from paella_jax.data.loader import Source, image_transform
from paella_jax.models.discriminator import Discriminator
from paella_jax.models.perceptual import load_perceptual, perceptual_distance
from paella_jax.models.quantizer import is_decoder
from paella_jax.models.vqgan import VQGAN
from paella_jax.models.vqmodel import VQModel
from paella_jax.objectives.vqgan import initial_code_state, revive_dead_codes, vqgan_objective
from paella_jax.runs.frozen import FIXED, load_carried, tokenizer_run, variables_of
from paella_jax.training.method import Method
from paella_jax.typing import Array, Tree

ARCHITECTURES = {"paella": VQGAN, "resnet": VQModel}
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
    model = ARCHITECTURES[name](**config.model, dtype=jnp.dtype(config.precision))
    if isinstance(model, VQModel):
        try:
            model.check()
        except ValueError as error:
            raise ConfigError(f"model: {error}") from error
    return model


def architecture_of(config: ConfigDict) -> str:
    """Which network a tokenizer's config describes."""
    return config.get("architecture", "paella")


def place_fixed(params: Tree, model_state: Tree, decoder_only: bool) -> tuple[Tree, Tree]:
    """Keeps a tokenizer's encoder and codebook with the trained parameters, or out of their reach.

    Args:
      params: {"vqgan", ...}, with or without the encoder.
      model_state: which holds the encoder as "fixed" if they do not.
      decoder_only: whether only the decoder is to be trained.

    Returns:
      Both trees, rearranged.
    """
    whole = variables_of(params, model_state)["params"]
    state = {name: tree for name, tree in model_state.items() if name != FIXED}
    if not decoder_only:
        return {**params, "vqgan": whole}, state
    decoder = {name: tree for name, tree in whole.items() if is_decoder(name)}
    fixed = {name: tree for name, tree in whole.items() if not is_decoder(name)}
    return {**params, "vqgan": decoder}, {**state, FIXED: fixed}


@dataclass(frozen=True)
class VQGANNetworks:
    """Tokenizer and, with an adversarial loss, its discriminator."""

    vqgan: VQGAN | VQModel
    discriminator: Discriminator | None
    decoder_only: bool = False

    def init(self, key: Array, size: int) -> tuple[Tree, Tree]:
        """Fresh parameters and model state for square images of `size` pixels."""
        first, second = jax.random.split(key)
        images = jnp.zeros((1, size, size, 3))
        variables = self.vqgan.init(first, images)
        params, state = {"vqgan": variables["params"]}, {}
        if "batch_stats" in variables:
            state["vqgan"] = variables["batch_stats"]
        state["codes"] = initial_code_state(*variables["params"]["codebook"].shape)
        if self.discriminator is not None:
            variables = self.discriminator.init(second, images)
            params["discriminator"] = variables["params"]
            state["discriminator"] = variables["batch_stats"]
        return place_fixed(params, state, self.decoder_only)

    def reconstruct(
        self, params: Tree, state: Tree, images: Array, quantized: Array, settled: Array
    ) -> tuple[Any, Tree]:
        """The objective's `reconstruct`. A fixed encoder keeps to its running statistics."""
        output, updated = self.vqgan.apply(
            variables_of(params, state),
            images,
            quantized,
            train=not self.decoder_only,
            settled=settled,
            mutable=["batch_stats"],
        )
        if "batch_stats" in updated:
            state = {**state, "vqgan": updated["batch_stats"]}
        return output, state

    def discriminate(self, params: Tree, stats: Tree, images: Array) -> tuple[Array, Tree]:
        """The objective's `discriminate`."""
        assert self.discriminator is not None
        variables = {"params": params, "batch_stats": stats}
        logits, updated = self.discriminator.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        return logits, updated["batch_stats"]


def vqgan_method(config: ConfigDict, source: Source | None = None) -> Method:
    """Training of configs/vqgan.py or configs/resnet_vqgan.py.

    Data is `config.data` unless a source is given.

    Raises:
      ConfigError: fields of the network that do not fit, image size that does not divide, a
        perceptual weight without a file, or only a decoder to train without the rest.
    """
    decoder_only = config.get("train_decoder_only", False)
    if decoder_only and not config.init_from:
        raise ConfigError(
            "train_decoder_only needs --config.init_from=RUN, the trained tokenizer whose encoder "
            "and codebook are kept"
        )
    model, settings, size = make_vqgan(config), config.objective, config.data.image_size
    halvings = "model.levels" if architecture_of(config) == "paella" else "model.widths"
    check_sizes(config.data, model.downsampling, halvings)
    if settings.perceptual_weight > 0 and not settings.perceptual_file:
        raise ConfigError("objective.perceptual_weight > 0 needs objective.perceptual_file")
    perceptual = load_perceptual(settings.perceptual_file) if settings.perceptual_weight else None
    adversary = None
    if settings.adversarial_weight > 0:
        adversary = Discriminator(settings.discriminator_depth, settings.discriminator_width)
    networks = VQGANNetworks(model, adversary, decoder_only)
    revive = lambda params, state, step: revive_dead_codes(params, state, step, settings)
    return Method(
        title="vqgan",
        init=lambda key: networks.init(key, size),
        objective=vqgan_objective(
            networks.reconstruct,
            None if adversary is None else networks.discriminate,
            None
            if perceptual is None
            else lambda frozen, a, b: perceptual_distance(frozen["perceptual"], a, b),
            settings,
            model.codebook_size,
        ),
        frozen={} if perceptual is None else {"perceptual": perceptual},
        source=make_source(config.data, "train", config.seed) if source is None else source,
        transform=image_transform,
        after_update=None if decoder_only else revive,
    )


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
    """The same where it must be Paella's: Würstchen's Stage B works on its latents.

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
    trees = [_encoder_arrays(variables) for _, variables in (first, second)]
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


def _encoder_arrays(variables: Tree) -> dict[str, Any]:
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
