"""A run's weights in the published formats: original PyTorch names, or a diffusers folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from paella_jax.convert.recognise import RECORDS, record_of, run_family
from paella_jax.convert.released import Released, article
from paella_jax.files.atomic import whole_folder, write_atomically
from paella_jax.files.safetensors_file import write_safetensors
from paella_jax.files.tensors import ConversionError
from paella_jax.files.weights_file import CONFIG, DIFFUSERS_WEIGHTS
from paella_jax.runs.checkpoint import restore_variables
from paella_jax.runs.derive import restore_trained
from paella_jax.runs.folder import read_config
from paella_jax.typing import Tree

ORIGINAL, DIFFUSERS = "original", "diffusers"
FORMS = (ORIGINAL, DIFFUSERS, *(r.beside.name for r in RECORDS if r.beside is not None))


def exported_tensors(checkpoint: str | Path, form: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """PyTorch name -> view of a run's newest weights (averaged ones if any, LoRA merged).

    Args:
      checkpoint: run folder, trained or converted.
      form: original or diffusers, see `Released.forms`; or the name of a second network, in its
        original names.

    Returns:
      The tensors, of a pipeline its transformer's, and the names of networks of the run that the
      format has no place for.

    Raises:
      CheckpointError: no run there, or a damaged one.
      ConversionError: the format cannot hold this run.
    """
    config = read_config(checkpoint)
    record, family = record_of(config), run_family(config)
    if record is None:
        raise ConversionError(f"{checkpoint} is a {family!r}, which has no published format")
    ordered = sorted(RECORDS, key=lambda known: len(known.needs))  # what stands alone comes first
    able = list(dict.fromkeys(known.family for known in ordered if DIFFUSERS in known.forms))
    if form == DIFFUSERS and family not in able:
        raise ConversionError(
            f"--export diffusers exists for {', '.join(able)} only, {checkpoint} is "
            f"{article(family)}; use --export original"
        )
    if form not in (ORIGINAL, DIFFUSERS):
        return _beside_tensors(checkpoint, form, config), []
    record.check_run(config)
    if form not in record.forms:
        architecture = record.runs.get("architecture")
        what = article(family) + (f" of architecture {architecture!r}" if architecture else "")
        raise ConversionError(
            f"{checkpoint} is {what}, which has diffusers' names only; use --export diffusers"
        )
    params, variables = _restore(checkpoint, config, record)
    known = (record.own, *record.training_only)
    left = sorted(name for name in params if name not in known)
    diffusers, model = form == DIFFUSERS, record.make(config)
    tensors = record.names.save(variables, model, diffusers, copy=False)
    if diffusers:
        _configs(checkpoint, config, record, tensors)  # a network that cannot be one is refused now
    return tensors, left


def _beside_tensors(checkpoint: str | Path, form: str, config: ConfigDict) -> dict[str, np.ndarray]:
    owner = next(r for r in RECORDS if r.beside is not None and r.beside.name == form)
    if not owner.is_of(config) or owner.beside is None:
        raise ConversionError(
            f"--export {form} exists for {article(owner.family)} only, {checkpoint} is "
            f"{article(run_family(config))}"
        )
    variables = owner.beside.of_run(checkpoint)
    return owner.beside.names.save(variables, owner.beside.make(config), copy=False)


def _restore(checkpoint: str | Path, config: ConfigDict, record: Released) -> tuple[Tree, Tree]:
    """A run's parameters, and what of them `record.names` are the names of."""
    params = restore_trained(checkpoint, config)
    if record.of_run is None:
        return params, params[record.own]
    return params, record.of_run(params, restore_variables(checkpoint)[1]["model_state"])


def _configs(
    checkpoint: str | Path, config: ConfigDict, record: Released, tensors: dict[str, np.ndarray]
) -> Any:
    """config.json of exported tensors; of a pipeline's folder, what the run holds of it."""
    model = record.make(config, tensors)
    assert record.foreign is not None
    if record.open_run is not None:
        return record.open_run(checkpoint, config, model, record.foreign)
    return record.foreign.write(model, **record.write_told(config, tensors))


def write_export(
    checkpoint: str | Path,
    out: Path,
    form: str,
    tensors: dict[str, np.ndarray],
    dtype: np.dtype | None = None,
    report: Callable[[int], object] | None = None,
) -> list[str]:
    """Writes `exported_tensors` to a safetensors file, or for diffusers to a folder.

    A pipeline's folder is written whole; `dtype` is for its transformer alone.

    Returns:
      Parts of that pipeline which the run does not carry, so that the folder lacks them.

    Raises:
      ConversionError: values do not fit `dtype`, or the disk is full.
    """
    if form != DIFFUSERS:
        try:
            write_safetensors(out, tensors, dtype, report)
        except OSError as error:
            raise ConversionError(f"cannot write {out}: {error}") from error
        return []
    config = read_config(checkpoint)
    record = record_of(config)
    assert record is not None
    with whole_folder(out) as part:
        content = _configs(checkpoint, config, record, tensors)
        if record.open_run is not None:
            return content.write(part, tensors, dtype, report)
        write_safetensors(part / DIFFUSERS_WEIGHTS, tensors, dtype, report)
        write_atomically(part / CONFIG, json.dumps(content, indent=2))
    return []
