"""Converted weights as a run folder, which loads, samples and fine-tunes like a trained run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from paella_jax.config import to_json
from paella_jax.convert.frozen import carry_frozen
from paella_jax.convert.plan import Conversion
from paella_jax.convert.safetensors_file import write_safetensors
from paella_jax.convert.tensors import ConversionError
from paella_jax.training.checkpoint import CONFIG_FILE, WEIGHTS_FILE, write_atomically

CARD_FILE = "README.md"


def check_new(out: Path) -> None:
    """Raises ConversionError where `out` holds something already, or cannot be written."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConversionError(f"{out} is not empty; choose a new --out")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConversionError(f"cannot write to {out}: {error}; choose another --out") from error


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` at the end, whole or not at all.

    Raises:
      ConversionError: `out` is not empty, or the disk is full.
    """
    check_new(out)
    out = out.absolute()
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        yield part
        part.replace(out)
    except OSError as error:
        raise ConversionError(f"cannot write {out}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_run_folder(
    conversion: Conversion,
    out: Path,
    card: str,
    dtype: np.dtype | None = None,
    report: Callable[[int], object] | None = None,
) -> None:
    """Writes weights (one tensor in memory at a time), frozen networks, card and config.

    The folder appears whole or not at all; `report` is called with the bytes of each tensor.

    Raises:
      ConversionError: `out` is not empty, the disk is full, or values do not fit `dtype`.
    """
    with whole_folder(out) as part:
        write_safetensors(part / WEIGHTS_FILE, conversion.arrays(), dtype, report)
        carry_frozen(conversion, part)
        write_atomically(part / CARD_FILE, card)
        write_atomically(part / CONFIG_FILE, to_json(conversion.config))
