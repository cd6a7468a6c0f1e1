"""Tensor parallelism of the masked transformers: sharded gradients equal single-device gradients.

As tests/test_sharding.py, leaf by leaf, for MUSE's transformers and the U-ViT. Also that the rules
cut every large matrix of their layers, and that Adafactor's factored state follows.
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from small import random_variables, slow
from test_sharding import mesh_of

from paella_jax.models.conditioning import Conditioning
from paella_jax.models.muse import MuseTransformer
from paella_jax.models.muse_super_resolution import SuperResolution
from paella_jax.models.uvit import UViT
from paella_jax.models.uvit_predictor import UViTPredictor
from paella_jax.objectives.token_prediction import weighted_token_loss
from paella_jax.ops.batch_axis import constrain_batch
from paella_jax.training.compiled_step import FOR_LOOKING
from paella_jax.training.optim import Pace, make_optimizer
from paella_jax.training.placing import batch_sharding
from paella_jax.training.sharding import (
    spec_for,
    state_shardings,
)

pytestmark = pytest.mark.devices(8)
MESHES = [(2, 2, 2), slow((1, 2, 4))]
CODES, BATCH, WIDTH = 128, 8, 128  # 128 x 128 is the smallest matrix that is cut
GRID, TEXT_LENGTH = 4, 6
LAYERS = {"width": WIDTH, "depth": 1, "num_heads": 4, "feed_forward_width": 256}


@cache
def network(name):
    if name == "muse":
        return MuseTransformer(codebook_size=CODES, grid=GRID, remat=True, **LAYERS)
    if name == "super_resolution":
        return SuperResolution(
            codebook_size=CODES, low_codebook_size=CODES, grid=GRID, low_grid=2, low_depth=1,
            block_size=2, **LAYERS,
        )  # fmt: skip
    return UViTPredictor(
        UViT(
            vocabulary_size=CODES + 1, codebook_size=CODES, token_width=WIDTH, conv_width=WIDTH,
            conv_blocks=1, conv_heads=4, text_width=WIDTH, pooled_width=WIDTH, micro_width=16,
            **LAYERS,
        ),
        masks=True,
    )  # fmt: skip


def inputs_of(name):
    """Corrupted tokens, noise level, condition, clean tokens and weights of eight samples."""
    draw = np.random.default_rng(0)
    normal = lambda *shape: draw.normal(size=shape).astype(np.float32)
    tokens = draw.integers(0, CODES, (BATCH, GRID, GRID))
    masked = draw.random(tokens.shape) < 0.5
    masked[:, 0, 0] = True
    lengths = draw.integers(1, TEXT_LENGTH + 1, BATCH)
    cond = {
        "text": normal(BATCH, TEXT_LENGTH, WIDTH),
        "text_mask": np.arange(TEXT_LENGTH) < lengths[:, None],
    }
    if name == "super_resolution":
        cond["low_tokens"] = draw.integers(0, CODES, (BATCH, 2, 2))
    if name == "uvit":
        cond |= {"text_pooled": normal(BATCH, WIDTH)}
        cond |= {"micro_conds": np.tile(np.float32([[256, 256, 0, 0, 6]]), (BATCH, 1))}
    noised = np.where(masked, network(name).mask_token, tokens)
    level = np.full(BATCH, 0.5, np.float32)
    return noised, level, Conditioning(**cond), tokens, masked


@cache
def parameters(name):
    """Random everywhere: at initialisation most gradients are exactly zero."""
    noised, level, cond, *_ = inputs_of(name)
    return random_variables(network(name), noised, level, cond)["params"]


def gradients_on(name, mesh):
    def loss_of(params, batch):
        noised, level, cond, tokens, masked = constrain_batch(batch)
        features = network(name).apply(
            {"params": params}, noised, level, cond, return_features=True
        )
        loss, _ = weighted_token_loss(
            features, params["classifier"], tokens, masked, masked.astype(jnp.float32), chunks=2
        )
        return loss

    with jax.set_mesh(mesh):
        placed = jax.device_put(parameters(name), state_shardings(parameters(name), mesh))
        batch = jax.device_put(inputs_of(name), batch_sharding(mesh))
        # The partitioning is what matters here; machine code is written three times sooner so.
        compute = jax.jit(jax.value_and_grad(loss_of), compiler_options=FOR_LOOKING)
        loss, gradients = compute(placed, batch)
    return float(loss), jax.device_get(gradients)


@cache
def reference(name):
    return gradients_on(name, mesh_of((1, 1, 1)))


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("name", ["muse", "super_resolution", "uvit"])
def test_gradients_equal_single_device(name, sizes):
    loss, gradients = gradients_on(name, mesh_of(sizes))
    assert loss == pytest.approx(reference(name)[0], rel=1e-5)

    def check(path, ours, theirs):
        norm = np.linalg.norm(theirs)
        assert norm > 1e-7, f"{jax.tree_util.keystr(path)} has no gradient: the test proves nothing"
        error = np.linalg.norm(ours - theirs) / norm
        assert error < 1e-4, f"{jax.tree_util.keystr(path)}: relative error {error:.1e}"

    jax.tree_util.tree_map_with_path(check, gradients, reference(name)[1])


@pytest.mark.parametrize("name", ["muse", "super_resolution", "uvit"])
def test_every_large_matrix_of_a_layer_is_cut_over_tensor(name):
    mesh = mesh_of((2, 2, 2))
    flat = jax.tree_util.tree_leaves_with_path(state_shardings(parameters(name), mesh))
    specs = {"/".join(k.key for k in path): sharding.spec for path, sharding in flat}
    matrices = {n: s for n, s in specs.items() if "layer_" in n and n.endswith("kernel")}
    assert len(matrices) >= 10
    for path, spec in matrices.items():
        back = path.endswith(("out/kernel", "contract/kernel"))
        assert spec == (P("tensor", "fsdp") if back else P("fsdp", "tensor")), path
    assert next(s for n, s in specs.items() if n.endswith("classifier")) == P("fsdp", "tensor")


def test_the_convolutional_stage_is_cut_too():
    mesh = mesh_of((2, 2, 2))
    for path, shape, spec in (
        ("down_attention_0/attention_1/out/kernel", (768, 768), P("tensor", "fsdp")),
        ("down_conv_0/contract/kernel", (3072, 768), P("tensor", "fsdp")),
        ("layer_0/norm_1/modulation/kernel", (1024, 2048), P("fsdp", "tensor")),
        ("attention_output/kernel", (1024, 2048), P(None, "fsdp")),
    ):
        assert spec_for(path, shape, mesh) == spec


def optim():
    return ConfigDict({
        "kind": "adafactor", "learning_rate": 1e-2, "schedule": "constant", "warmup_steps": 1,
        "beta1": 0.9, "beta2": 0.96, "epsilon": 1e-8, "weight_decay": 0.045, "decay_pattern": "",
        "clip_norm": 0.0,
    })  # fmt: skip


def test_adafactor_updates_sharded_matrices_as_whole_ones():
    """Its statistics per row and column have ranks of their own: no rule may cut them wrongly."""
    optimizer = make_optimizer(optim(), Pace(10, optim().learning_rate))
    params, (_, gradients) = parameters("muse"), reference("muse")

    def update_on(mesh):
        with jax.set_mesh(mesh):
            place = lambda tree: jax.device_put(tree, state_shardings(tree, mesh))
            state = place(optimizer.init(params))
            step = jax.jit(optimizer.update)
            for _ in range(2):  # the first step's learning rate is 0
                updates, state = step(place(gradients), state, place(params))
        return jax.device_get(updates), state

    expected, _ = update_on(mesh_of((1, 1, 1)))
    updates, state = update_on(mesh_of((2, 2, 2)))
    for ours, theirs in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
        assert np.abs(theirs).max() > 1e-6
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)
    momenta = {
        jax.tree_util.keystr(path): x.sharding.spec
        for path, x in jax.tree_util.tree_leaves_with_path(state)
        if "ema" in jax.tree_util.keystr(path) and "expand" in jax.tree_util.keystr(path)
    }
    assert set(momenta.values()) == {P("fsdp", "tensor")}


def test_adafactor_statistics_have_shardings():
    """Row and column statistics wide enough to be cut (over fsdp alone)."""
    mesh = mesh_of((2, 2, 2))
    wide = {"mlp": {"expand": {"kernel": jax.ShapeDtypeStruct((128, 2**15), jnp.float32)}}}
    state = jax.eval_shape(make_optimizer(optim(), Pace(10, optim().learning_rate)).init, wide)
    flat = jax.tree_util.tree_leaves_with_path(state)
    specs = {x.shape: spec_for(jax.tree_util.keystr(path), x.shape, mesh) for path, x in flat}
    assert specs[2**15,] == P("fsdp") and specs[128,] == P()
    state_shardings(state, mesh)
