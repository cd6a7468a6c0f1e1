"""Cells that are trained otherwise in one respect, to be held against the cell itself.

They are ablations (a field of the recipe changed) and larger budgets. A comparison's verdict is on
its cells alone; variants get tables of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from paella_jax.comparison.training import Training
from paella_jax.config import ConfigError
from paella_jax.families.networks import NETWORKS
from paella_jax.sampling.token_sampler import CORRUPTIONS, SAMPLERS

Key = tuple[str, str, str]  # network, corruption and the variant's name
KNOWN = {"networks": tuple(NETWORKS), "corruptions": CORRUPTIONS, "samplers": SAMPLERS}
SHARED = ("data.", "tokenizer")  # fields that no variant may change: what is drawn and scored


class Variant(NamedTuple):
    """What is otherwise.

    Attributes:
      sampler: the one that it is measured with.
      overrides: of the training's config, "a.b=value".
      budget: multiple of the cell's.
    """

    sampler: str
    overrides: tuple[str, ...] = ()
    budget: float = 1.0


def variants_of(config: ConfigDict) -> dict[Key, Variant]:
    """The variants of a comparison; those of cells that are not compared are left out.

    Raises:
      ConfigError: one is of a cell that cannot be, is the cell itself, or changes the data.
    """
    cells = config.cells
    usual = {c: "confidence" if c == "mask" else "random" for c in cells.corruptions}
    found = {
        (network, corruption, f"{multiple:g}x"): Variant(
            usual[corruption] if usual[corruption] in cells.samplers else cells.samplers[0],
            budget=float(multiple),
        )
        for multiple in config.budget.multiples
        for network in cells.networks
        for corruption in cells.corruptions
    }
    for name, (network, corruption, sampler, overrides) in config.variants.items():
        cell = {"networks": network, "corruptions": corruption, "samplers": sampler}
        _check_cell(name, cell)
        if all(value in cells[kind] for kind, value in cell.items()):
            found[network, corruption, name] = Variant(sampler, tuple(overrides))
    for (_, _, name), one in found.items():
        if one.budget <= 0 or (one.budget == 1 and not one.overrides):
            raise ConfigError(f"variant {name} is the cell itself: give overrides or a budget")
        shared = [text for text in one.overrides if text.startswith(SHARED)]
        if shared:
            raise ConfigError(f"variant {name} changes {shared[0]}, which all cells share")
    return found


def left_out(config: ConfigDict) -> list[str]:
    """Variants of cells that are not compared, and so are none either."""
    kept = {name for _, _, name in variants_of(config)}
    return [name for name in config.variants if name not in kept]


def _check_cell(name: str, cell: Mapping[str, str]) -> None:
    """Raises ConfigError for a cell that no comparison could have."""
    for kind, value in cell.items():
        if value not in KNOWN[kind]:
            raise ConfigError(
                f"variant {name} is of {value!r}: cells.{kind} can have {', '.join(KNOWN[kind])}"
            )


def variant_of(config: ConfigDict, training: Training) -> Variant:
    """What is otherwise in a training that is a variant's."""
    return variants_of(config)[training.network, training.corruption, training.variant]


def budget_multiple(config: ConfigDict, training: Training) -> float:
    """How often the cell's budget a training gets."""
    return variant_of(config, training).budget if training.variant else 1.0


def samplers_of(config: ConfigDict, training: Training) -> tuple[str, ...]:
    """The samplers that a training is measured with: all, or a variant's own."""
    if training.variant:
        return (variant_of(config, training).sampler,)
    return tuple(config.cells.samplers)
