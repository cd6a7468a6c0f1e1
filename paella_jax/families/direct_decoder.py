"""The direct decoder's family: training on a Stage B run's compressor, and use."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.data.build import make_source
from paella_jax.data.loader import Source, image_transform
from paella_jax.families.stage_b import StageBNetworks, load_stage_b
from paella_jax.models.direct_decoder import DirectDecoder
from paella_jax.objectives.wuerstchen import direct_decoder_objective
from paella_jax.runs.derive import restore_trained
from paella_jax.runs.folder import read_config_of
from paella_jax.runs.frozen import COMPRESSOR, carry
from paella_jax.training.method import Method
from paella_jax.typing import Array, Tree


def prepare(config: ConfigDict, workdir: Path) -> None:
    """Puts a Stage B, whose compressor is to be decoded, into the run's folder, once.

    Raises:
      ConfigError: no Stage B run given.
      CheckpointError: not a Stage B run, or unreadable.
    """
    needed = (
        "the direct decoder needs a compressor: give --config.stage_b=RUN, the run folder "
        "of configs/stage_b.py"
    )
    carry("stage_b", config.stage_b, workdir, needed)


def direct_decoder_method(config: ConfigDict, workdir: Path) -> Method:
    """Training of configs/direct_decoder.py in a prepared folder."""
    _, stage_b, _, frozen = load_stage_b(workdir)
    source = make_source(config.data, "train", config.seed)
    return decoding_method(config, stage_b, {COMPRESSOR: frozen[COMPRESSOR]}, source)


def decoding_method(
    config: ConfigDict, stage_b: StageBNetworks, frozen: Tree, source: Source
) -> Method:
    """Training on a given compressor and given data; `frozen` may be shapes."""
    decoder = DirectDecoder(**config.model, dtype=jnp.dtype(config.precision))
    size = config.data.image_size

    def init(key: Array) -> tuple[Tree, Tree]:
        side = stage_b.guide_side(size)
        latents = jnp.zeros((1, side, side, stage_b.stage_b.guide_channels))
        return {"decoder": decoder.init(key, latents, size, size)["params"]}, {}

    decode = lambda params, *inputs: decoder.apply({"params": params["decoder"]}, *inputs)
    compress = lambda frozen, images: stage_b.compress(frozen[COMPRESSOR], images)
    return Method(
        title="direct_decoder",
        init=init,
        objective=direct_decoder_objective(decode, compress),
        frozen=frozen,
        source=source,
        transform=image_transform,
        held=lambda: make_source(config.data, "validation", config.seed),
    )


class DirectDecoding:
    """A trained direct decoder: Stage C's latents -> images."""

    def __init__(self, config: ConfigDict, params: Tree, stage_b: StageBNetworks) -> None:
        """See `load_direct_decoder`."""
        self.ratio = stage_b.ratio
        self.cell = stage_b.compressor.downsampling
        decoder = DirectDecoder(**config.model, dtype=jnp.dtype(config.precision))
        self._params = jax.device_put(params)
        apply = lambda params, latents, size: decoder.apply(
            {"params": params["decoder"]}, latents, *size
        )
        self._decode = jax.jit(apply, static_argnums=2)

    def __call__(self, latents_c: np.ndarray) -> np.ndarray:
        """Raw latents [count, h, w, C] -> images float32 [count, H, W, 3] in [0, 1]."""
        size = tuple(round(side * self.cell / self.ratio) for side in latents_c.shape[1:3])
        return np.clip(np.asarray(self._decode(self._params, jnp.asarray(latents_c), size)), 0, 1)


def load_direct_decoder(workdir: str | Path) -> DirectDecoding:
    """A trained run of configs/direct_decoder.py.

    Raises:
      CheckpointError: no such run, or a damaged one.
    """
    config = read_config_of("a direct_decoder", workdir)
    _, stage_b, _, _ = load_stage_b(workdir)
    return DirectDecoding(config, restore_trained(workdir, config), stage_b)
