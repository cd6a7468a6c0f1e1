"""How loud the parts of a network's sums are, on made-up networks whose numbers are known."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from paella_jax import signals as command
from paella_jax.config import ConfigError
from paella_jax.evaluation.signals import Sum, share_that_differs, sums_at_start
from paella_jax.families.at_start import networks_at_start
from paella_jax.models.layers import Dense, gelu, layer_norm

SIGNS = np.where(np.arange(64).reshape(2, 4, 8) % 3, 1.0, -1.0).astype(np.float32)
LEVEL = np.where(np.arange(16).reshape(2, 8) % 2, 1.0, -1.0).astype(np.float32)


class Block(nn.Module):
    """A branch as loud as `gain` makes it."""

    gain: float

    @nn.compact
    def __call__(self, x):
        init = lambda key, shape: self.gain * jnp.eye(*shape)
        hidden = Dense(x.shape[-1], kernel_init=init, name="matrix")(x)
        return x + hidden


class Loud(nn.Module):
    """A level 32 times as loud as the stream, then a branch from zero, then concatenations."""

    @nn.compact
    def __call__(self, x, level):
        x = x + (32.0 * level)[:, None, :]
        x = Block(0.0, name="block_0")(layer_norm(gelu(x)))
        beside = jnp.concatenate([SIGNS, 0.01 * SIGNS], axis=-1)
        huge = self.param("huge", nn.initializers.normal(), (4096, 4096))
        return Dense(4, name="out")(beside), x, huge


def sums(network, *inputs, **options):
    init = lambda key: network.init(key, *inputs)
    return sums_at_start(init, network.apply, inputs, jax.random.key(0), **options)


def test_known_sums():
    level, block, beside = sums(Loud(), SIGNS, LEVEL)
    assert level.place == "" and level.code == "x = x + (32.0 * level)[:, None, :]"
    np.testing.assert_allclose([level.before, level.added, level.ratio], [1, 32, 32], rtol=1e-6)
    assert level.far_apart and level.share < 0.05
    assert (block.place, block.added, block.ratio) == ("block_0", 0.0, 0.0)
    assert not block.far_apart  # silence hides nothing
    assert beside.joins and beside.far_apart
    np.testing.assert_allclose([beside.before, beside.added], [1, 0.01], rtol=1e-6)
    assert sums(Loud(), SIGNS, LEVEL, first=1) == [level]


def test_a_branch_s_gain_is_read():
    (only,) = sums(Block(8.0), SIGNS)
    np.testing.assert_allclose([only.before, only.added], [1, 8], rtol=1e-6)
    assert not only.far_apart


@pytest.mark.parametrize("ratio, far", [(29, False), (31, True), (1 / 29, False), (1 / 31, True)])
def test_far_apart_is_thirty(ratio, far):
    assert Sum("", "", False, 2.0, 2.0 * ratio, None).far_apart is far


def test_the_share_of_what_differs():
    same = np.broadcast_to(SIGNS[:, :1], SIGNS.shape)
    assert share_that_differs(same) < 1e-6
    opposite = np.concatenate([same, -same], axis=1)
    np.testing.assert_allclose(share_that_differs(opposite), 1.0, rtol=1e-5)
    # A layer-normed vector in two orthogonal halves, of which one turns its sign: half differs.
    halves = np.float32([[[1, -1, 1, -1], [1, 1, -1, -1]]])
    np.testing.assert_allclose(share_that_differs(halves), 0.5, rtol=1e-5)


def test_the_command_prints_every_sum(capsys, monkeypatch):
    words = ["signals", "--config", "muse:tiny", "--first", "5", "--config.transformer.loop=True"]
    monkeypatch.setattr("sys.argv", words)
    assert command.main() == 0
    printed = capsys.readouterr().out
    tables, summary = printed.split("| network |")
    assert "| layer_0 | + | `x = x + attend(y, y, None, deterministic)` |" in tables
    assert "| muse:tiny, predictor |" in summary and "8x8 masks, level 0.9 | 5 |" in summary


def test_what_has_no_networks_of_its_own(monkeypatch):
    with pytest.raises(ConfigError, match="init_from"):
        networks_at_start(small.config_of("paella:finetune"))
    with pytest.raises(ConfigError, match="choose a config of tokens"):
        networks_at_start(small.config_of("direct_decoder:tiny"))
    monkeypatch.setattr("sys.argv", ["signals", "--first", "0"])
    with pytest.raises(ConfigError, match="at least 1"):
        command.main()
