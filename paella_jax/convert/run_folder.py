"""Converted weights as a run folder, which loads, samples and fine-tunes like a trained run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from paella_jax.config import to_json
from paella_jax.convert.frozen import carry_frozen
from paella_jax.convert.plan import Conversion
from paella_jax.files.atomic import write_atomically
from paella_jax.files.safetensors_file import write_safetensors
from paella_jax.runs.folder import CONFIG_FILE, WEIGHTS_FILE
from paella_jax.runs.whole_folder import CARD_FILE, whole_folder


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
