"""A run's weights in the published formats: original PyTorch names, or a diffusers folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from paella_jax.convert.amused import export_uvit
from paella_jax.convert.amused_config import (
    RELEASED_DOWNSAMPLING,
    check_published,
    make_uvit,
    text_widths,
    uvit_of_run,
)
from paella_jax.convert.amused_export import AmusedRun, amused_configs, write_amused_folder
from paella_jax.convert.clip_prior import clip_prior_entries
from paella_jax.convert.compressor import export_compressor
from paella_jax.convert.diffusers_config import diffusers_stage_b_config, diffusers_stage_c_config
from paella_jax.convert.infer import MARKS, article
from paella_jax.convert.paella import export_paella
from paella_jax.convert.plan import run_family
from paella_jax.convert.vqgan import diffusers_config, export_vqgan
from paella_jax.convert.vqmodel import export_vqmodel, vqmodel_diffusers_config
from paella_jax.convert.wuerstchen import TEXT_B, TEXT_C, export_stage_b, export_stage_c, text_width
from paella_jax.families.clip_prior import make_clip_prior
from paella_jax.families.stage_b import compressor_variables, make_compressor
from paella_jax.families.tokens import CLIP
from paella_jax.families.vqgan import load_carried_tokenizer, load_vqgan_run, make_vqgan
from paella_jax.files.atomic import write_atomically
from paella_jax.files.hf_folder import CONFIG
from paella_jax.files.safetensors_file import write_safetensors
from paella_jax.files.tensors import ConversionError, export_tensors
from paella_jax.files.weights_file import DIFFUSERS_WEIGHTS
from paella_jax.models.paella import Paella
from paella_jax.models.stage_b import StageB
from paella_jax.models.stage_c import StageC
from paella_jax.models.uvit import UViT
from paella_jax.models.vqmodel import VQModel
from paella_jax.runs.checkpoint import restore_variables
from paella_jax.runs.derive import restore_trained
from paella_jax.runs.folder import read_config
from paella_jax.runs.whole_folder import whole_folder

FORMS = ("original", "diffusers", "compressor")
# Which runs have a diffusers class.
DIFFUSERS_FAMILIES = ("vqgan", "stage_b", "stage_c", "amused")


def exported_tensors(checkpoint: str | Path, form: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """PyTorch name -> view of a run's newest weights (averaged ones if any, LoRA merged).

    Args:
      checkpoint: run folder, trained or converted.
      form: original; for a vqgan, an amused and Würstchen's stages also diffusers (for an amused
        and a ResNet vqgan only that); for a Stage B also compressor, the original names of its
        semantic compressor.

    Returns:
      The tensors, of an amused its transformer's, and the names of networks of the run that the
      format has no place for.

    Raises:
      CheckpointError: no run there, or a damaged one.
      ConversionError: the format cannot hold this run.
    """
    config = read_config(checkpoint)
    family, diffusers = run_family(config), form == "diffusers"
    if family not in MARKS:
        raise ConversionError(f"{checkpoint} is a {family!r}, which has no published format")
    if diffusers and family not in DIFFUSERS_FAMILIES:
        raise ConversionError(
            f"--export diffusers exists for {', '.join(DIFFUSERS_FAMILIES)} only, {checkpoint} is "
            f"{article(family)}; use --export original"
        )
    if form == "compressor":
        if family != "stage_b":
            raise ConversionError(
                f"--export compressor exists for a stage_b only, {checkpoint} is {article(family)}"
            )
        model, variables = make_compressor(config), compressor_variables(checkpoint)
        return export_compressor(variables, model, copy=False), []
    if family == "vqgan":
        return _vqgan_tensors(checkpoint, diffusers), []
    if family == "clip_prior":
        params = restore_variables(checkpoint)[1]["params"]
        entries = clip_prior_entries(make_clip_prior(config))
        return export_tensors(entries, params["prior"], copy=False), []
    _check_cell_is_published(config, family)
    if family == "amused" and not diffusers:
        raise ConversionError(_only_diffusers(checkpoint, "an amused"))
    params = restore_trained(checkpoint, config)
    own = "predictor" if family in ("paella", "amused") else family
    left = sorted(name for name in params if name != own)
    if family == "amused":
        run = _amused_run(checkpoint, config, uvit_of_run(params[own], config))
        amused_configs(run)  # networks that cannot be one are refused now
        return export_uvit(params[own], run.transformer, copy=False), left
    if family == "paella":
        return export_paella(params[own], Paella(**config.model), copy=False), left
    if family == "stage_b":
        tensors = export_stage_b(params[own], StageB(**config.model), diffusers, copy=False)
    else:
        tensors = export_stage_c(params[own], StageC(**config.model), diffusers, copy=False)
    if diffusers:
        _diffusers_config(config, tensors)  # a network that cannot be one is refused now
    return tensors, left


def _vqgan_tensors(checkpoint: str | Path, diffusers: bool) -> dict[str, np.ndarray]:
    _, model, variables = load_vqgan_run(checkpoint)
    if not isinstance(model, VQModel):
        return export_vqgan(variables, model, diffusers, copy=False)
    if not diffusers:
        raise ConversionError(_only_diffusers(checkpoint, "a vqgan of architecture 'resnet'"))
    vqmodel_diffusers_config(model)  # one that cannot be one is refused now
    return export_vqmodel(variables["params"], model, copy=False)


def _only_diffusers(checkpoint: str | Path, what: str) -> str:
    return f"{checkpoint} is {what}, which has diffusers' names only; use --export diffusers"


def _check_cell_is_published(config: ConfigDict, family: str) -> None:
    """Raises ConversionError for cells that no published network is."""
    if family == "amused":
        check_published(config)
    # Configs older than the choice have no such block.
    corruption = config.get("cell", {}).get("corruption", "uniform")
    if family == "paella" and corruption != "uniform":
        raise ConversionError(
            f"cell.corruption is {corruption!r}, the original Paella has no mask: this "
            "run has no published format"
        )


def _amused_run(checkpoint: str | Path, config: ConfigDict, transformer: UViT) -> AmusedRun:
    """What a run carries of a pipeline.

    Raises:
      ConversionError: its tokenizer is not a VQModel.
    """
    frozen, vqvae, pixels = Path(checkpoint) / "frozen", None, RELEASED_DOWNSAMPLING
    if (frozen / "vqgan.json").is_file():
        model, variables = load_carried_tokenizer(Path(checkpoint))
        if not isinstance(model, VQModel):
            raise ConversionError(
                f"{checkpoint} carries a tokenizer of architecture 'paella', diffusers' "
                "AmusedPipeline takes a 'resnet' only"
            )
        vqvae, pixels = (model, variables["params"]), model.downsampling
    clip = frozen / CLIP if (frozen / CLIP).is_dir() else None
    side = config.data.image_size // pixels
    return AmusedRun(transformer, side, config.sampler.schedule, vqvae, clip)


def write_export(
    checkpoint: str | Path,
    out: Path,
    form: str,
    tensors: dict[str, np.ndarray],
    dtype: np.dtype | None = None,
    report: Callable[[int], object] | None = None,
) -> list[str]:
    """Writes `exported_tensors` to a safetensors file, or for diffusers to a folder.

    An amused's folder is a whole pipeline; `dtype` is for its transformer alone.

    Returns:
      Parts of that pipeline which the run does not carry, so that the folder lacks them.

    Raises:
      ConversionError: values do not fit `dtype`, or the disk is full.
    """
    if form != "diffusers":
        try:
            write_safetensors(out, tensors, dtype, report)
        except OSError as error:
            raise ConversionError(f"cannot write {out}: {error}") from error
        return []
    config = read_config(checkpoint)
    with whole_folder(out) as part:
        if run_family(config) == "amused":
            model = make_uvit(config, *text_widths(tensors, config))
            run = _amused_run(checkpoint, config, model)
            write_amused_folder(run, part, tensors, dtype, report)
            return run.missing
        write_safetensors(part / DIFFUSERS_WEIGHTS, tensors, dtype, report)
        text = json.dumps(_diffusers_config(config, tensors), indent=2)
        write_atomically(part / CONFIG, text)
    return []


def _diffusers_config(config: ConfigDict, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """config.json of exported tensors."""
    if config.method == "vqgan":
        model = make_vqgan(config)
        is_resnet = isinstance(model, VQModel)
        return vqmodel_diffusers_config(model) if is_resnet else diffusers_config(model)
    if config.method == "stage_b":
        return diffusers_stage_b_config(StageB(**config.model), text_width(tensors, TEXT_B))
    return diffusers_stage_c_config(StageC(**config.model), text_width(tensors, TEXT_C))
