"""Sharded gradients equal single-device gradients, leaf by leaf; mesh errors.

Equal losses prove nothing here: XLA is known to give a right loss with wrong gradients on some
(data, fsdp, tensor) meshes when the batch axes are in the other order.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from paella_jax.families.token_training import token_method
from paella_jax.noise.tokens import sample_keys
from paella_jax.objectives.inputs import StepInputs
from paella_jax.ops.batch_axis import constrain_batch
from paella_jax.training.loop import abstract_state
from paella_jax.training.placing import batch_sharding
from paella_jax.training.sharding import (
    MeshError,
    check_batch,
    make_mesh,
    replicated,
    spec_for,
    state_shardings,
)
from paella_jax.training.step import loss_and_gradients

pytestmark = pytest.mark.devices(8)
MESHES = [(2, 4, 1), (2, 2, 2), (1, 2, 2)]
MORE = [(8, 1, 1), (1, 8, 1), (4, 1, 2)]


def mesh_of(sizes):
    count = int(np.prod(sizes))
    block = ConfigDict(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
    return make_mesh(block, jax.devices()[:count])


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """A Paella wide enough that its matrices are really cut, with random weights everywhere."""
    workdir = tmp_path_factory.mktemp("run")
    small.carry_random_tokenizer(workdir)
    config = small.small_paella(
        model__widths="(128,)", model__patterns='("CTA",)', model__cond_width=128, text__width=128,
        text__hidden_dim=256,
    )  # fmt: skip
    method = token_method(config, workdir)
    # At initialisation most gradients are exactly zero.
    params, _ = small.random_values(jax.eval_shape(method.init, jax.random.key(0)))
    samples = [method.transform(method.source[i]) for i in range(8)]
    batch = jax.tree.map(lambda *x: np.stack(x), *samples)
    return method, params, batch


def gradients_on(problem, mesh):
    method, params, batch = problem

    def compute(params, frozen, batch):
        batch = constrain_batch(batch)
        keys = sample_keys(jax.random.key(2), jnp.arange(8))
        inputs = StepInputs(batch, keys, jnp.zeros((), jnp.int32), {}, frozen)
        gradients, metrics, _ = loss_and_gradients(method.objective, params, inputs, 1)
        return gradients, metrics["loss"]

    with jax.set_mesh(mesh):
        placed = jax.device_put(params, state_shardings(params, mesh))
        data = jax.device_put(batch, batch_sharding(mesh))
        frozen = jax.device_put(method.frozen, replicated(mesh))
        gradients, loss = jax.jit(compute)(placed, frozen, data)
    return jax.device_get(gradients), float(loss)


@pytest.fixture(scope="module")
def reference(problem):
    return gradients_on(problem, mesh_of((1, 1, 1)))


@pytest.mark.parametrize("sizes", [*MESHES, *map(small.slow, MORE)], ids=str)
def test_gradients_equal_single_device(problem, reference, sizes):
    gradients, loss = gradients_on(problem, mesh_of(sizes))
    assert loss == pytest.approx(reference[1], rel=1e-5)

    def check(path, ours, theirs):
        norm = np.linalg.norm(theirs)
        assert norm > 1e-7, f"{jax.tree_util.keystr(path)} has no gradient: the test proves nothing"
        error = np.linalg.norm(ours - theirs) / norm
        assert error < 1e-4, f"{jax.tree_util.keystr(path)}: relative error {error:.1e}"

    jax.tree_util.tree_map_with_path(check, gradients, reference[0])


def test_matrices_are_really_cut(problem):
    _, params, _ = problem
    mesh = mesh_of((2, 2, 2))
    specs = {s.spec for s in jax.tree.leaves(state_shardings(params, mesh))}
    assert P("fsdp", "tensor") in specs and P("tensor", "fsdp") in specs


def test_optimiser_state_follows_the_parameters(problem):
    method, _, _ = problem
    mesh = mesh_of((1, 8, 1))
    abstract, _ = abstract_state(small.small_paella(optim__ema_decay=0.9), method, mesh)
    find = lambda tree: {
        jax.tree_util.keystr(p)[-60:]: x.sharding.spec
        for p, x in jax.tree_util.tree_leaves_with_path(tree)
        if "expand" in jax.tree_util.keystr(p) and "kernel" in jax.tree_util.keystr(p)
    }
    kinds = [
        set(find(t).values()) for t in (abstract.params, abstract.ema_params, abstract.opt_state)
    ]
    assert kinds[0] and kinds[0] == kinds[1] == kinds[2]


def test_rule_falls_back_when_a_dimension_does_not_divide():
    mesh = mesh_of((1, 8, 1))
    assert spec_for("a/expand/kernel", (130, 1024), mesh) == P(None, "tensor")
    assert spec_for("a/other", (130, 1024), mesh) == P(None, "fsdp")
    assert spec_for("a/other", (8, 8), mesh) == P()


@pytest.mark.parametrize(
    "sizes, words",
    [((3, 1, 1), "8 devices"), ((-1, -1, 1), "one axis -1"), ((-1, 3, 1), "multiply to 8"),
     ((0, 1, 1), "positive")],
)  # fmt: skip
def test_impossible_meshes(sizes, words):
    block = ConfigDict(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
    with pytest.raises(MeshError, match=words):
        make_mesh(block)


def test_batch_must_divide():
    with pytest.raises(MeshError, match="batch_size must be at least 1, got 0"):
        check_batch(0, 1, mesh_of((8, 1, 1)))
    with pytest.raises(MeshError, match="batch_size 12"):
        check_batch(12, 1, mesh_of((8, 1, 1)))
    with pytest.raises(MeshError, match="4 micro-batches"):
        check_batch(16, 4, mesh_of((8, 1, 1)))


def test_mostly_replicated_state_is_refused():
    odd = {"a": jax.ShapeDtypeStruct((129, 1025), jnp.float32)}
    with pytest.raises(MeshError, match="copied to every device"):
        state_shardings(odd, mesh_of((1, 8, 1)))
