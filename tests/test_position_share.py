"""At initialisation a network tells the positions of an all-masked map apart, behind every layer.

A part of the stream that is the same at all positions hides what differs once a norm is taken of
their sum. Where hardly anything differs, training first has to find the positions: such a network
predicted the background alone for thousands of updates (docs/results.md 5).
"""

from __future__ import annotations

import jax
import pytest
import small

from paella_jax.evaluation.signals import sums_at_start
from paella_jax.families.at_start import networks_at_start

LEAST = 0.05


def shares(preset, network, first=None, **overrides):
    """Behind every sum of a network, by module, in the order of the call."""
    config = small.config_of(preset, cell__network=network, cell__corruption="mask", **overrides)
    net = networks_at_start(config)[0]
    found = sums_at_start(net.init, net.apply, net.inputs, jax.random.key(0), first)
    return {one.place: one.share for one in found if one.share is not None and not one.joins}


NO_TEXT_IS_A_TEXT = {"text__empty_is_absent": False}
CASES = [
    ("muse:shapes", "transformer", None, {}),
    ("muse:shapes", "transformer", None, {"transformer__tied_head": True}),
    ("muse:shapes", "unet", None, NO_TEXT_IS_A_TEXT),
    ("muse:shapes", "uvit", None, NO_TEXT_IS_A_TEXT),
    small.slow("muse:632m", "transformer", 20, {}),  # the first sums of the whole network
]


@pytest.mark.parametrize("preset, network, first, overrides", CASES, ids=str)
def test_positions_are_told_apart(preset, network, first, overrides):
    found = shares(preset, network, first, **overrides)
    print({name: round(share, 4) for name, share in found.items()})
    assert len(found) > 3 and min(found.values()) > LEAST
