"""From opened weights to the config and parameters of a run folder, before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.config import apply_override, load_config
from paella_jax.convert.amused_config import (
    RELEASED_DOWNSAMPLING,
    config_file,
    is_vqmodel,
    sample_size,
)
from paella_jax.convert.amused_folder import AmusedFolder
from paella_jax.convert.compressor import MAPPER, import_compressor, infer_compressor
from paella_jax.convert.diffusers_config import read_model, read_untold_fields
from paella_jax.convert.family_table import Family, family_of
from paella_jax.convert.infer import check_family
from paella_jax.convert.paella import condition_widths
from paella_jax.convert.parts import Parts
from paella_jax.convert.vqgan import (
    DIFFUSERS_CLASS,
    has_diffusers_names,
    vqgan_from_diffusers_config,
)
from paella_jax.convert.wuerstchen import is_diffusers
from paella_jax.families.stage_b import COMPRESSOR, make_compressor
from paella_jax.families.vqgan import make_vqgan
from paella_jax.files import hf_folder
from paella_jax.files.tensors import ConversionError, Weights, flatten
from paella_jax.runs.folder import read_config
from paella_jax.typing import Tree

# Where a field's value is from.
SHAPES, JSON, COMMAND, DEFAULT = "the weights", "its config.json", "the command line", "default"
STAGE_B, SCHEDULER = "Stage B's run", "its scheduler"
# Networks of token predictors that were published -> their family.
PREDICTORS = {"unet": "paella", "uvit": "amused"}
# Würstchen's released stages draw from 1024 pixels on (docs/models/wuerstchen.md 5.5).
RELEASED_PIXELS = 1024


class Conversion(NamedTuple):
    """What a weights file becomes; nothing of it is read yet.

    Attributes:
      family: a key of infer.MARKS.
      config: of the run folder.
      tree: {"params": ..., "model_state": ...}, views of the mapped file.
      origins: config field of the network -> where its value is from.
      amused: the pipeline folder that the weights are part of.
      tokenizer: what becomes of that folder's tokenizer.
    """

    family: str
    config: ConfigDict
    tree: Tree
    origins: dict[str, str]
    amused: AmusedFolder | None = None
    tokenizer: Conversion | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The tree by path, as the run folder stores it."""
        return {"/".join(path): array for path, array in flatten(self.tree).items()}

    def parameter_count(self) -> int:
        """Number of trained scalars."""
        return sum(array.size for array in flatten(self.tree["params"]).values())


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
    family, weights, compressor, amused = parts
    check_family(weights, family)
    kind = family_of(family, weights)
    config = load_config(f"{kind.file}:{kind.preset}")
    origins = {f"{kind.block}.{name}": DEFAULT for name in config[kind.block]}
    field_of = lambda text: text.removeprefix("--").removeprefix("config.").partition("=")[0]
    named = {field_of(override) for override in overrides}
    found = _found(weights, family, kind)
    if compressor is not None:
        found |= _found_compressor(compressor, told="compressor.stages" in named)
    if kind.head_width:
        untold = [name for name in map(kind.field, kind.heads) if name not in found]
        found |= dict.fromkeys(untold, (None, DEFAULT))
    stored = dtype or next(iter(weights.values())).dtype
    precision = "bfloat16" if stored == jnp.bfloat16 else "float32"
    found |= {"precision": (precision, DEFAULT)}
    if amused is not None:
        found |= {"sampler.schedule": (amused.schedule, SCHEDULER)}
    _set_all(config, origins, found)
    for override in overrides:
        apply_override(config, override)
        origins[field_of(override)] = COMMAND
    if family == "stage_c" and config.stage_b and "data.image_size" not in named:
        size = read_config(config.stage_b).data.image_size
        _set_all(config, origins, {"data.image_size": (size, STAGE_B)})
    if kind.head_width:
        _check_heads(config, kind)
    if family == "paella":
        config.image_encoder.kind = "clip" if config.clip.folder else "none"
    tokenizer = None
    if amused is not None:
        tokenizer = plan_conversion(Parts("vqgan", amused.vqvae))
    if family == "amused" and "data.image_size" not in named:
        size = _amused_image_size(config, weights, tokenizer)
        _set_all(config, origins, {"data.image_size": size})
    with hf_folder.errors_name(weights.files[0]):
        tree = kind.build(weights, config)
    if compressor is not None:
        with hf_folder.errors_name(compressor.files[0]):
            _add_compressor(tree, compressor, config)
    return Conversion(family, config, tree, origins, amused, tokenizer)


