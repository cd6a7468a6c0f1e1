"""From opened weights to the config and parameters of a run folder, before anything is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import clip_prior as clip_prior_configs
from configs import paella as paella_configs
from configs import stage_b as stage_b_configs
from configs import stage_c as stage_c_configs
from configs import vqgan as vqgan_configs
from paella_jax.config import apply_override
from paella_jax.convert import hf_folder
from paella_jax.convert import paella as paella_names
from paella_jax.convert import wuerstchen as wuerstchen_names
from paella_jax.convert.clip_prior import import_clip_prior, infer_clip_prior
from paella_jax.convert.compressor import MAPPER, import_compressor, infer_compressor
from paella_jax.convert.diffusers_config import read_untold_fields
from paella_jax.convert.infer import check_family
from paella_jax.convert.paella import condition_widths, import_paella, infer_paella
from paella_jax.convert.parts import Parts
from paella_jax.convert.tensors import ConversionError, Weights, flatten
from paella_jax.convert.vqgan import (
    DIFFUSERS_CLASS,
    has_diffusers_names,
    import_vqgan,
    infer_vqgan,
    vqgan_from_diffusers_config,
)
from paella_jax.convert.wuerstchen import (
    import_stage_b,
    import_stage_c,
    infer_stage_b,
    infer_stage_c,
    is_diffusers,
)
from paella_jax.families.stage_b import COMPRESSOR, make_compressor
from paella_jax.models.clip_prior import ClipPrior
from paella_jax.models.paella import Paella
from paella_jax.models.stage_b import StageB
from paella_jax.models.stage_c import StageC
from paella_jax.models.vqgan import VQGAN
from paella_jax.training.checkpoint import read_config

Tree = Any
# Where a field's value is from.
SHAPES, JSON, COMMAND, DEFAULT = "the weights", "its config.json", "the command line", "default"
STAGE_B = "Stage B's run"
# Würstchen's released stages draw from 1024 pixels on (reference/wuerstchen.md 5.5).
RELEASED_PIXELS = 1024


class Conversion(NamedTuple):
    """What a weights file becomes; nothing of it is read yet.

    Attributes:
      family: a key of FAMILIES.
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


class Family(NamedTuple):
    """How weights of one kind are taken in.

    Attributes:
      get_config: of its config file.
      preset: of the released network, whose fields stand where the weights do not tell.
      infer: tensors -> fields of the network.
      build: tensors and config -> the run folder's tree.
      head_width: of the released network's attention; 0 without attention.
    """

    get_config: Callable[[str], ConfigDict]
    preset: str
    infer: Callable[[Weights], dict[str, Any]]
    build: Callable[[Weights, ConfigDict], Tree]
    head_width: int = 0


def plan_conversion(
    parts: Parts, overrides: Sequence[str] = (), dtype: np.dtype | None = None
) -> Conversion:
    """Config and renamed tensors, every misfit found before anything is read or written.

    Args:
      parts: opened files.
      overrides: `--config.a.b=value`; they win over what the shapes say.
      dtype: what the weights will be stored in; None for the file's own.

    Raises:
      ConversionError: the file is of another family, or does not fit; all misfits are listed.
      CheckpointError: the Stage B given for a Stage C is no run folder.
      ConfigError: an override names no field, or has another type.
    """
    family, weights, compressor = parts
    check_family(weights, family)
    kind = FAMILIES[family]
    config = kind.get_config(kind.preset)
    origins = {f"model.{name}": DEFAULT for name in config.model}
    field_of = lambda text: text.removeprefix("--").removeprefix("config.").partition("=")[0]
    named = {field_of(override) for override in overrides}
    found = _found(weights, family)
    if compressor is not None:
        found |= _found_compressor(compressor, told="compressor.stages" in named)
    if kind.head_width and "model.num_heads" not in found:
        config.model.num_heads = None
    stored = dtype or next(iter(weights.values())).dtype
    precision = "bfloat16" if stored == jnp.bfloat16 else "float32"
    for name, (value, origin) in (found | {"precision": (precision, DEFAULT)}).items():
        _set(config, name, value)
        origins[name] = origin
    for override in overrides:
        apply_override(config, override)
        origins[field_of(override)] = COMMAND
    if family == "stage_c" and config.stage_b and "data.image_size" not in named:
        config.data.image_size = read_config(config.stage_b).data.image_size
        origins["data.image_size"] = STAGE_B
    if kind.head_width:
        _check_heads(config, kind.head_width)
    if family == "paella":
        config.image_encoder.kind = "clip" if config.clip.folder else "none"
    with hf_folder.errors_name(weights.files[0]):
        tree = kind.build(weights, config)
    if compressor is not None:
        with hf_folder.errors_name(compressor.files[0]):
            _add_compressor(tree, compressor, config)
    return Conversion(family, config, tree, origins)


def _set(config: ConfigDict, name: str, value: Any) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        config = config[parent]
    config[last] = value


