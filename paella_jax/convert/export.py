"""A run's weights in the published formats: original PyTorch names, or a diffusers folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from paella_jax.convert.clip_prior import clip_prior_entries
from paella_jax.convert.compressor import export_compressor
from paella_jax.convert.diffusers_config import diffusers_stage_b_config, diffusers_stage_c_config
from paella_jax.convert.hf_folder import CONFIG
from paella_jax.convert.paella import export_paella
from paella_jax.convert.safetensors_file import write_safetensors
from paella_jax.convert.tensors import ConversionError, export_tensors
from paella_jax.convert.vqgan import diffusers_config, export_vqgan
from paella_jax.convert.wuerstchen import TEXT_B, TEXT_C, export_stage_b, export_stage_c, text_width
from paella_jax.families.clip_prior import make_clip_prior
from paella_jax.families.finetune import restore_trained
from paella_jax.families.stage_b import compressor_variables, make_compressor
from paella_jax.families.vqgan import load_vqgan_run, make_vqgan
from paella_jax.models.paella import Paella
from paella_jax.models.stage_b import StageB
from paella_jax.models.stage_c import StageC
from paella_jax.training.checkpoint import read_config, restore_variables, write_atomically

Tree = Any
FORMS = ("original", "diffusers", "compressor")
# Which runs have a diffusers class, and which hold a compressor.
DIFFUSERS_FAMILIES = ("vqgan", "stage_b", "stage_c")
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"


def exported_tensors(checkpoint: str | Path, form: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """PyTorch name -> view of a run's newest weights (averaged ones if any, LoRA merged).

    Args:
      checkpoint: run folder, trained or converted.
      form: original; for a vqgan and Würstchen's stages also diffusers; for a Stage B also
        compressor, the original names of its semantic compressor.

    Returns:
      The tensors, and the names of networks of the run that the format has no place for.

    Raises:
      CheckpointError: no run there, or a damaged one.
      ConversionError: the format cannot hold this run.
    """
    config = read_config(checkpoint)
    family, diffusers = config.method, form == "diffusers"
    if diffusers and family not in DIFFUSERS_FAMILIES:
        raise ConversionError(
            f"--export diffusers exists for {', '.join(DIFFUSERS_FAMILIES)} only, {checkpoint} is "
            f"a {family}; use --export original"
        )
    if form == "compressor":
        if family != "stage_b":
            raise ConversionError(
                f"--export compressor exists for a stage_b only, {checkpoint} is a {family}"
            )
        model, variables = make_compressor(config), compressor_variables(checkpoint)
        return export_compressor(variables, model, copy=False), []
    if family == "vqgan":
        _, vqgan, variables = load_vqgan_run(checkpoint)
        return export_vqgan(variables, vqgan, diffusers, copy=False), []
    if family == "clip_prior":
        params = restore_variables(checkpoint)[1]["params"]
        entries = clip_prior_entries(make_clip_prior(config))
        return export_tensors(entries, params["prior"], copy=False), []
    if family not in ("paella", "stage_b", "stage_c"):
        raise ConversionError(f"{checkpoint} is a {family!r}, which has no published format")
    params = restore_trained(checkpoint, config)
    own = "predictor" if family == "paella" else family
    left = sorted(name for name in params if name != own)
    if family == "paella":
        return export_paella(params[own], Paella(**config.model), copy=False), left
    if family == "stage_b":
        tensors = export_stage_b(params[own], StageB(**config.model), diffusers, copy=False)
    else:
        tensors = export_stage_c(params[own], StageC(**config.model), diffusers, copy=False)
    if diffusers:
        _diffusers_config(checkpoint, tensors)  # a network that cannot be one is refused now
    return tensors, left


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
            config = _diffusers_config(checkpoint, tensors)
            write_atomically(out / CONFIG, json.dumps(config, indent=2))
    except OSError as error:
        raise ConversionError(f"cannot write {out}: {error}") from error


def _diffusers_config(checkpoint: str | Path, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """config.json of exported tensors."""
    config = read_config(checkpoint)
    if config.method == "vqgan":
        return diffusers_config(make_vqgan(config))
    if config.method == "stage_b":
        return diffusers_stage_b_config(StageB(**config.model), text_width(tensors, TEXT_B))
    return diffusers_stage_c_config(StageC(**config.model), text_width(tensors, TEXT_C))
