"""The tokenizer family: building, training and loading a VQGAN."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.config import ConfigError, to_json
from paella_jax.data.build import check_sizes, make_source
from paella_jax.data.loader import Source, image_transform
from paella_jax.evaluation.pictures import save_grid
from paella_jax.models.discriminator import Discriminator
from paella_jax.models.perceptual import load_perceptual, perceptual_distance
from paella_jax.models.vqgan import VQGAN
from paella_jax.objectives.inputs import images_from_batch
from paella_jax.objectives.vqgan import initial_code_state, revive_dead_codes, vqgan_objective
from paella_jax.training.checkpoint import (
    CheckpointError,
    read_config,
    restore_variables,
    write_atomically,
)
from paella_jax.training.method import Method
from paella_jax.training.state import TrainState
from paella_jax.training.weights import load_tree, save_tree

Array = jax.Array
Tree = Any


def make_vqgan(config: ConfigDict) -> VQGAN:
    """The network of a config, in its compute dtype."""
    return VQGAN(**config.model, dtype=jnp.dtype(config.precision))


def variables_of(params: Tree, model_state: Tree) -> Tree:
    """What `VQGAN.apply` takes, out of a train state's trees."""
    return {"params": params["vqgan"], "batch_stats": model_state["vqgan"]}


@dataclass(frozen=True)
class VQGANNetworks:
    """Tokenizer and, with an adversarial loss, its discriminator."""

    vqgan: VQGAN
    discriminator: Discriminator | None

    def init(self, key: Array, size: int) -> tuple[Tree, Tree]:
        """Fresh parameters and model state for square images of `size` pixels."""
        first, second = jax.random.split(key)
        images = jnp.zeros((1, size, size, 3))
        variables = self.vqgan.init(first, images)
        params, state = {"vqgan": variables["params"]}, {"vqgan": variables["batch_stats"]}
        state["codes"] = initial_code_state(self.vqgan.codebook_size, self.vqgan.latent_channels)
        if self.discriminator is not None:
            variables = self.discriminator.init(second, images)
            params["discriminator"] = variables["params"]
            state["discriminator"] = variables["batch_stats"]
        return params, state

    def reconstruct(
        self, params: Tree, stats: Tree, images: Array, quantized: Array, settled: Array
    ) -> tuple[Any, Tree]:
        """The objective's `reconstruct`."""
        variables = {"params": params, "batch_stats": stats}
        output, updated = self.vqgan.apply(
            variables, images, quantized, train=True, settled=settled, mutable=["batch_stats"]
        )
        return output, updated["batch_stats"]

    def discriminate(self, params: Tree, stats: Tree, images: Array) -> tuple[Array, Tree]:
        """The objective's `discriminate`."""
        assert self.discriminator is not None
        variables = {"params": params, "batch_stats": stats}
        logits, updated = self.discriminator.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        return logits, updated["batch_stats"]


def vqgan_method(config: ConfigDict, source: Source | None = None) -> Method:
    """Training of configs/vqgan.py, on `config.data` unless a source is given.

    Raises:
      ConfigError: image size that does not divide, or a perceptual weight without a file.
    """
    model, settings, size = make_vqgan(config), config.objective, config.data.image_size
    check_sizes(config.data, model.downsampling, "model.levels")
    if settings.perceptual_weight > 0 and not settings.perceptual_file:
        raise ConfigError("objective.perceptual_weight > 0 needs objective.perceptual_file")
    perceptual = load_perceptual(settings.perceptual_file) if settings.perceptual_weight else None
    adversary = None
    if settings.adversarial_weight > 0:
        adversary = Discriminator(settings.discriminator_depth, settings.discriminator_width)
    networks = VQGANNetworks(model, adversary)
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
        after_update=lambda params, state, step: revive_dead_codes(params, state, step, settings),
        preview=_preview(config, model),
    )


def _preview(config: ConfigDict, model: VQGAN) -> Callable[[TrainState, Tree, Path], dict]:
    """Validation images beside their reconstructions."""
    source = make_source(config.data, "validation", config.seed)
    count = min(config.log.preview_images, len(source))
    samples = np.stack([source[i]["image"] for i in range(count)])

    @jax.jit
    def round_trip(variables: Tree, images: Array) -> Array:
        tokens = model.apply(variables, images, method="encode_tokens")
        return model.apply(variables, tokens, method="decode_tokens")

    def preview(state: TrainState, frozen: Tree, file: Path) -> dict[str, float]:
        """Writes the pairs; returns their mean squared error."""
        images = images_from_batch({"image": jnp.asarray(samples)})
        rebuilt = round_trip(variables_of(state.eval_params, state.model_state), images)
        save_grid(file, np.concatenate([np.asarray(images), np.asarray(rebuilt)], axis=2))
        return {"validation_mse": float(jnp.square(rebuilt - images).mean())}

    return preview


def load_vqgan_run(workdir: str | Path) -> tuple[ConfigDict, VQGAN, Tree]:
    """Config, network and variables of a trained tokenizer.

    Raises:
      CheckpointError: not a tokenizer's run folder, or unreadable.
    """
    config = read_config(workdir)
    if config.method != "vqgan":
        raise CheckpointError(
            f"{workdir} holds a run of method {config.method!r}, not of a vqgan; give the run "
            "folder of configs/vqgan.py"
        )
    _, restored = restore_variables(workdir)
    return config, make_vqgan(config), variables_of(restored["params"], restored["model_state"])


def carry_tokenizer(source: str, workdir: Path) -> None:
    """Copies a trained tokenizer into another run's folder, so that the run is self-contained."""
    config, _, variables = load_vqgan_run(source)
    save_tree(workdir / "frozen" / "vqgan.safetensors", variables)
    # The config is written last: its presence says that the weights are complete.
    write_atomically(workdir / "frozen" / "vqgan.json", to_json(config))


def load_carried_tokenizer(workdir: Path) -> tuple[VQGAN, Tree]:
    """The tokenizer that `carry_tokenizer` left in a run's folder."""
    file = workdir / "frozen" / "vqgan.json"
    if not file.is_file():
        raise CheckpointError(
            f"{workdir} carries no tokenizer (missing {file}); converted weights get it with "
            "--tokenizer VQGAN_RUN"
        )
    config = ConfigDict(json.loads(file.read_text()))
    return make_vqgan(config), load_tree(workdir / "frozen" / "vqgan.safetensors")
