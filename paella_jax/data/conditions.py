"""From a captioned sample to the arrays a text-to-image method trains on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paella_jax.data.shapes_maps import at_tokens

# Texts and a length -> ids and mask, both [count, length].
Tokenize = Callable[[Sequence[str], int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class ConditionedImageTransform:
    """Image, tokenized caption and whatever other conditions the run uses.

    Attributes:
      tokenize: of the main text encoder.
      pad_to: its static length.
      clip_tokenize: of CLIP's text tower, always 77 long; None leaves `clip_ids` out.
      labels: adds `labels` from the sample's `label`.
      segmentation_pixels: pixels per token of the map added as `segmentation`; 0 adds none.
    """

    tokenize: Tokenize
    pad_to: int
    clip_tokenize: Tokenize | None = None
    labels: bool = False
    segmentation_pixels: int = 0

    def __call__(self, sample: dict[str, Any]) -> dict[str, np.ndarray]:
        ids, mask = self.tokenize([sample["caption"]], self.pad_to)
        arrays = {"image": sample["image"], "text_ids": ids[0], "text_mask": mask[0]}
        if self.clip_tokenize is not None:
            arrays["clip_ids"] = self.clip_tokenize([sample["caption"]], 77)[0][0]
        if self.labels:
            arrays["labels"] = sample["label"]
        if self.segmentation_pixels:
            arrays["segmentation"] = at_tokens(sample["segmentation"], self.segmentation_pixels)
        return arrays
