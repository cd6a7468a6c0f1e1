"""What a comparison trains: a cell's network with a seed, or a variant of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Training:
    """One network to train; both samplers are measured on it.

    Attributes:
      corruption: "uniform" or "mask".
      network: a key of `NETWORKS`.
      seed: decides the initial parameters and the order of the data.
      variant: a key of the comparison's variants; empty: the cell as it is compared.
    """

    corruption: str
    network: str
    seed: int
    variant: str = ""

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return f"{self.group}_{self.seed}"

    @property
    def group(self) -> str:
        """The name that it shares with the other seeds."""
        return "_".join(filter(None, (self.network, self.corruption, self.variant)))


def cell_name(training: Training, sampler: str) -> str:
    """A cell's name in tables and rows."""
    names = (training.network, training.corruption, sampler, training.variant)
    return " / ".join(filter(None, names))