def _found(weights: Weights, family: str) -> dict[str, tuple[Any, str]]:
    """Config field -> its value and where that is from."""
    with hf_folder.errors_name(weights.files[0]):
        fields = FAMILIES[family].infer(weights)
        found = {f"model.{name}": (value, SHAPES) for name, value in fields.items()}
        if "num_heads" in fields:
            found["model.num_heads"] = (fields["num_heads"], DEFAULT)  # of the released width
        if family == "paella":
            found["text.width"] = (condition_widths(weights)[0], SHAPES)
    config_file = weights.files[0].parent / hf_folder.CONFIG
    if family == "vqgan" and has_diffusers_names(weights) and config_file.is_file():
        found["model.scale_factor"] = (_diffusers_scale(config_file), JSON)
    if family in ("stage_b", "stage_c"):
        found["data.image_size"] = (RELEASED_PIXELS, DEFAULT)
        if is_diffusers(weights) and config_file.is_file():
            untold = read_untold_fields(config_file, family)
            found |= {f"model.{name}": (value, JSON) for name, value in untold.items()}
    return found


def _found_compressor(compressor: Weights, told: bool) -> dict[str, tuple[Any, str]]:
    """As `_found`; `told`: the command line gives the table of stages."""
    mapper = np.shape(compressor.get(f"{MAPPER}.0.weight", 0))
    if told and len(mapper) == 4:
        return {"compressor.head_channels": (mapper[1], SHAPES)}
    with hf_folder.errors_name(compressor.files[0]):
        fields = infer_compressor(compressor)
    names = ("variant", "head_channels")
    return {f"compressor.{name}": (fields[name], SHAPES) for name in names}


def _add_compressor(tree: Tree, compressor: Weights, config: ConfigDict) -> None:
    """Puts the compressor beside Stage B, as in a run that trains both."""
    makes, takes = len(compressor[f"{MAPPER}.0.weight"]), config.model.guide_channels
    if makes != takes:
        raise ConversionError(
            f"this compressor makes {makes} channels, Stage B takes {takes}; they do not belong "
            "together"
        )
    variables = import_compressor(compressor, make_compressor(config))
    tree["params"][COMPRESSOR] = variables["params"]
    tree["model_state"][COMPRESSOR] = variables["batch_stats"]


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


def _check_heads(config: ConfigDict, head_width: int) -> None:
    """Raises ConversionError where the number of attention heads is not known."""
    model = config.model
    if model.num_heads is not None:
        return
    sizes, form = f"width {model.get('width')} does", "N"
    if "widths" in model:
        sizes = f"widths {model.widths} of levels {model.patterns} do"
        form = "(...), one number per level, 0 where there is no A"
    raise ConversionError(
        f"the weights do not tell the number of attention heads, and {sizes} not divide into "
        f"heads of {head_width} as the released model's; give --config.model.num_heads={form}"
    )


def _paella_tree(weights: Weights, config: ConfigDict) -> Tree:
    params = import_paella(weights, Paella(**config.model))
    return {"params": {"predictor": params}, "model_state": {}}


def _clip_prior_tree(weights: Weights, config: ConfigDict) -> Tree:
    params = import_clip_prior(weights, ClipPrior(**config.model))
    return {"params": {"prior": params}, "model_state": {}}


def _stage_b_tree(weights: Weights, config: ConfigDict) -> Tree:
    params = import_stage_b(weights, StageB(**config.model))
    return {"params": {"stage_b": params}, "model_state": {}}


def _stage_c_tree(weights: Weights, config: ConfigDict) -> Tree:
    params = import_stage_c(weights, StageC(**config.model))
    return {"params": {"stage_c": params}, "model_state": {}}


def _vqgan_tree(weights: Weights, config: ConfigDict) -> Tree:
    variables = import_vqgan(weights, VQGAN(**config.model), has_diffusers_names(weights))
    # In further training no code counts as dead before it has been watched for a while.
    codes = {
        "usage": np.ones(config.model.codebook_size, np.float32),
        "candidates": np.zeros_like(variables["params"]["codebook"], np.float32),
    }
    state = {"vqgan": variables["batch_stats"], "codes": codes}
    return {"params": {"vqgan": variables["params"]}, "model_state": state}


FAMILIES = {
    "paella": Family(
        paella_configs.get_config,
        "1b",
        infer_paella,
        _paella_tree,
        paella_names.RELEASED_HEAD_WIDTH,
    ),
    "vqgan": Family(vqgan_configs.get_config, "f4", infer_vqgan, _vqgan_tree),
    "clip_prior": Family(
        clip_prior_configs.get_config, "released", infer_clip_prior, _clip_prior_tree
    ),
    "stage_b": Family(
        stage_b_configs.get_config,
        "v2",
        infer_stage_b,
        _stage_b_tree,
        wuerstchen_names.RELEASED_HEAD_WIDTH,
    ),
    "stage_c": Family(
        stage_c_configs.get_config,
        "v2",
        infer_stage_c,
        _stage_c_tree,
        wuerstchen_names.RELEASED_HEAD_WIDTH,
    ),
}
