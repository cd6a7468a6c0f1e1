"""Cells that are trained otherwise in one respect, to be held against the cell itself.

They are ablations (a field of the recipe changed) and larger budgets. A comparison's verdict is on
its cells alone; variants get tables of their own.
"""

from __future__ import annotations

from typing import NamedTuple

from ml_collections import ConfigDict

from paella_jax.comparison.training import Training
from paella_jax.config import ConfigError

Key = tuple[str, str, str]  # network, corruption and the variant's name


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
    """The variants of a comparison.

    Raises:
      ConfigError: one is of no cell, has no sampler of the comparison, or is the cell itself.
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
        found[network, corruption, name] = Variant(sampler, tuple(overrides))
    for (network, corruption, name), one in found.items():
        chosen = {"networks": network, "corruptions": corruption, "samplers": one.sampler}
        for kind, value in chosen.items():
            if value not in cells[kind]:
                raise ConfigError(
                    f"variant {name} is of {value!r}, which is not compared: cells.{kind} has "
                    f"{', '.join(cells[kind])}"
                )
        if one.budget <= 0 or (one.budget == 1 and not one.overrides):
            raise ConfigError(f"variant {name} is the cell itself: give overrides or a budget")
    return found


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
