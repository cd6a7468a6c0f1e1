"""Writing the folder of a diffusers AmusedPipeline out of a run's networks.

Source: docs/models/muse.md 2.1.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paella_jax.convert.amused import uvit_diffusers_config
from paella_jax.convert.amused_folder import (
    CLASSES,
    INDEX,
    SCHEDULER,
    SCHEDULER_CONFIG,
    TEXT_ENCODER,
    TOKENIZER,
    TOKENIZER_FILES,
    TRANSFORMER,
    VQVAE,
    model_index,
    scheduler_config,
)
from paella_jax.convert.vqmodel import export_vqmodel, vqmodel_diffusers_config
from paella_jax.encoders.clip_transformer import tower_config
from paella_jax.encoders.clip_weights import TEXT, export_clip_text, load_clip_text_folder
from paella_jax.files import hf_folder
from paella_jax.files.safetensors_file import write_safetensors
from paella_jax.files.weights_file import DIFFUSERS_WEIGHTS
from paella_jax.models.uvit import UViT
from paella_jax.models.vqmodel import VQModel

TEXT_CLASS = CLASSES[TEXT_ENCODER][1]


class AmusedRun(NamedTuple):
    """What a run holds of a pipeline.

    Attributes:
      transformer: its network.
      sample_size: side of its training images' token map.
      schedule: of its sampler.
      vqvae: tokenizer and its parameters; None where the run carries none.
      clip: folder of the text encoder and its tokenizer; None where the run carries none.
    """

    transformer: UViT
    sample_size: int
    schedule: str
    vqvae: tuple[VQModel, Mapping[str, Any]] | None
    clip: Path | None

    @property
    def missing(self) -> list[str]:
        """Parts of the pipeline that the run does not carry."""
        absent = [] if self.vqvae is not None else [VQVAE]
        return absent if self.clip is not None else [*absent, TEXT_ENCODER, TOKENIZER]


def amused_configs(run: AmusedRun) -> dict[str, dict[str, Any]]:
    """File in the folder -> its JSON. The index is there only where every part is.

    Raises:
      ConversionError, ValueError: networks or a schedule that diffusers' classes cannot be.
    """
    configs = {
        f"{TRANSFORMER}/{hf_folder.CONFIG}": uvit_diffusers_config(
            run.transformer, run.sample_size
        ),
        f"{SCHEDULER}/{SCHEDULER_CONFIG}": scheduler_config(
            run.schedule, run.transformer.mask_token
        ),
    }
    if run.vqvae is not None:
        configs[f"{VQVAE}/{hf_folder.CONFIG}"] = vqmodel_diffusers_config(run.vqvae[0])
    if not run.missing:
        configs[INDEX] = model_index()
    return configs


def write_amused_folder(
    run: AmusedRun,
    out: Path,
    tensors: Mapping[str, np.ndarray],
    dtype: np.dtype | None = None,
    report: Callable[[int], object] | None = None,
) -> None:
    """Writes the transformer and every part that the run carries.

    Args:
      run: what it holds.
      out: folder, made here.
      tensors: the transformer's, by diffusers' names.
      dtype: to store the transformer in; the other parts stay as the run has them.
      report: called with the bytes of each of the transformer's tensors.

    Raises:
      ConversionError: values do not fit `dtype`.
    """
    configs = amused_configs(run)
    write_safetensors(out / TRANSFORMER / DIFFUSERS_WEIGHTS, tensors, dtype, report)
    if run.vqvae is not None:
        model, params = run.vqvae
        file = out / VQVAE / DIFFUSERS_WEIGHTS
        write_safetensors(file, export_vqmodel(params, model, copy=False))
    if run.clip is not None:
        _write_text_encoder(run.clip, out)
    for name, config in configs.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(json.dumps(config, indent=2))


def _write_text_encoder(clip: Path, out: Path) -> None:
    """Copies the text tower and the tokenizer's files; of both towers only the text's is kept."""
    text, tokenizer = out / TEXT_ENCODER, out / TOKENIZER
    for folder in (text, tokenizer):
        folder.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        if (clip / name).is_file():
            shutil.copy(clip / name, tokenizer / name)
    config = hf_folder.read_config(clip)
    if config.get("model_type") != "clip":
        others = (*TOKENIZER_FILES, "README.md")
        for file in clip.iterdir():
            if file.is_file() and file.name not in others:
                shutil.copy(file, text / file.name)
        return
    fields, projection = tower_config(config, "text")
    module, params = load_clip_text_folder(clip)
    write_safetensors(text / hf_folder.WEIGHTS[0], export_clip_text(params, module, TEXT))
    fields = {
        **fields,
        "architectures": [TEXT_CLASS],
        "model_type": "clip_text_model",
        "projection_dim": projection,
    }
    (text / hf_folder.CONFIG).write_text(json.dumps(fields, indent=2))
