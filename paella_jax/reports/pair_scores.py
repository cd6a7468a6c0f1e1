"""How alike images are to the ones that they should be: PSNR, SSIM and LPIPS of pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from paella_jax.encoders.feature_network import BATCH
from paella_jax.evaluation.estimates import mean_of
from paella_jax.evaluation.image_measures import WINDOW, psnr, ssim
from paella_jax.models.perceptual import load_perceptual, perceptual_distance
from paella_jax.reports.scores import Row


class PairScores:
    """Scores of every pair that goes through.

    Attributes:
      psnr: in dB, of each pair.
      ssim: likewise; of images that are smaller than its window there is none.
      lpips: likewise; empty without a network.
    """

    def __init__(self, perceptual: str = "") -> None:
        """Reads LPIPS's network from a file of VGG weights, if one is given.

        Raises:
          ValueError: the file is missing or holds no such weights.
        """
        self.psnr: list[float] = []
        self.ssim: list[float] = []
        self.lpips: list[float] = []
        self._distance: Callable[..., Any] | None = None
        if perceptual:
            network = load_perceptual(perceptual)
            self._distance = jax.jit(lambda a, b: perceptual_distance(network, a, b))

    def add(self, images: np.ndarray, originals: np.ndarray, size: int = 0) -> None:
        """Takes images and originals [n, H, W, 3] in [0, 1].

        With a larger `size` they are filled up to so many, so that one program serves.

        Raises:
          ValueError: images that are too small for LPIPS's network.
        """
        self.psnr += psnr(images, originals).tolist()
        if min(images.shape[1:3]) >= WINDOW:
            self.ssim += ssim(images, originals).tolist()
        if self._distance is not None:
            more = max(0, size - len(images))
            filled = (np.concatenate([x, x[-1:].repeat(more, 0)]) for x in (images, originals))
            self.lpips += np.asarray(self._distance(*filled))[: len(images)].tolist()

    def add_all(self, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        """Takes pairs of uint8 images [H, W, 3], each pair of one size."""
        waiting: list[tuple[np.ndarray, np.ndarray]] = []
        for pair in pairs:
            if waiting and (len(waiting) == BATCH or waiting[0][0].shape != pair[0].shape):
                self._add(waiting)
                waiting = []
            waiting.append(pair)
        if waiting:
            self._add(waiting)

    def _add(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
        images, originals = map(np.stack, zip(*pairs, strict=True))
        self.add(images / np.float32(255.0), originals / np.float32(255.0), BATCH)

    def row(self) -> Row:
        """The means, as columns of a table."""
        scores = {"psnr": self.psnr, "ssim": self.ssim, "lpips": self.lpips}
        return {name: mean_of(values) for name, values in scores.items() if values}
