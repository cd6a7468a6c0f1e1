"""Images to tokens and back, and to embeddings: what a token pipeline does beside drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.families.token_networks import TokenNetworks
from paella_jax.images.read import read_images
from paella_jax.pipelines.base import Generation
from paella_jax.pipelines.prompts import clip_ids
from paella_jax.training.placing import fetch
from paella_jax.training.pulse import Program
from paella_jax.typing import Tree


class TokenCoder:
    """The tokenizer and the encoders of a run as calls.

    Attributes:
      networks: the run's.
      params: their trained parameters.
      frozen: the others.
    """

    networks: TokenNetworks
    params: Tree
    frozen: Tree

    def _make_coders(self) -> None:
        """Made once: a new jit of a bound method at every call would trace and compile again."""
        networks = self.networks
        self._decode = Program("the tokenizer's decoder", networks.decode_tokens)
        self._encode = Program("the tokenizer's encoder", networks.encode_images)
        self._encode_low = jax.jit(networks.encode_low)
        self._embed_images = jax.jit(networks.embed_images)
        self._embed_texts = jax.jit(networks.embed_texts)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens [count, h, w] -> images float32 [count, H, W, 3] in [0, 1]."""
        return fetch(self._decode(self.frozen, jnp.asarray(tokens)))

    def strip(self, generation: Generation) -> np.ndarray:
        """The images after every step, of a generation with a trace.

        Returns:
          float32 [steps, count, H, W, 3] in [0, 1].

        Raises:
          ValueError: no trace.
        """
        if generation.trace is None:
            raise ValueError("the generation has no intermediate steps; draw it with trace=True")
        return np.stack([self.decode(tokens) for tokens in generation.trace])

    def steps_of(self, generation: Generation, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """As `strip`; tokens need no records."""
        return self.strip(generation)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Images [count, H, W, 3], uint8 or in [0, 1] -> tokens int32 [count, h, w]."""
        return fetch(self._encode(self.frozen, jnp.asarray(read_images(images))))

    def encode_low(self, images: np.ndarray) -> np.ndarray:
        """Images [count, H, W, 3], uint8 or in [0, 1] -> what super-resolution enlarges."""
        return fetch(self._encode_low(self.frozen, jnp.asarray(read_images(images))))

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Images [count, H, W, 3], uint8 or in [0, 1] -> embeddings [count, width].

        Raises:
          ValueError: a run without an image encoder.
        """
        if self.networks.image_encoder is None:
            raise ValueError("this run has no image encoder (image_encoder.kind is none)")
        return fetch(self._embed_images(self.params, self.frozen, jnp.asarray(read_images(images))))

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> CLIP embeddings [count, width], what a CLIP prior takes.

        Raises:
          ValueError: a run without CLIP's text tower.
        """
        ids = clip_ids(self.networks, list(texts))
        if ids is None:
            raise ValueError("this run has no CLIP text tower (clip.folder was not given)")
        return fetch(self._embed_texts(self.frozen, jnp.asarray(ids)))
