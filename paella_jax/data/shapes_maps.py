"""Further conditions of a captioned-shapes scene: a class label and a segmentation map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from paella_jax.data.shapes import Scene, ShapesSpec, get_spec
from paella_jax.data.shapes_render import coverage
from paella_jax.data.sources import ShapesSource


def label(scene: Scene, spec: ShapesSpec) -> int:
    """The first object's shape, an index into `spec.shapes`."""
    return spec.shapes.index(scene.objects[0].shape)


def segmentation(scene: Scene, spec: ShapesSpec) -> np.ndarray:
    """int32 [height, width]: 0 for background, 1 + an index into `spec.shapes` on an object."""
    classes = np.zeros((spec.image_size, spec.image_size), np.int32)
    for o in scene.objects:
        top, left = spec.margin + o.row * spec.tile, spec.margin + o.column * spec.tile
        covered = coverage(o.shape, o.size, spec.tile, o.jitter) >= 128
        window = classes[top : top + spec.tile, left : left + spec.tile]
        window[covered] = 1 + spec.shapes.index(o.shape)
    return classes


def at_tokens(classes: np.ndarray, pixels: int) -> np.ndarray:
    """A map's class in the middle of every token: [H, W] -> [H / pixels, W / pixels]."""
    return classes[pixels // 2 :: pixels, pixels // 2 :: pixels]


@dataclass(frozen=True)
class ShapesWithMaps:
    """A shapes source whose samples also have `label` int32 and `segmentation` int32 [H, W]."""

    source: ShapesSource

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene, spec = self.source.scene(index), get_spec(self.source.spec_name)
        return self.source[index] | {
            "label": np.int32(label(scene, spec)),
            "segmentation": segmentation(scene, spec),
        }
