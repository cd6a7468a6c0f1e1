"""From opened weights to a run folder: planned before anything is read, checked, then written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from paella_jax.config import apply_override, flatten_config, load_config, to_json
from paella_jax.convert.recognise import Parts, check_family, run_family
from paella_jax.convert.released import (
    COMMAND,
    DEFAULT,
    JSON,
    SHAPES,
    Found,
    Released,
    article,
    config_file,
    value_of,
)
from paella_jax.files import weights_file
from paella_jax.files.atomic import CARD_FILE, whole_folder, write_atomically
from paella_jax.files.safetensors_file import write_safetensors
from paella_jax.files.tensors import ConversionError, Weights
from paella_jax.runs.folder import CONFIG_FILE, WEIGHTS_FILE, read_config
from paella_jax.typing import Tree


class Conversion(NamedTuple):
    """What a weights file becomes; nothing of it is read yet.

    Attributes:
      record: of its family.
      config: of the run folder.
      tree: {"params": ..., "model_state": ...}, views of the mapped file.
      origins: config field of the network -> where its value is from.
      folder: the published folder that the weights are part of.
      tokenizer: what becomes of that folder's tokenizer.
    """

    record: Released
    config: ConfigDict
    tree: Tree
    origins: dict[str, str]
    folder: Any = None
    tokenizer: Conversion | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The tree by path, as the run folder stores it."""
        return {"/".join(path): array for path, array in flatten_dict(self.tree).items()}

    def fields(self) -> Found:
        """Config field of the network -> value and origin; no folder of this machine among them."""
        values = flatten_config(self.config)
        hidden = lambda name: name in ("tokenizer", "stage_b") or name.endswith(".folder")
        return {n: (values[n], origin) for n, origin in self.origins.items() if not hidden(n)}

    def parameter_count(self) -> int:
        """Number of trained scalars."""
        return sum(array.size for array in flatten_dict(self.tree["params"]).values())


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
      CheckpointError: a run given to take along is no run folder.
      ConfigError: an override names no field, or has another type.
    """
    record, weights, folder = parts.record, parts.weights, parts.folder
    beside = record.beside
    config = load_config(record.preset)
    origins = {f"{record.block}.{name}": DEFAULT for name in config[record.block]}
    name_of = lambda text: text.removeprefix("--").removeprefix("config.").partition("=")[0]
    named = {name_of(override) for override in overrides}
    found = _found(weights, record, config)
    if parts.beside is not None and beside is not None:
        found |= beside.found(parts.beside, named)
    untold = [name for name in map(record.field_of, record.heads[0]) if name not in found]
    found |= dict.fromkeys(untold, (None, DEFAULT))
    stored = dtype or next(iter(weights.values())).dtype
    precision = "bfloat16" if stored == jnp.bfloat16 else "float32"
    found |= {"precision": (precision, DEFAULT)} | (folder.found if folder is not None else {})
    _set_all(config, origins, found)
    for override in overrides:
        apply_override(config, override)
        origins[name_of(override)] = COMMAND
    _check_heads(config, record)
    tokenizer = None
    if folder is not None:
        other = check_family(folder.tokenizer, folder.tokenizer_family)
        tokenizer = plan_conversion(Parts(other, folder.tokenizer))
    run = value_of(config, "tokenizer")
    known = read_config(run) if run else tokenizer.config if tokenizer is not None else None
    settled = record.settle(config, weights, known)
    _set_all(config, origins, {n: value for n, value in settled.items() if n not in named})
    with weights_file.errors_name(weights.files[0]):
        loaded = record.names.load(weights, record.make(config, weights))
    plain = {"params": {record.own: loaded}, "model_state": {}}
    tree = plain if record.tree is None else record.tree(loaded)
    if parts.beside is not None and beside is not None:
        with weights_file.errors_name(parts.beside.files[0]):
            beside.check(parts.beside, config)
            variables = beside.names.load(parts.beside, beside.make(config))
        tree["params"][beside.name] = variables["params"]
        tree["model_state"][beside.name] = variables["batch_stats"]
    return Conversion(record, config, tree, origins, folder, tokenizer)


def _set_all(config: ConfigDict, origins: dict[str, str], found: Found) -> None:
    """Sets config fields and notes where they are from."""
    for name, (value, origin) in found.items():
        *parents, last = name.split(".")
        block = config
        for parent in parents:
            block = block[parent]
        block[last] = value
        origins[name] = origin


def _found(weights: Weights, record: Released, config: ConfigDict) -> Found:
    """What the weights and the config.json beside them tell."""
    file, foreign = config_file(weights), record.foreign
    with weights_file.errors_name(weights.files[0]):
        if file is not None and foreign is not None and record.told is None:
            model, origin = foreign.read_file(file), JSON
            names = [field.ours for field in foreign.fields.values()]
            fields = {name: getattr(model, name) for name in names}
        else:
            fields, origin = record.infer(weights), SHAPES
        # The widths of its text are the text encoder's to say, not the config's.
        has = lambda name: name in config[record.block] or name == "codebook_size"
        found = {record.field_of(n): (value, origin) for n, value in fields.items() if has(n)}
        if origin == SHAPES:  # heads are of the released width
            heads = [name for name in map(record.field_of, record.heads[0]) if name in found]
            found |= {name: (found[name][0], DEFAULT) for name in heads}
        found |= record.extra(weights, fields)
    has_both = bool(record.told) and record.names.is_diffusers(weights)
    if has_both and foreign is not None and file is not None:
        model = foreign.read_file(file)
        found |= {record.field_of(name): (getattr(model, name), JSON) for name in record.told or ()}
    return found


def _check_heads(config: ConfigDict, record: Released) -> None:
    """Raises ConversionError where a number of attention heads is not known."""
    block, (heads, head_width) = config[record.block], record.heads
    for name, width in heads.items():
        if block[name] is not None:
            continue
        sizes, form = f"{width} {block[width]} does", "N"
        if "patterns" in block:
            sizes = f"widths {block.widths} of levels {block.patterns} do"
            form = "(...), one number per level, 0 where there is no A"
        raise ConversionError(
            f"the weights do not tell the number of attention heads, and {sizes} not divide into "
            f"heads of {head_width} as the released model's; give "
            f"--config.{record.field_of(name)}={form}"
        )


# --- the networks that a converted model takes along


def lacking(plan: Conversion) -> str:
    """Which frozen networks are still needed to draw, and how to add them; empty for none."""
    if plan.folder is not None:
        return ""
    needed = {n: need for n, need in plan.record.needs.items() if need[1]}
    missing = [
        f"--{option} {value}"
        for option, (field, value) in needed.items()
        if not value_of(plan.config, field)
    ]
    if not missing:
        return ""
    fields = " and ".join(f"--config.{field}" for field, _ in needed.values())
    return (
        "This folder cannot draw yet: it lacks frozen networks. Convert again with "
        f"`{' '.join(missing)}`, or give {fields} when fine-tuning."
    )


def check_frozen(plan: Conversion, weights: Weights) -> None:
    """Checks the networks that a conversion takes along, by their configs only.

    Raises:
      ConversionError: folders that are not there, or of other sizes than the weights.
      CheckpointError: the tokenizer or another run to take along is no run folder.
      ValueError: a text encoder's config describes a model that is none, or fields of the config
        that do not fit together.
    """
    record, config = plan.record, plan.config
    given = [n for n, (field, _) in record.needs.items() if value_of(config, field)]
    options = " and ".join(f"--{option}" for option in given)
    if plan.folder is not None:
        if given:
            raise ConversionError(
                f"{plan.folder.path} brings its own networks; leave out {options}, or give "
                "its folder `transformer` alone"
            )
        assert plan.tokenizer is not None
        return plan.folder.check(config, plan.tokenizer.config)
    if record.together and given and "tokenizer" not in given:
        raise ConversionError(f"{options} needs --tokenizer too: networks are carried together")
    tokenizer = _read_tokenizer(config, *record.tokenizer) if "tokenizer" in given else None
    record.check(config, weights, tokenizer)


def _read_tokenizer(config: ConfigDict, field: str, what: str) -> ConfigDict:
    """The config of the tokenizer's run, of the right size."""
    tokenizer, needed = read_config(config.tokenizer), config.model[field]
    size = tokenizer.model.get(field) if tokenizer.method == "vqgan" else None
    if size != needed:
        raise ConversionError(
            f"--tokenizer {config.tokenizer} is {article(run_family(tokenizer))} with {size} "
            f"{what}, the weights need a vqgan with {needed}"
        )
    return tokenizer


def write_run_folder(
    plan: Conversion,
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
        write_safetensors(part / WEIGHTS_FILE, plan.arrays(), dtype, report)
        if plan.folder is None:
            plan.record.carry(plan.config, part)
        else:
            assert plan.tokenizer is not None
            plan.folder.carry(plan.tokenizer.config, plan.tokenizer.tree, part)
        write_atomically(part / CARD_FILE, card)
        write_atomically(part / CONFIG_FILE, to_json(plan.config))
