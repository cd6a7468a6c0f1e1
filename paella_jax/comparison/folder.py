"""Which comparison a folder holds, and what a later call may add to it."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from paella_jax.config import ConfigError, differing_fields, to_json
from paella_jax.files.atomic import write_atomically
from paella_jax.runs.stored_config import read_stored_config

CONFIG = "comparison_config.json"


def claim_folder(config: ConfigDict, out: Path) -> None:
    """Writes the config, or checks that the folder holds this comparison or a part of it.

    Raises:
      ConfigError: another comparison is there.
    """
    file = out / CONFIG
    if file.is_file():
        differing = differing_fields(with_additions(read_stored_config(file), config), config)
        if differing:
            raise ConfigError(
                f"{out} holds another comparison; choose another --out, or add to this one (more "
                "seeds behind its own, other budget.multiples and variants). Differences (old -> "
                "new):\n  " + "\n  ".join(differing)
            )
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(file, to_json(config))


def with_additions(old: ConfigDict, new: ConfigDict) -> ConfigDict:
    """The old comparison with what the new one adds: its trainings and rows stay as they are."""
    grown = old.copy_and_resolve_references()
    with grown.unlocked():
        if tuple(new.seeds)[: len(old.seeds)] == tuple(old.seeds):
            grown.seeds = new.seeds
        # Older folders lack both.
        if set(old.budget.get("multiples", ())) <= set(new.budget.multiples):
            grown.budget.multiples = new.budget.multiples
        grown.variants = new.variants.copy_and_resolve_references()
        grown.variants.update(old.get("variants", {}))
    return grown
