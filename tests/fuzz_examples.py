"""Small valid inputs of seven kinds from outside, for fuzzing.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fuzz_data import images, manifests, masks, prompts
from fuzz_models import configs, drawn_from, folders, weights
from fuzzing import Example

# What the suite reads some of; and all, for processes of their own.
QUICK: dict[str, Callable[[Path], list[Example]]] = {
    "weights": weights, "folders": folders, "configs": configs, "images": images, "masks": masks,
    "prompts": prompts, "manifests": manifests,
}  # fmt: skip
KINDS = QUICK | {"configs": lambda root: [*configs(root), drawn_from(root)]}
