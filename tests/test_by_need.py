"""Rows that need less work get less, with the same result: ops/by_need.py and what uses it."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from jax.sharding import NamedSharding

from paella_jax.encoders.by_length import encode_by_length
from paella_jax.encoders.t5 import T5Encoder
from paella_jax.ops.batch_axis import BATCH
from paella_jax.ops.by_need import FEWEST_ROWS, PARTS, by_need, parts_of
from paella_jax.training.sharding import make_mesh

LENGTH = 12


def tagged(number):
    """A branch whose values say who made them, beside the row itself."""
    return lambda rows: {"by": jnp.full(len(rows), number), "row": rows * 2}


def needs(seed, batch, shares=(0.6, 0.3, 0.1)):
    chance = np.random.default_rng(seed)
    return chance.choice(len(shares), size=batch, p=shares).astype(np.int32)


@pytest.mark.parametrize("batch", [8, 32, 40, 6, 7, 64])
def test_every_row_is_served_in_its_place(batch):
    need, rows = needs(batch, batch), np.arange(batch * 3.0).reshape(batch, 3)
    done = jax.jit(partial(by_need, [tagged(n) for n in range(3)]))(need, rows)
    np.testing.assert_array_equal(done["row"], rows * 2)
    assert (np.asarray(done["by"]) >= need).all()


def test_needy_rows_share_a_part():
    """One of them in each of eight unsorted parts would make the last branch do everything."""
    need = np.zeros(64, np.int32)
    need[::8] = 2
    done = jax.jit(partial(by_need, [tagged(n) for n in range(3)]))(need, np.zeros((64, 1)))
    assert [int((np.asarray(done["by"]) == n).sum()) for n in range(3)] == [56, 0, 8]


def test_few_rows_are_not_cut():
    assert [parts_of(n) for n in (1, 2 * FEWEST_ROWS - 1, 2 * FEWEST_ROWS, 64)] == [1, 1, 2, PARTS]
    alone = by_need([tagged(0), tagged(1)], np.zeros(3, np.int32), np.ones((3, 1)))
    assert (np.asarray(alone["by"]) == 1).all()


@pytest.mark.devices(8)
def test_rows_stay_on_their_devices():
    mesh = make_mesh(small.config_of("paella:tiny", mesh__fsdp=2, mesh__data=4).mesh)
    need, rows = needs(3, 128), np.arange(128 * 5.0).reshape(128, 5)
    put = lambda x: jax.device_put(x, NamedSharding(mesh, BATCH))
    with jax.set_mesh(mesh):
        program = jax.jit(partial(by_need, [tagged(n) for n in range(3)]))
        done = program(put(need), put(rows))
        text = program.lower(put(need), put(rows)).compile().as_text()
    np.testing.assert_array_equal(done["row"], rows * 2)
    assert (np.asarray(done["by"]) >= need).all()
    assert done["row"].sharding.is_equivalent_to(NamedSharding(mesh, BATCH), 2)
    assert "all-gather" not in text and "all-to-all" not in text and "permute(" not in text
    assert "all-reduce" in text, "what a part needs is known to all"


@pytest.fixture(scope="module")
def encoder():
    module = T5Encoder(50, 16, 2, 2, 8, 32)
    return module, small.random_variables(module, jnp.zeros((1, 4), jnp.int32))


@pytest.mark.parametrize("buckets", [1, 3, 5])
def test_states_do_not_depend_on_the_length_a_text_is_encoded_at(encoder, buckets):
    module, variables = encoder
    chance = np.random.default_rng(0)
    used = np.r_[chance.integers(1, LENGTH + 1, 39), LENGTH]
    mask = np.arange(LENGTH)[None] < used[:, None]
    ids = np.where(mask, chance.integers(2, 50, mask.shape), 0).astype(np.int32)
    seen = []

    def encode(ids, mask):
        seen.append(ids.shape[1])
        return module.apply(variables, ids, mask)

    states = jax.jit(lambda *given: encode_by_length(encode, *given, buckets))(ids, mask)
    whole = module.apply(variables, ids, mask)
    np.testing.assert_allclose(states[mask], whole[mask], atol=5e-5)
    assert states.shape == whole.shape and sorted(set(seen)) == {
        1: [12], 3: [4, 8, 12], 5: [3, 5, 8, 10, 12],
    }[buckets]  # fmt: skip


def test_a_text_with_a_gap_is_encoded_to_its_last_id(encoder):
    """A mask is what is seen, not how many."""
    module, variables = encoder
    ids = np.full((8, LENGTH), 7, np.int32)
    mask = np.zeros((8, LENGTH), bool)
    mask[:, [0, 7]] = True
    encode = partial(module.apply, variables)
    states = jax.jit(lambda *given: encode_by_length(encode, *given, 3))(ids, mask)
    np.testing.assert_allclose(states[:, 7], encode(ids, mask)[:, 7], atol=5e-5)
