"""What is said of a user's images before the first step."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from paella_jax.training.looked_at import ENOUGH, describe_rebuilt


class Images:
    some_captions = ()

    def __init__(self, count, shape=(4, 4, 3)):
        draw = np.random.default_rng(0)
        self.images = [draw.integers(0, 200, shape, np.uint8) for _ in range(count)]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, place):
        return {"image": self.images[place]}


@pytest.mark.parametrize("error", [0.02, 0.2])
def test_how_well_a_frozen_tokenizer_fits_is_told(error):
    rebuild = lambda frozen, images: images + frozen["error"]
    method = SimpleNamespace(source=Images(40), rebuild=rebuild, frozen={"error": error})
    (line,) = describe_rebuilt(method)
    psnr = -20 * np.log10(error)
    assert f"gives 16 of these images back at {psnr:.1f} dB" in line
    assert ("vqgan:folder32" in line) == (psnr < ENOUGH)


def test_nothing_is_said_where_there_is_no_tokenizer_or_no_image():
    without = SimpleNamespace(source=Images(2), rebuild=None, frozen={})
    assert describe_rebuilt(without) == []
    made = SimpleNamespace(source=[0] * 5, rebuild=lambda frozen, images: images, frozen={})
    assert describe_rebuilt(made) == []
