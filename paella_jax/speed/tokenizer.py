"""A preset's tokenizer by itself: images to tokens, or to Stage A's latents, and back."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.families import abstract
from paella_jax.families.vqgan import make_vqgan
from paella_jax.speed.case import Case
from paella_jax.typing import Tree


def tokenizer_cases(config: ConfigDict, images: int) -> list[Case]:
    """Encoding and decoding images of `config.data.image_size`.

    Args:
      config: of a tokenizer ("vqgan"), or of a method that carries one ("tokens", "stage_b", which
        reads latents: there the search for the nearest codes is left out).
      images: of the batch.
    """
    if config.method == "stage_b":
        networks, frozen = abstract.stage_b_networks(config)
        encode, decode = networks.encode_latents, networks.decode_latents
        return _both(encode, decode, {"vqgan": frozen["vqgan"]}, config, images)
    if config.method == "tokens":
        tokens, frozen = abstract.token_networks(config)
        return _both(
            tokens.encode_images, tokens.decode_tokens, {"vqgan": frozen["vqgan"]}, config, images
        )
    vqgan = make_vqgan(config)
    first = jnp.zeros((1, vqgan.downsampling, vqgan.downsampling, 3))
    variables = jax.eval_shape(vqgan.init, jax.random.key(0), first)
    encode = partial(vqgan.apply, method="encode_tokens")
    return _both(encode, partial(vqgan.apply, method="decode_tokens"), variables, config, images)


def _both(encode: Any, decode: Any, variables: Tree, config: ConfigDict, images: int) -> list[Case]:
    side = config.data.image_size
    shape = jax.ShapeDtypeStruct((images, side, side, 3), np.float32)
    stored = jax.eval_shape(encode, variables, shape)
    return [
        Case("tokenizer: encode", jax.jit(encode), (variables, shape), images),
        Case("tokenizer: decode", jax.jit(decode), (variables, stored), images),
    ]
