"""What is said of a user's images before the first step."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from paella_jax.evaluation.image_measures import psnr
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
    wanted = -20 * np.log10(error)
    assert f"gives 16 of these images back at {wanted:.1f} dB" in line
    assert ("vqgan:folder32" in line) == (wanted < ENOUGH)


def test_what_is_told_is_the_mean_of_the_images_own():
    """As a table of scores has it. Half of these are at 34 dB, half at 14; their mean error is at
    17, which would ask for another tokenizer."""
    wrong = np.where(np.arange(16) % 2, 0.02, 0.2).astype(np.float32)[:, None, None, None]
    rebuild = lambda frozen, images: images + wrong
    (line,) = describe_rebuilt(SimpleNamespace(source=Images(16), rebuild=rebuild, frozen={}))
    true = np.stack(Images(16).images) / np.float32(255)
    mean = psnr(true + wrong, true).mean()
    assert f"back at {mean:.1f} dB (the mean of their PSNRs)" in line
    assert mean > ENOUGH and "vqgan:folder32" not in line


def test_nothing_is_said_where_there_is_no_tokenizer_or_no_image():
    without = SimpleNamespace(source=Images(2), rebuild=None, frozen={})
    assert describe_rebuilt(without) == []
    made = SimpleNamespace(source=[0] * 5, rebuild=lambda frozen, images: images, frozen={})
    assert describe_rebuilt(made) == []
