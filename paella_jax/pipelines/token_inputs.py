"""What a token predictor is conditioned on, of prompts or of embeddings made beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from paella_jax.data.sizes import whole_image_conds
from paella_jax.families.token_networks import TokenNetworks
from paella_jax.models.conditioning import Conditioning, ConditionInputs
from paella_jax.pipelines.prompts import (
    as_conditions,
    build_inputs,
    clip_ids,
    text_limit,
    tokenize,
)
from paella_jax.pipelines.request import check_tokens

Inputs = ConditionInputs | Conditioning


class TokenInputs:
    """Prompts -> arrays, for one run."""

    def __init__(
        self,
        networks: TokenNetworks,
        config: ConfigDict,
        embed_images: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        """`embed_images` makes embeddings of images that are conditions."""
        self._networks, self._config, self._embed_images = networks, config, embed_images
        self.limit = text_limit(networks)

    def of_prompts(self, prompt: Any, grid: tuple[int, int]) -> tuple[ConditionInputs, ...]:
        """The conditions of every image, the first of each, then the second ...; numpy arrays.

        Raises:
          PromptError, ValueError: what the run was not trained with, or an unusable text.
        """
        rows = as_conditions(prompt, self.limit)
        build = lambda column: build_inputs(
            self._networks, self._config, column, grid, self._embed_images
        )
        return tuple(build(column) for column in zip(*rows, strict=True))

    def of_negatives(self, negatives: Sequence[str]) -> ConditionInputs:
        """What guidance leads away from."""
        ids, mask = tokenize(self._networks, self._config, negatives)
        return ConditionInputs(ids, mask, clip_ids=clip_ids(self._networks, negatives))

    def shared(
        self, count: int, grid: tuple[int, int], low_tokens: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """What the conditions and the unconditional prediction have in common.

        Raises:
          ValueError: low tokens are missing, of another shape, or of no use.
        """
        networks, shared = self._networks, {}
        if networks.low_vqgan is not None:
            if low_tokens is None:
                raise ValueError(
                    "this network enlarges pictures: give low_tokens, or load it with a base by "
                    "paella_jax.load(BASE, super_resolution=RUN)"
                )
            side = networks.low_grid
            codes = networks.low_vqgan.codebook_size
            shared["low_tokens"] = check_tokens(
                low_tokens, count, (side, side), "low_tokens", codes
            )
        elif low_tokens is not None:
            raise ValueError("low_tokens belong to super-resolution runs; this is none")
        if "micro_conds" in networks.takes:
            pixels = networks.vqgan.downsampling
            whole = whole_image_conds(grid[0] * pixels, grid[1] * pixels)
            shared["micro_conds"] = np.tile(whole, (count, 1))
        return shared
