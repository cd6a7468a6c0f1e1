"""LoRA as functions: the start is the base, merged equals a low-rank branch, sharding, errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.models import layers
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.paella import Paella
from paella_jax.runs.lora import check_lora, lora_init, lora_merge
from paella_jax.training.sharding import frozen_shardings, make_mesh

PATTERN = small.config_of("paella:shapes").lora.pattern
ALPHA, RANK = 6.0, 3


@pytest.fixture(scope="module")
def network():
    """A small Paella, its parameters all random, and inputs."""
    model = Paella(codebook_size=32, token_width=8, time_width=16, cond_width=16, widths=(32,),
                   depths=(1,), num_heads=(4,), patterns=("TA",), dropout=0.0)  # fmt: skip
    keys = jax.random.split(jax.random.key(0), 4)
    tokens = jax.random.randint(keys[0], (2, 8, 8), 0, 32)
    cond = Conditioning(
        text=jax.random.normal(keys[1], (2, 5, 12)), text_pooled=jax.random.normal(keys[2], (2, 8))
    )
    inputs = (tokens, jnp.asarray([0.3, 0.8]), cond)
    params = jax.eval_shape(model.init, keys[3], *inputs)["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(keys[3], len(leaves))
    draw = lambda key, x: 0.3 * jax.random.normal(key, x.shape)
    params = tree.unflatten([draw(k, x) for k, x in zip(keys, leaves, strict=True)])
    return model, {"predictor": params}, inputs


def trained(adapters):
    """Adapters as after training: no zeros."""
    return jax.tree.map(
        lambda x: jnp.asarray(np.random.default_rng(x.size).normal(0, 0.2, x.shape), x.dtype),
        adapters,
    )


def logits(network, params):
    model, _, inputs = network
    return model.apply({"params": params["predictor"]}, *inputs)


def test_default_pattern_takes_attention_and_mappers(network):
    _, params, _ = network
    adapters = lora_init(jax.random.key(0), params, PATTERN, RANK)
    names = {"/".join(path[1:-1]) for path in flatten_dict(adapters)}
    wanted = {"conditioning/text/kernel", "conditioning/clip_text/kernel"}
    for block in ("down_0_block", "up_0_block"):
        wanted |= {f"{block}_0/mapper/kernel", f"{block}_1/kv_mapper/kernel"}
        wanted |= {f"{block}_1/attention/in_kernel", f"{block}_1/attention/out/kernel"}
    assert names == wanted
    down = adapters["predictor"]["down_0_block_1"]["attention"]["in_kernel"]["down"]
    assert down.shape == (32, RANK) and 0.1 < float(down.std()) * np.sqrt(32) < 2.0


def test_the_start_is_the_base_exactly(network):
    _, params, _ = network
    adapters = lora_init(jax.random.key(0), params, PATTERN, RANK)
    merged = lora_merge(params, adapters, ALPHA)
    jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_merged_weights_equal_a_low_rank_branch(network, monkeypatch, highest_precision):
    """Every layer's y = xW gets alpha / rank * (x down) up beside it, computed by hand."""
    _, params, _ = network
    adapters = trained(lora_init(jax.random.key(0), params, PATTERN, RANK))
    merged = logits(network, lora_merge(params, adapters, ALPHA))

    flat, parts, used = flatten_dict(params), flatten_dict(adapters), set()
    plain = layers.dense

    def with_branch(x, kernel, **kwargs):
        y = plain(x, kernel, **kwargs)
        for path in {p[:-1] for p in parts}:
            base, down, up = flat[path], parts[*path, "down"], parts[*path, "up"]
            columns = kernel.shape[1]  # attention also uses the last columns alone
            if base.shape[0] == kernel.shape[0] and jnp.array_equal(base[:, -columns:], kernel):
                used.add(path)
                return y + (ALPHA / RANK) * ((x @ down) @ up[:, -columns:])
        return y

    monkeypatch.setattr(layers, "dense", with_branch)
    branched = logits(network, params)
    assert used == {p[:-1] for p in parts}
    np.testing.assert_allclose(merged, branched, atol=1e-5, rtol=1e-5)
    monkeypatch.undo()
    assert float(jnp.abs(merged - logits(network, params)).max()) > 0.1


def test_gradients_reach_both_factors(network):
    _, params, _ = network
    adapters = trained(lora_init(jax.random.key(0), params, PATTERN, RANK))
    loss = lambda a: jnp.square(logits(network, lora_merge(params, a, ALPHA))).mean()
    gradients = jax.jit(jax.grad(loss))(adapters)
    assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(gradients))


@pytest.mark.devices(8)
def test_a_base_is_sharded_like_trained_parameters():
    mesh = make_mesh(ConfigDict({"data": 1, "fsdp": 4, "tensor": 2}))
    base = {"attention": {"in_kernel": np.zeros((256, 768), np.float32)}}
    shardings = frozen_shardings({"base": base, "vqgan": base}, mesh)
    assert shardings["base"]["attention"]["in_kernel"].spec == P("fsdp", "tensor")
    assert shardings["vqgan"].is_fully_replicated
    placed = jax.device_put({"base": base, "vqgan": base}, shardings)
    kernel = placed["base"]["attention"]["in_kernel"]
    assert kernel.addressable_shards[0].data.shape == (64, 384)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"rank": -1}, "lora.rank must be 0 .* got -1"),
        ({"rank": 4, "alpha": 0.0}, "lora.alpha must be positive, got 0.0"),
        ({"rank": 4, "pattern": "("}, "is no regex"),
    ],
)
def test_bad_settings(changes, words):
    settings = ConfigDict({"rank": 4, "alpha": 8.0, "pattern": PATTERN} | changes)
    with pytest.raises(ConfigError, match=words):
        check_lora(settings)


def test_a_pattern_that_fits_nothing(network):
    with pytest.raises(ConfigError, match="'nothing' fits no matrix; a name looks like predictor/"):
        lora_init(jax.random.key(0), network[1], "nothing", RANK)
