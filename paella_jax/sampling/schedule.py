"""Per-step values of a sampler, computed on the host before anything is compiled."""

from __future__ import annotations

import numpy as np


def linear_ramp(start: float, end: float, count: int) -> np.ndarray:
    """float32 [count] from `start` to `end` inclusive, with torch.linspace's rounding.

    torch counts up from the start in the first half and down from the end in the second. A
    different last bit of t moves the timestep embedding by up to 1e-3 (angles reach 10 000).
    """
    first, last = np.float32(start), np.float32(end)
    if count == 1:
        return np.array([first])
    step = np.float32((last - first) / np.float32(count - 1))
    index = np.arange(count, dtype=np.float32)
    rising = first + step * index
    falling = last - step * (np.float32(count - 1) - index)
    return np.where(np.arange(count) < count // 2, rising, falling).astype(np.float32)
