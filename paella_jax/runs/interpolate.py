"""Runs made of other runs: two interpolated, or one with its adapters merged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from paella_jax.config import flatten_config, to_json
from paella_jax.files.atomic import CARD_FILE, check_new, whole_folder, write_atomically
from paella_jax.files.safetensors_file import write_safetensors
from paella_jax.files.tensors import ConversionError
from paella_jax.runs.checkpoint import restore_variables
from paella_jax.runs.derive import describes_networks, is_free, restore_trained, save_merged
from paella_jax.runs.folder import CONFIG_FILE, WEIGHTS_FILE, read_config
from paella_jax.runs.frozen import copy_frozen

# Beside what fine-tuning compares: Stage B's compressor, but for how it trains.
COMPARED = ("compressor.", "method")
UNCOMPARED = {"compressor.run", "compressor.stochastic_depth"}


def interpolate_runs(first: str | Path, second: str | Path, share: float, out: Path) -> int:
    """Writes (1 - share) * first + share * second as a run folder; frozen networks are first's.

    Würstchen's released Stage C is such a mean of two (docs/models/wuerstchen.md 1 and 5.4).
    Weights are averaged ones if a run has them, with adapters merged; sums are in float32 and
    stored in the first's dtype. BatchNorm statistics are interpolated too, whole numbers are the
    first's.

    Args:
      first: run folder, trained or converted.
      second: another with the same networks.
      share: of the second, in [0, 1].
      out: new run folder.

    Returns:
      The number of arrays.

    Raises:
      ConversionError: a share outside [0, 1], other networks (all differences are listed), or
        `out` is not empty.
      CheckpointError: no run there, or a damaged one.
    """
    check_new(out)
    if not 0.0 <= share <= 1.0:
        raise ConversionError(f"--share must be in [0, 1], got {share}")
    config, other = read_config(first), read_config(second)
    differing = _differing_networks(config, other)
    _refuse(first, second, differing)
    a, b = _arrays(first, config), _arrays(second, other)
    absent = lambda name, arrays: list(arrays[name].shape) if name in arrays else "absent"
    differing = [
        f"{name}: {absent(name, a)} -> {absent(name, b)}"
        for name in sorted(a.keys() | b.keys())
        if absent(name, a) != absent(name, b)
    ]
    _refuse(first, second, differing)
    mixed = {name: _mix(a[name], b[name], share) for name in a}
    with whole_folder(out) as part:
        write_safetensors(part / WEIGHTS_FILE, mixed)
        copy_frozen(first, part, leave_out=["base"])
        write_atomically(part / CARD_FILE, _card(config, first, second, share))
        write_atomically(part / CONFIG_FILE, to_json(_settled(config)))
    return len(mixed)


def _differing_networks(first: ConfigDict, second: ConfigDict) -> list[str]:
    """Fields that say what the networks are; where their frozen parts came from does not count."""
    a, b = flatten_config(first), flatten_config(second)
    told = lambda name: describes_networks(name) and not is_free(name)
    more = lambda name: name.startswith(COMPARED) and name not in UNCOMPARED
    compared = lambda name: told(name) or more(name)
    return [
        f"{name}: {a.get(name, '(absent)')!r} -> {b.get(name, '(absent)')!r}"
        for name in sorted(filter(compared, a.keys() | b.keys()))
        if not name.endswith(".folder") and a.get(name) != b.get(name)
    ]


def _refuse(first: str | Path, second: str | Path, differing: list[str]) -> None:
    if differing:
        raise ConversionError(
            f"{first} and {second} hold other networks, only runs of the same can be interpolated "
            "(first -> second):\n  " + "\n  ".join(differing)
        )


def _arrays(run: str | Path, config: ConfigDict) -> dict[str, np.ndarray]:
    """All sampling weights of a run by path."""
    state = restore_variables(run)[1]["model_state"]
    tree = {"params": restore_trained(run, config), "model_state": state}
    return flatten_dict(tree, sep="/")


def _mix(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    if a.dtype.kind in "biu":
        return a
    # Not a + share * (b - a), so that both ends are exact.
    mixed = np.float32(1 - share) * a.astype(np.float32) + np.float32(share) * b.astype(np.float32)
    return mixed.astype(a.dtype)


def _settled(config: ConfigDict) -> ConfigDict:
    """The config of a run that holds whole weights and began from no other."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.init_from = ""
        if "lora" in config:  # configs older than LoRA have no such block
            config.lora.rank = 0
    return config


def _card(config: ConfigDict, first: str | Path, second: str | Path, share: float) -> str:
    names = [Path(run).absolute().name for run in (first, second)]
    return f"""# Interpolated weights of method {config.method}

Every weight is {1 - share:g} of `{names[0]}` + {share:g} of `{names[1]}`, written by
`python -m paella_jax.convert --interpolate`. The frozen networks are those of `{names[0]}`.

The terms of both go on holding.
"""


def merge_run(run: str | Path, out: Path) -> int:
    """Writes a run with its LoRA adapters merged and without optimiser state; see `save_merged`.

    Returns:
      The rank of the adapters, 0 for a run without.

    Raises:
      ConversionError: `out` is not empty.
      CheckpointError: no run there, or a damaged one.
    """
    check_new(out)
    config = read_config(run)
    save_merged(run, out)
    return config.lora.rank if "lora" in config else 0
