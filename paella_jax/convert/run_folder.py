"""Converted weights as a run folder, which loads, samples and fine-tunes like a trained run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import clip_prior as clip_prior_configs
from configs import paella as paella_configs
from configs import vqgan as vqgan_configs
from paella_jax.config import apply_override, to_json
from paella_jax.convert import hf_folder
from paella_jax.convert.clip_prior import import_clip_prior, infer_clip_prior
from paella_jax.convert.infer import check_family
from paella_jax.convert.paella import condition_widths, import_paella, infer_paella
from paella_jax.convert.safetensors_file import write_safetensors
from paella_jax.convert.tensors import ConversionError, Weights, flatten
from paella_jax.convert.vqgan import (
    DIFFUSERS_CLASS,
    has_diffusers_names,
    import_vqgan,
    infer_vqgan,
    vqgan_from_diffusers_config,
)
from paella_jax.families.paella import prepare_frozen
from paella_jax.models.clip_prior import ClipPrior
from paella_jax.models.paella import Paella
from paella_jax.models.vqgan import VQGAN
from paella_jax.training.checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    read_config,
    write_atomically,
)

Tree = Any
CARD_FILE = "README.md"
# The presets of the released networks, whose fields stand where the weights do not tell.
PRESETS: dict[str, tuple[Callable[[str], ConfigDict], str]] = {
    "paella": (paella_configs.get_config, "1b"),
    "vqgan": (vqgan_configs.get_config, "f4"),
    "clip_prior": (clip_prior_configs.get_config, "released"),
}
# Where a field's value is from.
SHAPES, JSON, COMMAND, DEFAULT = "the weights", "its config.json", "the command line", "default"


class Conversion(NamedTuple):
    """What a weights file becomes; nothing of it is read yet.

    Attributes:
      family: a key of PRESETS.
      config: of the run folder.
      tree: {"params": ..., "model_state": ...}, views of the mapped file.
      origins: config field of the network -> where its value is from.
    """

    family: str
    config: ConfigDict
    tree: Tree
    origins: dict[str, str]

    def arrays(self) -> dict[str, np.ndarray]:
        """The tree by path, as the run folder stores it."""
        return {"/".join(path): array for path, array in flatten(self.tree).items()}

    def parameter_count(self) -> int:
        """Number of trained scalars."""
        return sum(array.size for array in flatten(self.tree["params"]).values())


def plan_conversion(
    weights: Weights, family: str, overrides: Sequence[str] = (), dtype: np.dtype | None = None
) -> Conversion:
    """Config and renamed tensors, every misfit found before anything is read or written.

    Args:
      weights: an opened file.
      family: paella, vqgan or clip_prior.
      overrides: `--config.a.b=value`; they win over what the shapes say.
      dtype: what the weights will be stored in; None for the file's own.

    Raises:
      ConversionError: the file is of another family, or does not fit; all misfits are listed.
      ConfigError: an override names no field, or has another type.
    """
    check_family(weights, family)
    get_config, preset = PRESETS[family]
    config = get_config(preset)
    origins = {f"model.{name}": DEFAULT for name in config.model}
    found = _found(weights, family)
    if family == "paella" and "model.num_heads" not in found:
        config.model.num_heads = None
    for name, (value, origin) in found.items():
        *parents, last = name.split(".")
        block = config
        for parent in parents:
            block = block[parent]
        block[last], origins[name] = value, origin
    stored = dtype or next(iter(weights.values())).dtype
    config.precision = "bfloat16" if stored == jnp.bfloat16 else "float32"
    origins["precision"] = DEFAULT
    for override in overrides:
        apply_override(config, override)
        field = override.removeprefix("--").removeprefix("config.").partition("=")[0]
        origins[field] = COMMAND
    if family == "paella":
        _settle_paella(config)
    with hf_folder.errors_name(weights.files[0]):
        return Conversion(family, config, _import(weights, family, config), origins)


def _found(weights: Weights, family: str) -> dict[str, tuple[Any, str]]:
    """Config field -> its value and where that is from."""
    infer = {"paella": infer_paella, "vqgan": infer_vqgan, "clip_prior": infer_clip_prior}
    with hf_folder.errors_name(weights.files[0]):
        fields = infer[family](weights)
        found = {f"model.{name}": (value, SHAPES) for name, value in fields.items()}
        if "num_heads" in fields:
            found["model.num_heads"] = (fields["num_heads"], DEFAULT)  # of the released width
        if family == "paella":
            found["text.width"] = (condition_widths(weights)[0], SHAPES)
    config_file = weights.files[0].parent / hf_folder.CONFIG
    if family == "vqgan" and has_diffusers_names(weights) and config_file.is_file():
        found["model.scale_factor"] = (_diffusers_scale(config_file), JSON)
    return found


def _diffusers_scale(file: Path) -> float:
    config = hf_folder.read_json(file)
    if config.get("_class_name") != DIFFUSERS_CLASS:
        raise ConversionError(
            f"{file} is of a {config.get('_class_name')!r}, not of a {DIFFUSERS_CLASS}"
        )
    with hf_folder.errors_name(file):
        try:
            return float(vqgan_from_diffusers_config(config).scale_factor)
        except KeyError as error:
            raise ConversionError(f"has no field {error}; download it again") from error


def _settle_paella(config: ConfigDict) -> None:
    """Raises ConversionError where the heads are unknown; chooses the image encoder."""
    if config.model.num_heads is None:
        raise ConversionError(
            f"the weights do not tell the number of attention heads, and widths "
            f"{config.model.widths} of levels {config.model.patterns} do not divide into heads of "
            "80 as the released model's; give --config.model.num_heads=(...), one number per "
            "level, 0 where there is no A"
        )
    config.image_encoder.kind = "clip" if config.clip.folder else "none"


def _import(weights: Weights, family: str, config: ConfigDict) -> Tree:
    if family == "paella":
        params = import_paella(weights, Paella(**config.model))
        return {"params": {"predictor": params}, "model_state": {}}
    if family == "clip_prior":
        params = import_clip_prior(weights, ClipPrior(**config.model))
        return {"params": {"prior": params}, "model_state": {}}
    variables = import_vqgan(weights, VQGAN(**config.model), has_diffusers_names(weights))
    # In further training no code counts as dead before it has been watched for a while.
    codes = {
        "usage": np.ones(config.model.codebook_size, np.float32),
        "candidates": np.zeros_like(variables["params"]["codebook"], np.float32),
    }
    state = {"vqgan": variables["batch_stats"], "codes": codes}
    return {"params": {"vqgan": variables["params"]}, "model_state": state}


def check_frozen(conversion: Conversion, weights: Weights) -> None:
    """Checks the networks that a Paella takes along, by their configs only.

    Raises:
      ConversionError: folders given for another family or without a tokenizer, not there, or of
        other widths than the weights.
      CheckpointError: the tokenizer is no run folder.
    """
    if conversion.family != "paella":
        return
    config = conversion.config
    given = {"--text": config.text.folder, "--clip": config.clip.folder}
    if not config.tokenizer:
        options = [option for option, folder in given.items() if folder]
        if options:
            raise ConversionError(
                f"{' and '.join(options)} needs --tokenizer too: networks are carried together"
            )
        return
    tokenizer = read_config(config.tokenizer)
    codes = tokenizer.model.get("codebook_size") if tokenizer.method == "vqgan" else None
    if codes != config.model.codebook_size:
        raise ConversionError(
            f"--tokenizer {config.tokenizer} is a {tokenizer.method} with {codes} codes, the "
            f"weights need a vqgan with {config.model.codebook_size}"
        )
    widths = dict(zip(given, condition_widths(weights), strict=True))
    for (option, folder), field in zip(given.items(), ("d_model", "projection_dim"), strict=True):
        if folder:
            _check_width(option, folder, field, widths[option])


def _check_width(option: str, folder: str, field: str, needed: int | None) -> None:
    try:
        width = hf_folder.read_config(Path(folder)).get(field)
    except FileNotFoundError as error:
        raise ConversionError(f"{option}: {error}") from error
    if needed is None:
        raise ConversionError(f"{option} {folder}: these weights have no layers for it")
    if width != needed:
        raise ConversionError(
            f"{option} {folder} has {field} {width}, the weights were trained with {needed}"
        )


def check_new(out: Path) -> None:
    """Raises ConversionError where `out` holds something already, or cannot be written."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConversionError(f"{out} is not empty; choose a new --out")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConversionError(f"cannot write to {out}: {error}; choose another --out") from error


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
    check_new(out)
    out = out.absolute()
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        write_safetensors(part / WEIGHTS_FILE, conversion.arrays(), dtype, report)
        if conversion.family == "paella" and conversion.config.tokenizer:
            prepare_frozen(conversion.config, part)
        write_atomically(part / CARD_FILE, card)
        write_atomically(part / CONFIG_FILE, to_json(conversion.config))
        part.replace(out)
    except OSError as error:
        raise ConversionError(f"cannot write {out}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
