"""What a benchmark is asked for, checked before anything runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from paella_jax.config import ConfigError, with_overrides
from paella_jax.families.start import settle_config
from paella_jax.ops.attention import check_kernel

CONDITIONED = ("tokens", "stage_b", "stage_c")  # methods with encoders of texts, images or both
# Work, and the methods that have it; None: all.
ABLE: dict[str, tuple[str, ...] | None] = {
    "forward": (*CONDITIONED, "clip_prior"),
    "sample": (*CONDITIONED, "clip_prior"),
    "tokenizer": ("vqgan", "tokens", "stage_b"),
    "encode": CONDITIONED,
    "encoded": CONDITIONED,
    "train": None,
}
WORK = tuple(ABLE)


class Setting(NamedTuple):
    """One preset with one combination of swept fields.

    Attributes:
      preset: as it was asked for.
      swept: "field=value" of each field that was given or swept.
      config: with them.
      work: of `WORK`, what is measured of it.
      batches: images that are drawn at once.
    """

    preset: str
    swept: tuple[str, ...]
    config: ConfigDict
    work: tuple[str, ...]
    batches: tuple[int, ...]


def check_asked(
    configs: Mapping[str, ConfigDict],
    work: str,
    batch: str,
    sweeps: Sequence[str],
    given: Sequence[str] = (),
) -> list[Setting]:
    """Every combination, in the order of asking.

    Args:
      configs: presets by name.
      work: names out of `WORK`, with commas between; what a method does not have is left out.
      batch: whole numbers with commas between.
      sweeps: "FIELD=A,B" each, or "FIELD=A;B".
      given: "--config.FIELD=VALUE" of what the configs have already: part of what a row is of.

    Raises:
      ConfigError: a word, number, field or kernel that cannot be, or nothing left to measure.
    """
    wanted = [word for word in work.split(",") if word]
    unknown = sorted(set(wanted) - set(WORK))
    if unknown or not wanted:
        raise ConfigError(f"--work {work!r} must be of {', '.join(WORK)}, with commas between")
    numbers = batch.split(",")
    if not all(number.isdigit() and int(number) > 0 for number in numbers):
        raise ConfigError(f"--batch {batch!r} must be whole numbers from 1 on, as in 1,4,16")
    axes = [_axis(sweep) for sweep in sweeps]
    fields = tuple(one.removeprefix("--").removeprefix("config.") for one in given)
    settings = []
    for name, config in configs.items():
        able = tuple(word for word in wanted if _has(config.method, word))
        for swept in itertools.product(*axes):
            changed = settle_config(with_overrides(config, list(swept)), None)
            _check_kernels(changed)
            batches = tuple(int(number) for number in numbers)
            settings.append(Setting(name, (*fields, *swept), changed, able, batches))
    if not any(setting.work for setting in settings):
        own = [word for word in WORK if any(_has(c.method, word) for c in configs.values())]
        raise ConfigError(
            f"--work {work!r}: none of the presets has that; there is {', '.join(own)}"
        )
    return settings


def _check_kernels(config: ConfigDict) -> None:
    """Raises ConfigError for a kernel of attention that this machine does not have."""
    for block in config.values():
        kernel = block.get("attention") if isinstance(block, ConfigDict) else None
        if isinstance(kernel, str) and (refusal := check_kernel(kernel)):
            raise ConfigError(refusal)


def _axis(sweep: str) -> list[str]:
    field, _, values = sweep.partition("=")
    if not field or not values:
        raise ConfigError(f"--sweep {sweep!r} must be FIELD=A,B, as in model.remat=True,False")
    between = ";" if ";" in values else ","  # of values that have commas themselves
    return [f"{field.removeprefix('config.')}={value}" for value in values.split(between)]


def _has(method: str, word: str) -> bool:
    methods = ABLE[word]
    return methods is None or method in methods
