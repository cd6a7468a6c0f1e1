"""Which two runs draw together, a base and what was trained to enlarge its tokens; and results."""

from __future__ import annotations

from typing import Any

import numpy as np

from paella_jax.pipelines.base import Generation
from paella_jax.pipelines.tokens import TokenPipeline


def check_pair(base: TokenPipeline, super_resolution: TokenPipeline) -> None:
    """Checks that a base's tokens are those a super-resolution run was trained to enlarge.

    Raises:
      ValueError: a run of the wrong kind, or another tokenizer or token map.
    """
    if super_resolution.networks.low_vqgan is None:
        network = super_resolution.config.cell.network
        raise ValueError(
            f"the second run has cell.network={network}, which enlarges nothing; give a run of "
            "cell.network=super_resolution"
        )
    if base.networks.low_vqgan is not None:
        raise ValueError(
            "the first run is a super-resolution itself; give the run that draws small pictures"
        )
    side = base.config.data.image_size // base.networks.vqgan.downsampling
    low = super_resolution.networks.low_grid
    if side != low:
        raise ValueError(
            f"the base draws {side}x{side} tokens, the super-resolution enlarges {low}x{low}; give "
            f"a base of {low}x{low} tokens, or train with --config.super_resolution.low_grid={side}"
        )
    ours, theirs = _codebook(base, "vqgan"), _codebook(super_resolution, "low_vqgan")
    if ours.shape != theirs.shape or not np.array_equal(ours, theirs):
        raise ValueError(
            f"the base's tokenizer ({ours.shape[0]} codes) is not the one whose tokens the "
            f"super-resolution enlarges ({theirs.shape[0]} codes); train the super-resolution with "
            "--config.low_tokenizer of the base's tokenizer, or give the base of that tokenizer"
        )


def _codebook(pipe: TokenPipeline, name: str) -> np.ndarray:
    return np.asarray(pipe.frozen[name]["params"]["codebook"])


def first_of(low: Generation, count: int) -> dict[str, Any]:
    """The small images that were enlarged, of a call that was stopped before all were."""
    trace = None if low.trace is None else low.trace[:, :count]
    return {"images": low.images[:count], "tokens": low.tokens[:count], "trace": trace}


def unfinished(low: Generation, side: int) -> Generation:
    """Small images whose pixels are repeated, of a call that was stopped before the second scale.

    The tokens are the small images' own.
    """
    places = np.arange(side) * low.images.shape[1] // side
    return Generation(low.images[:, places][:, :, places], low.tokens, None, low)
