"""A run folder made of two others: their weights interpolated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from paella_jax.config import flatten_config, to_json
from paella_jax.files.atomic import CARD_FILE, whole_folder, write_atomically
from paella_jax.files.safetensors_file import write_safetensors
from paella_jax.files.tensors import ConversionError
from paella_jax.runs.derive import describes_networks, is_free, restore_all, settled
from paella_jax.runs.digests import note_files
from paella_jax.runs.folder import CONFIG_FILE, WEIGHTS_FILE, read_config
from paella_jax.runs.frozen import CARRIED, COMPRESSOR, copy_frozen, place_of
from paella_jax.runs.weights import load_tree
from paella_jax.typing import Tree

# Beside what fine-tuning compares: Stage B's compressor, but for how it trains.
COMPARED = ("compressor.", "method")
UNCOMPARED = {"compressor.run", "compressor.stochastic_depth"}
SPACES = ("tokenizer", "low_tokenizer", COMPRESSOR)  # frozen networks that give tokens and latents
CARD = """# Interpolated weights of method {method}

Every weight is {rest:g} of `{names[0]}` + {share:g} of `{names[1]}`, written by
`python -m paella_jax.convert --interpolate`. The frozen networks are those of `{names[0]}`.

The terms of both go on holding.
"""


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
      ConversionError: a share outside [0, 1], other networks (all differences are listed), other
        frozen tokenizers or compressors, or `out` is not empty.
      CheckpointError: no run there, or a damaged one.
    """
    if not 0.0 <= share <= 1.0:
        raise ConversionError(f"--share must be in [0, 1], got {share}")
    config, other = read_config(first), read_config(second)
    _refuse((first, second), _networks(config), _networks(other), "(absent)", repr)
    parts = "params", "model_state"
    trees = (restore_all(*run)[1:] for run in ((first, config), (second, other)))
    a, b = (flatten_dict(dict(zip(parts, tree, strict=True)), sep="/") for tree in trees)
    shapes = lambda arrays: {name: list(x.shape) for name, x in arrays.items()}
    _refuse((first, second), shapes(a), shapes(b), "absent", str)
    _check_spaces(first, second)
    mixed = {name: _mix(a[name], b[name], share) for name in a}
    names = [Path(run).absolute().name for run in (first, second)]
    with whole_folder(out) as part:
        write_safetensors(part / WEIGHTS_FILE, mixed, digests=True)
        copy_frozen(first, part, leave_out=["base"])
        card = CARD.format(method=config.method, share=share, rest=1 - share, names=names)
        write_atomically(part / CARD_FILE, card)
        write_atomically(part / CONFIG_FILE, to_json(settled(config)))
        note_files(part)
    return len(mixed)


def _networks(config: ConfigDict) -> dict[str, Any]:
    """Fields that say what the networks are; where their frozen parts came from does not count."""
    told = lambda name: describes_networks(name) and not is_free(name)
    more = lambda name: name.startswith(COMPARED) and name not in UNCOMPARED
    compared = lambda name: (told(name) or more(name)) and not name.endswith(".folder")
    return {name: value for name, value in flatten_config(config).items() if compared(name)}


def _check_spaces(first: str | Path, second: str | Path) -> None:
    """Raises ConversionError where two runs' tokens or latents do not mean the same images."""
    for part in SPACES:
        marks = [place_of(part, run) for run in (first, second)]
        files = [mark.with_suffix(".safetensors") for mark in marks]
        if not all(file.is_file() for file in files):
            continue  # what the first does not carry is given to the result like any other's
        ours, theirs = (flatten_dict(load_tree(file), sep="/") for file in files)
        same = ours.keys() == theirs.keys()
        differing = [n for n in ours if same and not np.array_equal(ours[n], theirs[n])]
        if differing or not same:
            named = f" (as in {differing[0]})" if differing else ""
            raise ConversionError(
                f"{first} and {second} carry different frozen networks, {files[0].name} has other "
                f"values{named}: what one draws is read otherwise by the other's; only runs on the "
                f"same {CARRIED[part].name} can be interpolated"
            )


def _refuse(runs: tuple[Any, Any], a: Tree, b: Tree, absent: str, shown: Callable) -> None:
    """Refuses two runs by what differs in `a` and `b`."""
    names = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    text = lambda tree, name: shown(tree.get(name, absent))
    if differing := [f"{name}: {text(a, name)} -> {text(b, name)}" for name in names]:
        raise ConversionError(
            f"{runs[0]} and {runs[1]} hold other networks, only runs of the same can be "
            "interpolated (first -> second):\n  " + "\n  ".join(differing)
        )


def _mix(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    if a.dtype.kind in "biu":
        return a
    # Not a + share * (b - a), so that both ends are exact.
    mixed = np.float32(1 - share) * a.astype(np.float32) + np.float32(share) * b.astype(np.float32)
    return mixed.astype(a.dtype)
