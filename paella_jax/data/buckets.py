"""Aspect-ratio buckets: images keep their shape, and every batch has one size.

A batch's bucket and its images depend on the seed and the batch's number alone, so that threads,
processes and a resumed run change nothing: buckets are drawn in proportion to their images, images
uniformly from their bucket (with replacement, so an epoch is only one on average).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from paella_jax.data.captioned import CaptionedImages
from paella_jax.data.cropping import Cropping
from paella_jax.data.records import UNREADABLE, Records
from paella_jax.images.decode import shown_size

Size = tuple[int, int]


class BucketedImages(CaptionedImages):
    """Images that are cropped to the bucket nearest to their aspect ratio.

    Every image's header is read at the start, to know its bucket.

    Args:
      records: images and captions of any format.
      buckets: sizes (height, width) in pixels.
      lines_are_captions: as in `CaptionedImages`.
      **cropping: fields of `Cropping`, but for the size.

    Raises:
      ValueError: no buckets, or as `CaptionedImages`.
    """

    def __init__(
        self,
        records: Records,
        buckets: Sequence[Size],
        lines_are_captions: bool = False,
        **cropping: Any,
    ) -> None:
        if not buckets or any(len(size) != 2 or min(size) < 1 for size in buckets):
            raise ValueError(f"data.buckets must be (height, width) pairs, got {buckets!r}")
        side = min(min(size) for size in buckets)
        super().__init__(records, Cropping(side, **cropping), lines_are_captions)
        self.buckets = [(int(height), int(width)) for height, width in buckets]
        self.members: list[list[int]] = [[] for _ in self.buckets]
        for position in range(len(self)):
            if position in self.broken:
                continue
            try:
                width, height = shown_size(records.read(position).image, self.notes)
                self.members[self._nearest(width / height)].append(position)
            except UNREADABLE as error:
                self._skip(position, error)
        counts = np.array([len(members) for members in self.members], float)
        self.fractions = counts / counts.sum()

    def _nearest(self, aspect: float) -> int:
        """The bucket whose width / height is nearest, as a ratio."""
        far = [abs(math.log(aspect * height / width)) for height, width in self.buckets]
        return int(np.argmin(far))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The image at `index`, cropped at the centre to its own bucket."""
        found = [i for i, members in enumerate(self.members) if int(index) in members]
        return self._sample(int(index), None, self.buckets[found[0] if found else 0])

    def draw_at(self, position: int, batch_size: int, seed: int) -> dict[str, Any]:
        """The sample at a position of the endless stream; all samples of a batch have one size."""
        of_batch = np.random.default_rng((seed, position // batch_size, 0))
        bucket = int(of_batch.choice(len(self.buckets), p=self.fractions))
        rng = np.random.default_rng((seed, position, 1))
        index = self.members[bucket][int(rng.integers(len(self.members[bucket])))]
        return self._sample(index, rng, self.buckets[bucket])