def run_family(config: ConfigDict) -> str:
    """The family of a run: a key of MARKS, or the method or network that has no published one."""
    if config.method != "tokens":
        return config.method
    return PREDICTORS.get(config.cell.network, config.cell.network)


def export_form(config: ConfigDict) -> str:
    """The form that a run's published names are written in: original or diffusers."""
    only_diffusers = run_family(config) == "amused" or config.get("architecture") == "resnet"
    return "diffusers" if only_diffusers else "original"


def _set_all(
    config: ConfigDict, origins: dict[str, str], found: dict[str, tuple[Any, str]]
) -> None:
    """Sets config fields and notes where they are from."""
    for name, (value, origin) in found.items():
        *parents, last = name.split(".")
        block = config
        for parent in parents:
            block = block[parent]
        block[last] = value
        origins[name] = origin


def _found(weights: Weights, family: str, kind: Family) -> dict[str, tuple[Any, str]]:
    """Config field -> its value and where that is from."""
    file = config_file(weights)
    with hf_folder.errors_name(weights.files[0]):
        fields = kind.infer(weights)
        in_json = file is not None and (family == "amused" or is_vqmodel(weights))
        origin = JSON if in_json else SHAPES
        found = {kind.field(name): (value, origin) for name, value in fields.items()}
        if not in_json:
            heads = {kind.field(name) for name in kind.heads} & found.keys()
            found |= {name: (found[name][0], DEFAULT) for name in heads}  # of the released width
        if family == "paella":
            found["text.width"] = (condition_widths(weights)[0], SHAPES)
    if family == "vqgan" and has_diffusers_names(weights) and file is not None:
        model: Any = read_model(file, DIFFUSERS_CLASS, vqgan_from_diffusers_config)
        found["model.scale_factor"] = (float(model.scale_factor), JSON)
    if family in ("stage_b", "stage_c"):
        found["data.image_size"] = (RELEASED_PIXELS, DEFAULT)
        if is_diffusers(weights) and file is not None:
            untold = read_untold_fields(file, family)
            found |= {f"model.{name}": (value, JSON) for name, value in untold.items()}
    return found


def _amused_image_size(
    config: ConfigDict, weights: Weights, tokenizer: Conversion | None
) -> tuple[int, str]:
    """Pixels of the training images: the token map's side times the tokenizer's downsampling."""
    side = sample_size(weights, config.uvit.downsample)
    origin = DEFAULT if config_file(weights) is None else JSON
    known = None if tokenizer is None else tokenizer.config
    if config.tokenizer:
        known = read_config(config.tokenizer)
    # Whatever else may have been given is refused later.
    is_known = known is not None and known.method == "vqgan"
    pixels = make_vqgan(known).downsampling if is_known else RELEASED_DOWNSAMPLING
    return side * pixels, origin


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


def _check_heads(config: ConfigDict, kind: Family) -> None:
    """Raises ConversionError where a number of attention heads is not known."""
    block = config[kind.block]
    for name in kind.heads:
        if block[name] is not None:
            continue
        width = "conv_width" if name == "conv_heads" else "width"
        sizes, form = f"{width} {block.get(width)} does", "N"
        if "widths" in block:
            sizes = f"widths {block.widths} of levels {block.patterns} do"
            form = "(...), one number per level, 0 where there is no A"
        raise ConversionError(
            f"the weights do not tell the number of attention heads, and {sizes} not divide into "
            f"heads of {kind.head_width} as the released model's; give "
            f"--config.{kind.field(name)}={form}"
        )
