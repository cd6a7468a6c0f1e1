"""A network's features of a stream of images, a batch of which is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.typing import Array, Tree

BATCH = 16  # on CPU the maps of larger ones leave the caches

Prepare = Callable[[np.ndarray], np.ndarray]  # uint8 [H, W, 3] -> what the network sees


class Features(NamedTuple):
    """Of a set of images, in its order.

    Attributes:
      vectors: float32 [count, width].
      logits: float32 [count, classes]; None where the network has no classes.
    """

    vectors: np.ndarray
    logits: np.ndarray | None


@dataclass(frozen=True)
class FeatureNetwork:
    """A loaded network.

    Attributes:
      name: what it is called.
      weights: where they came from.
      width: of the features.
      prepare: one image of any size -> float32 [side, side, 3].
      run: a batch of those -> features, and logits where there are classes.
      scores_classes: whether the Inception Score can be made of the logits.
    """

    name: str
    weights: str
    width: int
    prepare: Prepare
    run: Callable[[np.ndarray], tuple[Array, Array | None]]
    scores_classes: bool = False

    def extract(self, images: Iterable[np.ndarray], batch_size: int = BATCH) -> Features:
        """Features of uint8 images [H, W, 3] of any sizes; only a batch of them is in memory.

        Raises:
          ValueError: there are no images.
        """
        parts: list[tuple[np.ndarray, ...]] = []
        waiting: list[np.ndarray] = []
        for image in images:
            waiting.append(self.prepare(image))
            if len(waiting) == batch_size:
                parts.append(self._batch(waiting, batch_size))
                waiting = []
        if waiting:
            parts.append(self._batch(waiting, batch_size))
        if not parts:
            raise ValueError("there are no images to take features of")
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return Features(columns[0], columns[1] if len(columns) > 1 else None)

    def _batch(self, prepared: list[np.ndarray], batch_size: int) -> tuple[np.ndarray, ...]:
        """The last batch is filled up, so that one program serves."""
        batch = np.stack(prepared)
        filled = np.pad(batch, ((0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0)))
        outputs = [x for x in self.run(filled) if x is not None]
        return tuple(np.asarray(x[: len(batch)], np.float32) for x in outputs)


def as_float32(tree: Tree) -> Tree:
    """Weights as they are kept on the device."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float32)), tree)
