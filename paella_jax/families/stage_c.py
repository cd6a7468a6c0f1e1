"""Würstchen's Stage C family: the prior, the frozen compressor it learns to imitate, its text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.data.build import make_source
from paella_jax.data.loader import Source
from paella_jax.data.sizes import check_sizes
from paella_jax.families.stage_b import StageBNetworks, load_stage_b
from paella_jax.families.stored import stored_settings, stored_text, text_tokenizers
from paella_jax.families.text_side import TextSide, carry_text, load_text, predict_noise
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.stage_c import StageC
from paella_jax.noise.gaussian import CosineSchedule
from paella_jax.objectives.inputs import images_from_batch
from paella_jax.objectives.wuerstchen import stage_c_objective
from paella_jax.runs.frozen import COMPRESSOR, carry
from paella_jax.training.method import Encoding, Method
from paella_jax.typing import Array, Tree

CLIP = "stage_c_clip"  # the carried text encoder


@dataclass(frozen=True)
class StageCNetworks:
    """The prior and its text encoder."""

    stage_c: StageC
    text: TextSide
    schedule: CosineSchedule

    def noise(
        self, params: Tree, x: Array, t: Array, cond: Conditioning, key: Array | None = None
    ) -> Array:
        """Predicted noise; `key` switches dropout on."""
        return predict_noise(self.stage_c, params["stage_c"], x, t, cond, key)

    def init(self, key: Array, side: int) -> Tree:
        """Fresh trainable parameters."""
        first, second = jax.random.split(key)
        x = jnp.zeros((1, side, side, self.stage_c.channels))
        variables = self.stage_c.init(first, x, jnp.zeros((1,)), self.text.abstract())
        return {"stage_c": variables["params"], **self.text.init(second)}


def assemble_stage_c(config: ConfigDict, stage_b: StageBNetworks, text: TextSide) -> StageCNetworks:
    """The prior with its text.

    Raises:
      ConfigError: it does not belong to this Stage B, or sees no text.
    """
    model = StageC(**config.model, dtype=jnp.dtype(config.precision))
    if model.channels != stage_b.stage_b.guide_channels:
        raise ConfigError(
            f"model.channels {model.channels} differs from the {stage_b.stage_b.guide_channels} "
            "latent channels of Stage B's compressor; these stages do not belong together"
        )
    check_sizes(config.data, stage_b.size_divisor, "compressor and patches of Stage B")
    if text.encoder is None:
        raise ConfigError("text.kind must be joint or clip: Stage C draws from a text")
    return StageCNetworks(model, text, CosineSchedule(**config.schedule))


def make_stage_c(
    config: ConfigDict, workdir: Path, stage_b: StageBNetworks
) -> tuple[StageCNetworks, Tree]:
    """The prior's networks and frozen text encoder, from a prepared run folder.

    Raises:
      ConfigError: it does not belong to this Stage B.
    """
    frozen: dict[str, Tree] = {}
    text = load_text(config, workdir, CLIP, frozen)
    return assemble_stage_c(config, stage_b, text), frozen


def prepare(config: ConfigDict, workdir: Path) -> None:
    """Puts Stage B with all it needs, and the text encoder, into a Stage C run's folder, once.

    Raises:
      ConfigError, CheckpointError: one is not given, of another kind, or unreadable.
    """
    needed = (
        "Stage C needs a trained Stage B with its compressor: give --config.stage_b=RUN, "
        "the run folder of configs/stage_b.py"
    )
    carry("stage_b", config.stage_b, workdir, needed)
    carry_text(config, workdir, CLIP)


def stage_c_method(config: ConfigDict, workdir: Path) -> Method:
    """Training of configs/stage_c.py in a prepared folder, which holds all three stages.

    Raises:
      ConfigError: stages that do not belong together.
    """
    _, stage_b, _, frozen_b = load_stage_b(workdir)
    networks, frozen = make_stage_c(config, workdir, stage_b)
    frozen[COMPRESSOR] = frozen_b[COMPRESSOR]
    source = make_source(config.data, "train", config.seed)
    return stage_c_networks_method(config, networks, stage_b, frozen, source)


def stage_c_networks_method(
    config: ConfigDict,
    networks: StageCNetworks,
    stage_b: StageBNetworks,
    frozen: Tree,
    source: Source,
) -> Method:
    """Training of given networks on given data; `frozen` may be shapes."""

    def compress(frozen: Tree, images: Array) -> Array:
        latents = stage_b.compress(frozen[COMPRESSOR], images)
        return jax.lax.stop_gradient(stage_b.to_stage_c(latents))

    empty = networks.text.empty()
    assert empty is not None
    side = stage_b.guide_side(config.data.image_size)
    return Method(
        title="stage_c",
        init=lambda key: (networks.init(key, side), {}),
        objective=stage_c_objective(
            networks.noise,
            networks.text,
            compress,
            empty,
            networks.schedule,
            config.objective,
        ),
        frozen=frozen,
        source=source,
        transform=networks.text.transform,
        encoding=stage_c_encoding(config, networks, stage_b, frozen),
        tokenizers=networks.text.tokenizers,
        held=lambda: make_source(config.data, "validation", config.seed),
    )


def stage_c_encoding(
    config: ConfigDict, networks: StageCNetworks, stage_b: StageBNetworks, frozen: Tree
) -> Encoding:
    """Of Stage C: the compressor's latents in its scale, frozen text states."""

    def arrays(frozen: Tree, batch: dict[str, Array]) -> dict[str, Array]:
        raw = stage_b.compress(frozen[COMPRESSOR], images_from_batch(batch))
        text = stored_text(networks.text, frozen, batch)
        return {"latents": stage_b.to_stage_c(raw), **text}

    settings = stored_settings(config, text=networks.text.length) | {
        "precision": config.precision,
        "compressor.ratio of Stage B": stage_b.ratio,
        "compressor.shift of Stage B": stage_b.shift,
        "compressor.scale of Stage B": stage_b.scale,
    }
    return Encoding(arrays, dict(frozen), text_tokenizers(networks.text), settings)
