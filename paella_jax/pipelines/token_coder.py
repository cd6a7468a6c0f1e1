"""Images to tokens and back, and to embeddings: what a token pipeline does beside drawing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from paella_jax.encoders.preprocess import centre_crop
from paella_jax.families.token_networks import TokenNetworks
from paella_jax.images.read import read_images
from paella_jax.ops.resize import antialias_matrix
from paella_jax.pipelines.base import Generation, Job
from paella_jax.pipelines.batches import in_batches
from paella_jax.pipelines.prompts import clip_ids
from paella_jax.training.pulse import Program
from paella_jax.typing import Tree


class TokenCoder:
    """The tokenizer and the encoders of a run as calls.

    Attributes:
      networks: the run's.
      params: their trained parameters.
      frozen: the others.
      mesh: what batches are spread over.
    """

    networks: TokenNetworks
    params: Tree
    frozen: Tree
    mesh: Mesh

    def _make_coders(self) -> None:
        """Made once: a new jit of a bound method at every call would trace and compile again."""
        networks = self.networks
        self._decode = Program("the tokenizer's decoder", networks.decode_tokens)
        self._encode = Program("the tokenizer's encoder", networks.encode_images)
        self._encode_low = jax.jit(networks.encode_low)
        self._embed_images = jax.jit(networks.embed_images)
        self._embed_texts = jax.jit(networks.embed_texts)

    def decode(self, tokens: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """Tokens [count, h, w] -> images float32 [count, H, W, 3] in [0, 1].

        Args:
          tokens: of the tokenizer.
          batch_size: bounds the images per program.
        """
        decode = lambda piece: self._decode(self.frozen, piece)
        return self._in_batches(decode, np.asarray(tokens), batch_size)

    def _in_batches(self, run: Callable[[Any], Any], given: np.ndarray, batch_size: int) -> Any:
        """A program on pieces of sizes that drawing has as well, so that few are compiled."""
        job = Job(batch_size=batch_size)
        return in_batches(lambda piece, _: run(piece), given, len(given), job, self.mesh)

    def strip(self, generation: Generation, batch_size: int = 64) -> np.ndarray:
        """The images after every step, of a generation with a trace.

        Args:
          generation: with a trace.
          batch_size: bounds the images per program.

        Returns:
          float32 [steps, count, H, W, 3] in [0, 1].

        Raises:
          ValueError: no trace.
        """
        if generation.trace is None:
            raise ValueError("the generation has no intermediate steps; draw it with trace=True")
        return np.stack([self.decode(tokens, batch_size) for tokens in generation.trace])

    def steps_of(
        self, generation: Generation, prompt: Any, options: Mapping[str, Any]
    ) -> np.ndarray:
        """As `strip`: tokens are decoded as they are."""
        return self.strip(generation, options.get("batch_size", 64))

    def encode(self, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """Images [count, H, W, 3], uint8 or in [0, 1] -> tokens int32 [count, h, w]."""
        encode = lambda piece: self._encode(self.frozen, piece)
        return self._in_batches(encode, read_images(images), batch_size)

    def encode_low(self, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """Images [count, H, W, 3], uint8 or in [0, 1] -> what super-resolution enlarges."""
        encode = lambda piece: self._encode_low(self.frozen, piece)
        return self._in_batches(encode, read_images(images), batch_size)

    def embed_images(self, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """Images [count, H, W, 3], uint8 or in [0, 1] -> embeddings [count, width].

        They are brought to the encoder's size before its program, which would be compiled again for
        every other size.

        Raises:
          ValueError: a run without an image encoder.
        """
        encoder = self.networks.image_encoder
        if encoder is None:
            raise ValueError("this run has no image encoder (image_encoder.kind is none)")
        sized = cut_to_square(read_images(images), encoder.module.image_size)
        embed = lambda piece: self._embed_images(self.params, self.frozen, piece)
        return self._in_batches(embed, sized, batch_size)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> CLIP embeddings [count, width], what a CLIP prior takes.

        Raises:
          ValueError: a run without CLIP's text tower.
        """
        ids = clip_ids(self.networks, list(texts))
        if ids is None:
            raise ValueError("this run has no CLIP text tower (clip.folder was not given)")
        return self._in_batches(lambda piece: self._embed_texts(self.frozen, piece), ids, 64)


def cut_to_square(images: np.ndarray, side: int) -> np.ndarray:
    """Short side to `side`, cut to the middle, as an image encoder begins (encoders/preprocess.py).

    Of images that are so already both leave every number as it is.
    """
    height, width = images.shape[1:3]
    if (height, width) == (side, side):
        return images
    short = min(height, width)
    matrix = lambda size: antialias_matrix(size, side * size // short, "bicubic").astype(np.float32)
    down = np.einsum("yh,bhwc->bywc", matrix(height), images, optimize=True)
    across = np.einsum("xw,bywc->byxc", matrix(width), down, optimize=True)
    return np.asarray(centre_crop(across, side))
