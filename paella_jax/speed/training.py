"""A preset's train step."""

from __future__ import annotations

from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.compile.programs import train_program
from paella_jax.speed.case import Case


def train_case(config: ConfigDict, mesh: Mesh, encoded: bool) -> Case:
    """One update, optimiser and frozen networks included; to be measured under `mesh`.

    Its products are counted without those that are only recomputed to save memory.
    """
    program = train_program(config, mesh, encoded)
    plain = train_program(_without_remat(config), mesh, encoded)
    name = "train step, encoded data" if encoded else "train step"
    counted = (plain.function, plain.arguments)
    return Case(name, program.function, program.arguments, config.batch_size, counted, True)


def _without_remat(config: ConfigDict) -> ConfigDict:
    config = config.copy_and_resolve_references()
    for block in config.values():
        if isinstance(block, ConfigDict) and "remat" in block:
            block.remat = False
    return config
