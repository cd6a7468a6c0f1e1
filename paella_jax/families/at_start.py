"""The networks of a config before training, with something to read: what measures look at.

Of no file, as in abstract.py: the widths of frozen networks are the published ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.encoders.t5 import T5Encoder
from paella_jax.families.abstract import stage_b_networks, stage_c_networks, token_networks
from paella_jax.families.clip_prior import make_clip_prior
from paella_jax.families.text_side import TextSide
from paella_jax.families.token_networks import TokenNetworks
from paella_jax.families.vqgan import make_vqgan
from paella_jax.models.conditioning import Conditioning
from paella_jax.typing import Array, Key, Tree

SAMPLES = 2
WORDS = 9  # positions of a text
LEVEL = 0.9  # of the noise


class AtStart(NamedTuple):
    """One network of a config.

    Attributes:
      name: as in the trained tree.
      reads: what `inputs` are, in words.
      init: key -> fresh variables.
      apply: (variables, *inputs) -> the network's output.
      inputs: arrays, and pytrees of them.
    """

    name: str
    reads: str
    init: Callable[[Key], Tree]
    apply: Callable[..., Any]
    inputs: tuple[Any, ...]


def networks_at_start(config: ConfigDict) -> list[AtStart]:
    """What a config trains, without its losses' networks.

    Layers are unrolled and computed in float32. Texts and embeddings are unit noise, tokens all
    masked, or random where there is no mask, noised latents unit noise, all at level `LEVEL`.

    Raises:
      ConfigError: its method has no such networks, or its parts do not fit together.
    """
    makers = {
        "tokens": _tokens,
        "vqgan": _vqgan,
        "stage_b": _stage_b,
        "stage_c": _stage_c,
        "clip_prior": _clip_prior,
    }
    if config.method not in makers:
        raise ConfigError(
            f"method {config.method!r} has no networks to look at here; choose a config of "
            f"{', '.join(makers)}"
        )
    return makers[config.method](unrolled(config))


def unrolled(config: ConfigDict) -> ConfigDict:
    """The same networks, every layer for itself and in float32.

    Raises:
      ConfigError: a preset that trains another run's network further has none of its own.
    """
    config = config.copy_and_resolve_references()
    if config.get("precision") is None:
        raise ConfigError(
            f"preset {config.preset} takes its networks from the run of --config.init_from; give "
            "the preset of that run"
        )
    with config.unlocked():
        config.precision = "float32"
        for block in config.values():
            for name in {"loop", "remat"} & set(block if isinstance(block, ConfigDict) else ()):
                block[name] = False
    return config


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(SAMPLES, *shape)).astype(np.float32)


def _levels() -> np.ndarray:
    return np.full(SAMPLES, LEVEL, np.float32)


def _map(side: int, what: str) -> str:
    return f"{side}x{side} {what}, level {LEVEL}"


def _ids(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, count, (SAMPLES, *shape), np.int32)


def _call(name: str, reads: str, network: Any, *inputs: Any, **options: Any) -> AtStart:
    """A network that is made by what it is called with."""
    init = lambda key: network.init(key, *inputs, **options)
    apply = lambda variables, *inputs: network.apply(variables, *inputs, **options)
    return AtStart(name, reads, init, apply, inputs)


def _tokens(config: ConfigDict) -> list[AtStart]:
    networks, _ = token_networks(config)
    predictor, side = networks.predictor, config.data.image_size // networks.vqgan.downsampling
    if predictor.mask_token is None:
        tokens, reads = _ids(predictor.codebook_size, side, side), "random tokens"
    else:
        tokens, reads = np.full((SAMPLES, side, side), predictor.mask_token, np.int32), "masks"
    cond = _condition(networks, side, config.data.image_size)
    found = [_call("predictor", _map(side, reads), predictor, tokens, _levels(), cond)]
    return found + _text_encoder(networks.text_encoder if networks.text_is_joint else None)


def _condition(networks: TokenNetworks, side: int, pixels: int) -> Conditioning:
    """All that the network may be told."""
    encoder, clip = networks.text_encoder, networks.clip_text
    states = clip if encoder is None else encoder
    assert states is not None
    width = states.width
    cond: dict[str, Any] = {"text": _normal(WORDS, width)}
    cond["text_mask"] = np.ones((SAMPLES, WORDS), bool)
    if encoder is not None and encoder.word_values:
        cond["text_values"] = _normal(WORDS, width)
    if clip is not None and clip.projection is not None:
        cond["text_pooled"] = _normal(clip.projection)
    if networks.image_encoder is not None:
        cond["image_pooled"] = _normal(1, networks.image_encoder.width)
    if networks.num_classes:
        cond["labels"] = _ids(networks.num_classes)
    if networks.num_segments:
        cond["segmentation"] = _ids(networks.num_segments, side, side)
    if "micro_conds" in networks.takes:
        cond["micro_conds"] = np.tile(np.array([pixels, pixels, 0, 0, 6], np.float32), (SAMPLES, 1))
    if networks.low_vqgan is not None:
        codes, low = networks.low_vqgan.codebook_size, networks.low_grid
        cond["low_tokens"] = _ids(codes, low, low)
    return Conditioning(**cond)


def _text_encoder(encoder: T5Encoder | None) -> list[AtStart]:
    """A text encoder that trains along, if there is one."""
    if encoder is None:
        return []
    ids = _ids(encoder.vocab_size or 8, 4 * WORDS)  # without a table they are words' numbers
    return [_call("text_encoder", "random bytes or words", encoder, ids)]


def _stage_text(text: TextSide) -> Conditioning:
    """What a diffusion stage is told."""
    if text.encoder is None:
        return Conditioning(text=jnp.zeros((SAMPLES, 1, 1)))
    states, mask = _normal(WORDS, text.encoder.width), np.ones((SAMPLES, WORDS), bool)
    values = None if text.abstract().text_values is None else states
    return Conditioning(text=states, text_values=values, text_mask=mask)


def _stage_b(config: ConfigDict) -> list[AtStart]:
    networks, _ = stage_b_networks(config)
    side, guide = (of(config.data.image_size) for of in (networks.latent_side, networks.guide_side))
    x = _normal(side, side, networks.vqgan.latent_channels)
    latents = jnp.asarray(_normal(guide, guide, networks.stage_b.guide_channels))
    cond = replace(_stage_text(networks.text), guide=networks.from_stage_c(latents))
    found = [_call("stage_b", _map(side, "latents"), networks.stage_b, x, _levels(), cond)]
    if networks.joint_compressor:
        pixels = round(config.data.image_size * config.compressor.ratio)
        found.append(
            _call("compressor", "noise as images", networks.compressor, _normal(pixels, pixels, 3))
        )
    return found + _text_encoder(networks.text.encoder if networks.text.is_joint else None)


def _stage_c(config: ConfigDict) -> list[AtStart]:
    networks, stage_b, _ = stage_c_networks(config)
    side = stage_b.guide_side(config.data.image_size)
    x, cond = _normal(side, side, networks.stage_c.channels), _stage_text(networks.text)
    found = [_call("stage_c", _map(side, "latents"), networks.stage_c, x, _levels(), cond)]
    return found + _text_encoder(networks.text.encoder if networks.text.is_joint else None)


def _vqgan(config: ConfigDict) -> list[AtStart]:
    network, pixels = make_vqgan(config), config.data.image_size
    images = np.random.default_rng(0).uniform(size=(SAMPLES, pixels, pixels, 3)).astype(np.float32)
    init = lambda key: network.init(key, images)
    encode = lambda key: network.apply(init(key), images, method="encode")
    latents = _normal(*jax.eval_shape(encode, jax.random.key(0)).shape[1:])
    halves = (("encode", "uniform noise as images", images), ("decode", "unit latents", latents))
    return [
        AtStart(f"vqgan {method}", reads, init, partial(network.apply, method=method), (inputs,))
        for method, reads, inputs in halves
    ]


def _clip_prior(config: ConfigDict) -> list[AtStart]:
    network = make_clip_prior(config)
    x: Array | np.ndarray = _normal(network.clip_width)
    return [_call("prior", f"embeddings, level {LEVEL}", network, x, _levels(), x[::-1])]
