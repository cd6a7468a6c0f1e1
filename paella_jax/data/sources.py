"""Random-access data sources: `__len__` and `__getitem__`, which is all that grain asks for."""

import operator
from dataclasses import dataclass
from typing import Any

from paella_jax.data.shapes import SPLITS, Scene, get_spec, sample_scene
from paella_jax.data.shapes_captions import caption
from paella_jax.data.shapes_render import render


@dataclass(frozen=True)
class ShapesSource:
    """The first `size` samples of a split of the captioned-shapes task.

    Samples are made when asked for; nothing is stored, so any size is free and the source pickles
    as four values. Sample: `image` uint8 [height, width, 3], `caption` str, `index` int.

    Raises ValueError for an unknown spec or split and a negative size, IndexError outside
    [0, size).
    """

    spec_name: str
    split: str = "train"
    size: int = 1_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        get_spec(self.spec_name)
        if self.split not in SPLITS:
            raise ValueError(f"unknown split {self.split!r}; known: {', '.join(SPLITS)}")
        if self.size < 0:
            raise ValueError(f"size must be at least 0, got {self.size}")

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene, spec = self.scene(index), get_spec(self.spec_name)
        return {
            "image": render(scene, spec),
            "caption": caption(scene, spec),
            "index": operator.index(index),
        }

    def scene(self, index: int) -> Scene:
        """What sample `index` shows: the truth for the oracle."""
        index = operator.index(index)  # grain may pass numpy integers
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} is outside [0, {self.size})")
        return sample_scene(get_spec(self.spec_name), self.split, self.seed, index)
