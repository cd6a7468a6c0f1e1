"""The same seed gives the same image on any number of devices, through the public API.

What is promised (docs/safety.md): with `batch_size=1`, where each device draws one image at a time,
bit for bit. With larger batches the last bits of a sum depend on how many images a device has: in
float32 tokens are the same and images differ by rounding alone. In bfloat16 one device rounds
elsewhere than several do.
"""

from __future__ import annotations

import numpy as np
import pytest
import small

import paella_jax
from paella_jax.images.write import to_uint8

COUNTS = (1, 2, 4, 8)
NETWORKS = {
    "transformer": small.TINY_TRANSFORMER,
    "unet": {"model__patterns": "('CTA',)", "model__widths": "(16,)", "model__cond_width": 16},
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """{batch size: results on 1, 2, 4, 8 devices} of eight images by a network in a precision."""

    def draw(network, precision, counts, sizes):
        fields = NETWORKS[network] | {"precision": precision, "sampler__num_steps": 6}
        folder = small.untrained(tmp_path_factory.mktemp("run"), small.small_paella(**fields))
        found = {size: [] for size in sizes}
        for count in counts:
            with small.devices_shown(count):
                pipe = paella_jax.load(folder)
                for size in sizes:
                    found[size].append(
                        pipe.generate(
                            ["a red circle", "a blue square"], seed=[3, 4],
                            num_images_per_prompt=4, batch_size=size,
                        )
                    )  # fmt: skip
        return found

    return draw


def check_bits(results):
    first, *others = results
    assert np.unique(first.tokens).size > 4, "it proves little"
    for other in others:
        np.testing.assert_array_equal(other.tokens, first.tokens)
        np.testing.assert_array_equal(other.images, first.images)


@pytest.mark.parametrize("network", ["transformer", small.slow("unet")])
def test_float32_on_1_2_4_and_8_devices(drawn, network):
    found = drawn(network, "float32", COUNTS, (1, 8))
    check_bits(found[1])
    first, *others = found[8]
    np.testing.assert_array_equal(first.tokens, found[1][0].tokens)
    for other in others:
        np.testing.assert_array_equal(other.tokens, first.tokens)
        np.testing.assert_allclose(other.images, first.images, rtol=0, atol=1e-6)
        levels = to_uint8(other.images).astype(int) - to_uint8(first.images)
        assert np.abs(levels).max() <= 1 and np.mean(levels != 0) < 1e-3, "at halves of a level"


@pytest.mark.parametrize("network", ["transformer", small.slow("unet")])
def test_bfloat16_on_several_devices_one_image_at_a_time(drawn, network):
    check_bits(drawn(network, "bfloat16", (2, 8), (1,))[1])
