"""Würstchen's Stage B family: its networks, the compressor, Stage A, and the training method."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.data.build import make_source
from paella_jax.data.loader import Source
from paella_jax.data.sizes import check_sizes
from paella_jax.encoders.compressor_names import read_backbone
from paella_jax.encoders.preprocess import compressor_preprocess
from paella_jax.families.form_of_here import form_of_here
from paella_jax.families.stored import stored_settings, stored_text, text_tokenizers
from paella_jax.families.text_side import TextSide, carry_text, load_text, predict_noise
from paella_jax.families.vqgan import encoder_arrays, load_carried_vqgan
from paella_jax.models.compressor import Compressor, from_stage_c, to_stage_c
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.stage_b import StageB
from paella_jax.models.vqgan import VQGAN
from paella_jax.noise.gaussian import CosineSchedule
from paella_jax.objectives.inputs import images_from_batch
from paella_jax.objectives.wuerstchen import stage_b_objective
from paella_jax.runs.folder import has_progress, read_config
from paella_jax.runs.frozen import (
    COMPRESSOR,
    carry,
    compressor_variables,
    has_compressor,
    load_carried,
    place_of,
    stage_b_run,
)
from paella_jax.training.method import Encoding, Method
from paella_jax.typing import Array, Tree

CLIP = "stage_b_clip"  # the carried text encoder


@dataclass(frozen=True)
class StageBNetworks:
    """Stage B with the compressor before it and Stage A behind it.

    Attributes:
      stage_b: the diffusion network.
      compressor: image -> guide. Its parameters and statistics are in `params` and `model_state`
        where it trains along, else both in the frozen tree.
      vqgan: Stage A.
      text: what the attention sees.
      schedule: of the noise.
      ratio: compressor pixels per image pixel; 0.75 as released (768 of 1024).
      shift: Stage C's latents are (raw + shift) / scale; 1 and 42 as released.
      scale: see `shift`.
      joint_compressor: whether it trains along.
    """

    stage_b: StageB
    compressor: Compressor
    vqgan: VQGAN
    text: TextSide
    schedule: CosineSchedule
    ratio: float
    shift: float
    scale: float
    joint_compressor: bool

    @property
    def size_divisor(self) -> int:
        """What image sides must divide by: whole Stage C latents, whole Stage B patches."""
        cell = Fraction(self.compressor.downsampling) / Fraction(self.ratio)
        return math.lcm(cell.numerator, self.vqgan.downsampling * self.stage_b.grid_divisor)

    def guide_side(self, pixels: int) -> int:
        """Latents the compressor makes of an image side."""
        return round(pixels * self.ratio) // self.compressor.downsampling

    def latent_side(self, pixels: int) -> int:
        """Stage A latents of an image side."""
        return pixels // self.vqgan.downsampling

    def compress(self, variables: Tree, images: Array) -> Array:
        """Images in [0, 1] [batch, H, W, 3] -> raw guide float32 [batch, h, w, C].

        In float32 whatever the precision, as the published script: it is what Stage C learns.
        """
        return self.compressor.clone(dtype=jnp.float32).apply(variables, self._preprocess(images))

    def to_stage_c(self, latents: Array) -> Array:
        """Raw latents -> Stage C's scale."""
        return to_stage_c(latents, self.shift, self.scale)

    def from_stage_c(self, latents: Array) -> Array:
        """The inverse of `to_stage_c`."""
        return from_stage_c(latents, self.shift, self.scale)

    def _preprocess(self, images: Array) -> Array:
        height, width = images.shape[1:3]
        size = round(min(height, width) * self.ratio)
        return compressor_preprocess(images, size, square=height == width)

    def compress_in_training(
        self, params: Tree, frozen: Tree, model_state: Tree, images: Array, key: Array | None
    ) -> tuple[Array, Tree]:
        """As `compress`; with a key one that trains along drops, and updates its statistics."""
        if not self.joint_compressor:
            return self.compress(frozen[COMPRESSOR], images), model_state
        variables = {"params": params[COMPRESSOR], "batch_stats": model_state[COMPRESSOR]}
        if key is None:
            return self.compress(variables, images), model_state
        guide, updated = self.compressor.apply(
            variables,
            self._preprocess(images),
            True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return guide, {COMPRESSOR: updated["batch_stats"]}

    def encode_latents(self, frozen: Tree, images: Array) -> Array:
        """Images -> Stage A latents in Stage B's scale."""
        encode = lambda vqgan, images: vqgan.scale(vqgan.encode(images))
        return jax.lax.stop_gradient(self.vqgan.apply(frozen["vqgan"], images, method=encode))

    def decode_latents(self, frozen: Tree, latents: Array) -> Array:
        """The inverse: latents -> images in [0, 1]."""
        decode = lambda vqgan, latents: jnp.clip(vqgan.decode(vqgan.unscale(latents)), 0.0, 1.0)
        return self.vqgan.apply(frozen["vqgan"], latents, method=decode)

    def noise(
        self, params: Tree, x: Array, t: Array, cond: Conditioning, key: Array | None = None
    ) -> Array:
        """Predicted noise; `key` switches dropout on."""
        return predict_noise(self.stage_b, params["stage_b"], x, t, cond, key)

    def init(self, key: Array, image_size: int) -> tuple[Tree, Tree]:
        """Fresh trainable parameters and model state."""
        keys = jax.random.split(key, 3)
        side = self.latent_side(image_size)
        x = jnp.zeros((1, side, side, self.vqgan.latent_channels))
        params = {
            "stage_b": self.stage_b.init(keys[0], x, jnp.zeros((1,)), self.text.abstract())[
                "params"
            ],
            **self.text.init(keys[1]),
        }
        if not self.joint_compressor:
            return params, {}
        pixels = round(image_size * self.ratio)
        variables = self.compressor.init(keys[2], jnp.zeros((1, pixels, pixels, 3)))
        params[COMPRESSOR] = variables["params"]
        return params, {COMPRESSOR: variables["batch_stats"]}


def make_compressor(config: ConfigDict) -> Compressor:
    """From `config.compressor`."""
    settings = config.compressor
    return Compressor(
        variant=tuple(settings.stages) or settings.variant,
        out_channels=config.model.guide_channels,
        head_channels=settings.head_channels,
        stochastic_depth=settings.stochastic_depth,
        dtype=jnp.dtype(config.precision),
    )


def assemble_stage_b(config: ConfigDict, vqgan: VQGAN, text: TextSide) -> StageBNetworks:
    """The networks between their Stage A and their text.

    Raises:
      ConfigError: parts or sizes that do not belong together.
    """
    model = StageB(**config.model, dtype=jnp.dtype(config.precision))
    if vqgan.latent_channels != model.latent_channels:
        raise ConfigError(
            f"model.latent_channels {model.latent_channels} differs from Stage A's "
            f"{vqgan.latent_channels}; give the tokenizer this config belongs to"
        )
    networks = StageBNetworks(
        model,
        make_compressor(config),
        vqgan,
        text,
        CosineSchedule(**config.schedule),
        config.compressor.ratio,
        config.compressor.shift,
        config.compressor.scale,
        config.compressor.train,
    )
    check_sizes(config.data, networks.size_divisor, "compressor and patches of Stage B")
    return networks


def make_stage_b(config: ConfigDict, workdir: Path) -> tuple[StageBNetworks, Tree]:
    """Networks and frozen parameters of a folder that carries what Stage B needs.

    Raises:
      ConfigError: parts or sizes that do not belong together.
    """
    vqgan, variables = load_carried_vqgan(workdir)
    frozen = {"vqgan": variables}
    text = load_text(config, workdir, CLIP, frozen)
    return assemble_stage_b(config, vqgan, text), frozen


def prepare(config: ConfigDict, workdir: Path) -> None:
    """Puts the frozen networks of a Stage B run into its folder, once.

    Raises:
      ConfigError, CheckpointError: one is not given, of another kind, or unreadable.
    """
    if config.compressor.get("weights") and (config.init_from or not config.compressor.train):
        told = "starts a compressor that trains along: it goes with neither init_from nor"
        raise ConfigError(f"compressor.weights {told} compressor.train=False")
    needed = (
        "Stage B needs a trained Stage A: give --config.tokenizer=RUN, the run folder of "
        "configs/vqgan.py"
    )
    carry("tokenizer", config.tokenizer, workdir, needed)
    carry_text(config, workdir, CLIP)
    if not config.compressor.train:
        needed = (
            "compressor.train=False needs --config.compressor.run=RUN, a Stage B run to take "
            "the compressor from"
        )
        carry(COMPRESSOR, config.compressor.run or config.init_from, workdir, needed)


def stage_b_method(config: ConfigDict, workdir: Path) -> Method:
    """Training of configs/stage_b.py in a prepared folder.

    Raises:
      ConfigError: parts that do not belong together.
      ConversionError: `compressor.weights` is not of the compressor's backbone.
    """
    networks, frozen = make_stage_b(config, workdir)
    if not networks.joint_compressor:
        frozen[COMPRESSOR] = load_carried(COMPRESSOR, workdir)
    source = make_source(config.data, "train", config.seed)
    method = stage_b_networks_method(config, networks, frozen, source)
    if not config.compressor.get("weights") or has_progress(workdir):
        return method
    backbone = read_backbone(config.compressor.weights, networks.compressor)
    return replace(method, init=lambda key: _started(method.init(key), backbone))


def _started(fresh: tuple[Tree, Tree], backbone: Tree) -> tuple[Tree, Tree]:
    """Fresh parameters and model state with all of the compressor but its mapper replaced."""
    begun = lambda tree, own: tree | {COMPRESSOR: tree[COMPRESSOR] | own}
    return begun(fresh[0], backbone["params"]), begun(fresh[1], backbone["batch_stats"])


def stage_b_networks_method(
    config: ConfigDict, networks: StageBNetworks, frozen: Tree, source: Source
) -> Method:
    """Training of given networks on given data; `frozen` may be shapes."""
    return Method(
        title="stage_b",
        init=lambda key: networks.init(key, config.data.image_size),
        objective=stage_b_objective(
            networks.noise,
            networks.text,
            networks.encode_latents,
            networks.compress_in_training,
            networks.text.empty(),
            networks.schedule,
            config.objective,
        ),
        frozen=frozen,
        source=source,
        transform=networks.text.transform,
        rebuild=lambda frozen, images: networks.decode_latents(
            frozen, networks.encode_latents(frozen, images)
        ),
        encoding=stage_b_encoding(config, networks, frozen),
        tokenizers=networks.text.tokenizers,
        held=lambda: make_source(config.data, "validation", config.seed),
    )


def stage_b_encoding(config: ConfigDict, networks: StageBNetworks, frozen: Tree) -> Encoding:
    """Of Stage B: Stage A's latents, the guide of a frozen compressor, frozen text states."""

    def arrays(frozen: Tree, batch: dict[str, Array]) -> dict[str, Array]:
        images = images_from_batch(batch)
        stored = {"latents": networks.encode_latents(frozen, images)}
        if networks.joint_compressor:
            stored["image"] = batch["image"]
        else:
            stored["guide"] = networks.compress(frozen[COMPRESSOR], images)
        return stored | stored_text(networks.text, frozen, batch)

    digested = {n: encoder_arrays(t) if n == "vqgan" else t for n, t in frozen.items()}
    settings = stored_settings(config, text=networks.text.length)
    if digested.keys() - {"vqgan"}:
        settings["precision"] = config.precision
    if not networks.joint_compressor:
        settings["compressor.ratio"] = networks.ratio
    return Encoding(arrays, digested, text_tokenizers(networks.text), settings)


def load_stage_b(
    workdir: str | Path, without_compressor: bool = False
) -> tuple[ConfigDict, StageBNetworks, Tree, Tree]:
    """Config, networks, parameters and frozen parameters, from a Stage B or a Stage C run.

    Args:
      workdir: the run's folder.
      without_compressor: gives None for a compressor that is not there: drawing needs none.

    Raises:
      CheckpointError: not such a run, damaged, or without the networks it needs.
    """
    folder, compressor = Path(workdir), None
    if place_of("stage_b", folder).is_file() or read_config(folder).method == "stage_c":
        config, params = load_carried("stage_b", folder)
        if place_of(COMPRESSOR, folder).is_file() or not without_compressor:
            compressor = load_carried(COMPRESSOR, folder)
    else:
        config, params, _ = stage_b_run(folder)
        if has_compressor(folder) or not without_compressor:
            compressor = compressor_variables(folder)
    networks, frozen = make_stage_b(config := form_of_here(config), folder)
    return config, networks, params, frozen | {COMPRESSOR: compressor}
