"""The tokenizer method: training a VQGAN, Paella's or MUSE's.

With `config.train_decoder_only` the encoder and the codebook of `config.init_from` stay as they
are, to the bit, and only the decoder is trained (docs/models/muse.md 1.1). They then live in the
model state under "fixed", out of the optimiser's reach; `runs.frozen.variables_of` puts the two
together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.data.build import make_source
from paella_jax.data.loader import Source, image_transform
from paella_jax.data.sizes import check_sizes
from paella_jax.families.vqgan import architecture_of, make_vqgan
from paella_jax.models.discriminator import Discriminator
from paella_jax.models.perceptual import load_perceptual, perceptual_distance
from paella_jax.models.quantizer import is_decoder
from paella_jax.models.vqgan import VQGAN
from paella_jax.models.vqmodel import VQModel
from paella_jax.objectives.vqgan import (
    in_steps,
    initial_code_state,
    revive_dead_codes,
    vqgan_objective,
)
from paella_jax.runs.frozen import FIXED, variables_of
from paella_jax.training.method import Method
from paella_jax.typing import Array, Tree


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
    model, settings, size = make_vqgan(config), in_steps(config), config.data.image_size
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
        held=lambda: make_source(config.data, "validation", config.seed),
        transform=image_transform,
        validates=False,  # its preview measures what it rebuilds
        after_update=None if decoder_only else revive,
    )
