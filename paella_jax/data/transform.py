"""From a captioned sample to the arrays a text-to-image method trains on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paella_jax.data.shapes_maps import at_tokens
from paella_jax.data.sizes import whole_image_conds

# Texts and a length -> ids and mask, both [count, length].
Tokenize = Callable[[Sequence[str], int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class ConditionedImageTransform:
    """Image, tokenized caption and whatever other conditions the run uses.

    Attributes:
      tokenize: the main text encoder's tokenizer; None where CLIP's is the only one.
      pad_to: static length of its ids.
      clip_tokenize: the tokenizer of CLIP's text tower, always 77 long; None leaves `clip_ids` out.
      labels: adds `labels` from the sample's `label`.
      segmentation_pixels: pixels per token of the map added as `segmentation`; 0 adds none.
      micro_conds: adds `micro_conds`, the sample's own or those of an image that is not cropped.
    """

    tokenize: Tokenize | None
    pad_to: int
    clip_tokenize: Tokenize | None = None
    labels: bool = False
    segmentation_pixels: int = 0
    micro_conds: bool = False

    def __call__(self, sample: dict[str, Any]) -> dict[str, np.ndarray]:
        arrays = {"image": sample["image"]}
        if self.tokenize is not None:
            ids, mask = self.tokenize([sample["caption"]], self.pad_to)
            arrays |= {"text_ids": ids[0], "text_mask": mask[0]}
        if self.clip_tokenize is not None:
            arrays["clip_ids"] = self.clip_tokenize([sample["caption"]], 77)[0][0]
        if self.labels:
            arrays["labels"] = sample["label"]
        if self.segmentation_pixels:
            arrays["segmentation"] = at_tokens(sample["segmentation"], self.segmentation_pixels)
        if self.micro_conds:
            whole = whole_image_conds(*sample["image"].shape[:2])
            arrays["micro_conds"] = sample.get("micro_conds", whole)
        return arrays
