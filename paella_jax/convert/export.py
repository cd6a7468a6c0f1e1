"""A run's weights in the published formats: original PyTorch names, or a diffusers folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from paella_jax.convert.clip_prior import clip_prior_entries
from paella_jax.convert.hf_folder import CONFIG
from paella_jax.convert.paella import export_paella
from paella_jax.convert.safetensors_file import write_safetensors
from paella_jax.convert.tensors import ConversionError, export_tensors
from paella_jax.convert.vqgan import diffusers_config, export_vqgan
from paella_jax.families.clip_prior import make_clip_prior
from paella_jax.families.finetune import restore_trained
from paella_jax.families.vqgan import load_vqgan_run
from paella_jax.models.paella import Paella
from paella_jax.training.checkpoint import read_config, restore_variables, write_atomically

Tree = Any
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"


def exported_tensors(checkpoint: str | Path, form: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """PyTorch name -> view of a run's newest weights (averaged ones if any, LoRA merged).

    Args:
      checkpoint: run folder, trained or converted.
      form: original, or for a vqgan also diffusers.

    Returns:
      The tensors, and the names of networks of the run that the format has no place for.

    Raises:
      CheckpointError: no run there, or a damaged one.
      ConversionError: the format cannot hold this run.
    """
    config = read_config(checkpoint)
    if form == "diffusers" and config.method != "vqgan":
        raise ConversionError(
            f"--export diffusers exists for a vqgan only, {checkpoint} is a {config.method}; use "
            "--export original"
        )
    if config.method == "vqgan":
        _, model, variables = load_vqgan_run(checkpoint)
        return export_vqgan(variables, model, form == "diffusers", copy=False), []
    if config.method == "clip_prior":
        params = restore_variables(checkpoint)[1]["params"]
        entries = clip_prior_entries(make_clip_prior(config))
        return export_tensors(entries, params["prior"], copy=False), []
    if config.method == "paella":
        params = restore_trained(checkpoint, config)
        left = sorted(name for name in params if name != "predictor")
        return export_paella(params["predictor"], Paella(**config.model), copy=False), left
    raise ConversionError(f"{checkpoint} is a {config.method!r}, which has no published format")


def write_export(
    checkpoint: str | Path,
    out: Path,
    form: str,
    tensors: dict[str, np.ndarray],
    dtype: np.dtype | None = None,
    report: Callable[[int], object] | None = None,
) -> None:
    """Writes `exported_tensors` to a safetensors file, or for diffusers to a folder.

    Raises:
      ConversionError: values do not fit `dtype`, or the disk is full.
    """
    try:
        file = out / DIFFUSERS_WEIGHTS if form == "diffusers" else out
        write_safetensors(file, tensors, dtype, report)
        if form == "diffusers":
            _, model, _ = load_vqgan_run(checkpoint)
            write_atomically(out / CONFIG, json.dumps(diffusers_config(model), indent=2))
    except OSError as error:
        raise ConversionError(f"cannot write {out}: {error}") from error
