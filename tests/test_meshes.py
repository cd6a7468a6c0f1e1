"""Meshes on the shapes of real TPU slices, of devices that only have their coordinates."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
from jax.experimental import mesh_utils
from ml_collections import ConfigDict

from paella_jax.training.sharding import AXES, MeshError, make_mesh


@dataclass(frozen=True)
class Chip:
    id: int
    coords: tuple[int, ...]
    device_kind: str
    platform: str = "tpu"
    core_on_chip: int = 0
    process_index: int = 0
    slice_index: int = 0


KINDS = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}


def slice_of(kind, *sides):
    places = itertools.product(*(range(side) for side in (*sides, *(1,) * (3 - len(sides)))))
    return [Chip(i, place, KINDS[kind]) for i, place in enumerate(places)]


def mesh_block(sizes):
    return ConfigDict(dict(zip(AXES, sizes, strict=True)))


SLICES = [("v4", 4, 4, 4), ("v5e", 4, 4), ("v5e", 8, 8), ("v5e", 16, 16), ("v5p", 4, 4, 4),
          ("v5p", 4, 4, 8), ("v6e", 8, 8), ("v6e", 16, 16)]  # fmt: skip
SIZES = [(1, -1, 1), (4, -1, 1), (1, -1, 2), (1, -1, 4), (2, -1, 8), (-1, 4, 4)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", SLICES, ids=str)
def test_slices_have_every_mesh(kind, sizes):
    devices = slice_of(*kind)
    laid_out = make_mesh(mesh_block(sizes), devices).devices
    assert {chip.id for chip in laid_out.flat} == set(range(len(devices)))
    rest = len(devices) // -int(np.prod(sizes))
    assert laid_out.shape == tuple(rest if n == -1 else n for n in sizes)


def test_neighbours_of_the_last_axis_are_near_each_other():
    laid_out = make_mesh(mesh_block((1, -1, 4)), slice_of("v6e", 16, 16)).devices
    coords = np.array([chip.coords for chip in laid_out.flat]).reshape(64, 4, 3)
    assert np.ptp(coords, axis=1).sum(-1).max() <= 3


@pytest.mark.parametrize("sizes, joined", [((2, -1, 1), 0), ((1, -1, 4), 1)])
def test_slices_are_joined_along_the_first_axis_that_divides(sizes, joined):
    chips = [replace(chip, id=16 * n + chip.id, slice_index=n)
             for n in (0, 1) for chip in slice_of("v5e", 4, 4)]  # fmt: skip
    laid_out = make_mesh(mesh_block(sizes), chips).devices
    halves = np.split(laid_out, 2, axis=joined)
    assert [{chip.slice_index for chip in half.flat} for half in halves] == [{0}, {1}]
    with pytest.raises(MeshError, match="do not divide by the 2 slices"):
        make_mesh(mesh_block((1, 1, -1)), chips)


@pytest.mark.parametrize("data, spanned", [(2, 4), (4, 2), (8, 1), (1, 8)])
def test_what_data_does_not_join_fsdp_does(data, spanned):
    """Eight slices: gathers over "fsdp" cross no more of them than they must."""
    chips = [replace(chip, id=8 * n + chip.id, slice_index=n)
             for n in range(8) for chip in slice_of("v5e", 2, 4)]  # fmt: skip
    laid_out = make_mesh(mesh_block((data, -1, 1)), chips).devices
    assert [len({chip.slice_index for chip in group.flat}) for group in laid_out] == [
        spanned
    ] * data


def test_a_mesh_that_cannot_be_names_those_that_can(monkeypatch):
    build = mesh_utils.create_device_mesh

    def only_without_tensor(shape, devices, **options):
        if shape[2] > 1:
            raise NotImplementedError("no such assignment")
        return build(shape, devices, **options)

    monkeypatch.setattr(mesh_utils, "create_device_mesh", only_without_tensor)
    with pytest.raises(
        MeshError, match=r"TPU v5 lite.*no such assignment.*data=1 fsdp=16 tensor=1"
    ):
        make_mesh(mesh_block((1, -1, 2)), slice_of("v5e", 4, 4))
