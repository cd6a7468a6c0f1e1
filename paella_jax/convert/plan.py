"""From opened weights to a run folder: planned before anything is read, checked, then written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from paella_jax.config import apply_override, flatten_config, load_config, to_json
from paella_jax.convert import whole
from paella_jax.convert.recognise import Parts, parts_of, run_family
from paella_jax.convert.released import DEFAULT, JSON, SHAPES, Found, Released, article, value_of
from paella_jax.files import weights_file
from paella_jax.files.atomic import CARD_FILE, whole_folder, write_atomically
from paella_jax.files.safetensors_file import Report, quiet, write_safetensors
from paella_jax.files.tensors import ConversionError, Weights
from paella_jax.runs.digests import note_files
from paella_jax.runs.folder import CONFIG_FILE, HOW_COMPUTED, WEIGHTS_FILE, read_config
from paella_jax.typing import Tree

CHUNK = 8 * 2**20  # bytes read at once
JOINT_TEXT = "text_encoder"  # that trained along with the network


class Conversion(NamedTuple):
    """What a weights file becomes; nothing of it is read yet."""

    record: Released  # of its family
    config: ConfigDict  # of the run folder
    tree: Tree  # {"params": ..., "model_state": ...}, views of the mapped file
    origins: dict[str, str]  # config field of the network -> where its value is from
    folder: Any = None  # the published folder that the weights are part of
    tokenizer: Conversion | None = None  # what becomes of that folder's tokenizer

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


LOOP = "loop"  # spares a pod's training minutes of compiling; sampling would hold weights twice


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
    with whole.config_named(parts.weights):
        return _planned(parts, overrides, dtype)


def _planned(parts: Parts, overrides: Sequence[str], dtype: np.dtype | None) -> Conversion:
    record, folder, beside = parts.record, parts.folder, parts.record.beside
    weights, unpublished = whole.split(parts.weights)
    own = whole.config_of(weights, record)
    config = load_config(record.preset) if own is None else own
    block = config[record.block]
    if LOOP in block:
        block[LOOP] = False
    origin = DEFAULT if own is None else whole.ORIGIN
    # Of how a network is computed, and of what its dropout drops, no file tells.
    told = lambda name: name not in HOW_COMPUTED and block[name] != "probabilities"
    origins = {f"{record.block}.{name}": origin for name in filter(told, block)}
    name_of = lambda text: text.removeprefix("--").removeprefix("config.").partition("=")[0]
    named = {name_of(override) for override in overrides}
    found = {} if own is not None else _all_found(parts, config, dtype)
    found |= _beside_found(parts, own, named)
    _set_all(config, origins, found)
    for override in overrides:
        apply_override(config, override)
        origins[name_of(override)] = "the command line"
    _check_heads(config, record)
    tokenizer = None
    if folder is not None:
        tokenizer = plan_conversion(parts_of(folder.tokenizer, folder.tokenizer_family))
    run = value_of(config, "tokenizer")
    known = read_config(run) if run else tokenizer.config if tokenizer is not None else None
    settled = {} if own is not None else record.settle(config, weights, known)
    _set_all(config, origins, {n: value for n, value in settled.items() if n not in named})
    with weights_file.errors_name(weights.files[0]):
        more = unpublished.pop(record.own, {})
        module = record.make(config, weights)
        loaded = record.names.load(weights, module, more)
        if more or unpublished:
            possible = whole.parameters_of(record.names, module, weights, config)
            whole.check_unpublished(more, unpublished, possible)
    plain = {"params": {record.own: whole.joined_trees(loaded, more)}, "model_state": {}}
    tree = plain if record.tree is None else record.tree(loaded)
    tree["params"] |= unpublished
    if parts.beside is not None and beside is not None:
        with weights_file.errors_name(parts.beside.files[0]):
            beside.check(parts.beside, config)
            variables = beside.names.load(parts.beside, beside.make(config))
        tree["params"][beside.name] = variables["params"]
        tree["model_state"][beside.name] = variables["batch_stats"]
    return Conversion(record, config, tree, origins, folder, tokenizer)


def _all_found(parts: Parts, config: ConfigDict, dtype: np.dtype | None) -> Found:
    """What the files tell of the config, and what they leave open."""
    record, folder = parts.record, parts.folder
    found = _found(parts.weights, record, config)
    untold = [name for name in map(record.field_of, record.heads[0]) if name not in found]
    found |= dict.fromkeys(untold, (None, DEFAULT))
    stored = dtype or next(iter(parts.weights.values())).dtype
    precision = "bfloat16" if stored == jnp.bfloat16 else "float32"
    return found | {"precision": (precision, DEFAULT)} | (folder.found if folder else {})


def _beside_found(parts: Parts, own: ConfigDict | None, named: set[str]) -> Found:
    """What a second network's file, or its absence, tells."""
    beside = parts.record.beside
    if beside is None or parts.beside is None:
        return {} if beside is None else beside.without
    return beside.present | (beside.found(parts.beside, named) if own is None else {})


def _set_all(config: ConfigDict, origins: dict[str, str], found: Found) -> None:
    """Sets config fields and notes where they are from."""
    for name, (value, origin) in found.items():
        block, _, last = name.rpartition(".")
        (value_of(config, block) if block else config)[last] = value
        origins[name] = origin


def _found(weights: Weights, record: Released, config: ConfigDict) -> Found:
    """What the weights and the config.json beside them tell."""
    file, foreign = weights_file.config_beside(weights), record.foreign
    told = lambda module, names: {name: getattr(module, name) for name in names}
    with weights_file.errors_name(weights.files[0]):
        if file is not None and foreign is not None and record.told is None:
            names, origin = [field.ours for field in foreign.fields.values()], JSON
            fields = told(foreign.read_file(file), names)
        else:
            fields, origin = record.infer(weights), SHAPES
        heads = record.heads[0] if origin == SHAPES else {}  # of the released width
        found = {
            record.field_of(name): (value, DEFAULT if name in heads else origin)
            for name, value in fields.items()
            # The widths of its text are the text encoder's to say, not the config's.
            if name in config[record.block] or name == "codebook_size"
        }
        found |= record.extra(weights, fields)
    is_diffusers = bool(record.told) and record.names.is_diffusers(weights)
    if is_diffusers and file is not None and foreign is not None:
        fields = told(foreign.read_file(file), record.told)
        found |= {record.field_of(name): (value, JSON) for name, value in fields.items()}
    return found


def _check_heads(config: ConfigDict, record: Released) -> None:
    """Raises ConversionError where a number of attention heads is not known."""
    block, (heads, head_width) = config[record.block], record.heads
    sizes, form = "{0} {1} does", "N"
    if "patterns" in block:
        sizes = f"widths {block.widths} of levels {block.patterns} do"
        form = "(...), one number per level, 0 where there is no A"
    for name, width in heads.items():
        if block[name] is None:
            raise ConversionError(
                "the weights do not tell the number of attention heads, and "
                f"{sizes.format(width, block[width])} not divide into heads of {head_width} as "
                f"the released model's; give --config.{record.field_of(name)}={form}"
            )


def lacking(plan: Conversion) -> str:
    """Which frozen networks are still needed to draw, and how to add them; empty for none."""
    needed = [(option, *need) for option, need in plan.record.needs.items() if need[1]]
    if JOINT_TEXT in plan.tree["params"]:
        needed = [need for need in needed if need[1] != "text.folder"]
    missing = [f"--{o} {value}" for o, field, value in needed if not value_of(plan.config, field)]
    fields, said = " and ".join(f"--config.{field}" for _, field, _ in needed), []
    if missing and plan.folder is None:
        said.append(
            "This folder cannot draw yet: it lacks frozen networks. Convert again with "
            f"`{' '.join(missing)}`, or give {fields} when fine-tuning."
        )
    beside = plan.record.beside
    if beside is not None and beside.name not in plan.tree["params"]:
        said.append(beside.missing)
    return " ".join(said)


def check_frozen(plan: Conversion, weights: Weights) -> None:
    """Checks the networks that a conversion takes along, by their configs only.

    Raises:
      ConversionError: folders that are not there, or of other sizes than the weights.
      CheckpointError: the tokenizer or another run to take along is no run folder.
      ValueError: a text encoder's config describes a model that is none, or fields of the config
        that do not fit together.
    """
    record, config, tokenizer = plan.record, plan.config, None
    given = [n for n, (field, _) in record.needs.items() if value_of(config, field)]
    options = " and ".join(f"--{option}" for option in given)
    if plan.folder is not None and given:
        raise ConversionError(
            f"{plan.folder.path} brings its own networks; leave out {options}, or give "
            "its folder `transformer` alone"
        )
    if plan.tokenizer is not None:
        return plan.folder.check(config, plan.tokenizer.config, record.make(config, weights))
    if record.together and given and "tokenizer" not in given:
        raise ConversionError(f"{options} needs --tokenizer too: networks are carried together")
    if "tokenizer" in given:
        field, what = record.tokenizer
        tokenizer, needed = read_config(config.tokenizer), config.model[field]
        size = tokenizer.model.get(field) if tokenizer.method == "vqgan" else None
        if size != needed:
            raise ConversionError(
                f"--tokenizer {config.tokenizer} is {article(run_family(tokenizer))} with {size} "
                f"{what}, the weights need a vqgan with {needed}"
            )
    record.check(config, weights, tokenizer)


def write_run_folder(
    plan: Conversion, out: Path, card: str, dtype: np.dtype | None = None, report: Report = quiet
) -> None:
    """Writes weights (one tensor in memory at a time), frozen networks, card and config.

    The folder appears whole or not at all; `report` is called with the bytes of each tensor.

    Raises:
      ConversionError: `out` is not empty, the disk is full, or values do not fit `dtype`.
    """
    with whole_folder(out) as part:
        write_safetensors(part / WEIGHTS_FILE, plan.arrays(), dtype, report, digests=True)
        if plan.tokenizer is None:
            plan.record.carry(plan.config, part)
        else:
            plan.folder.carry(plan.tokenizer.config, plan.tokenizer.tree, part)
        write_atomically(part / CARD_FILE, card)
        write_atomically(part / CONFIG_FILE, to_json(plan.config))
        note_files(part)


def described(files: Sequence[Path], report: Report = quiet) -> list[str]:
    """A line for every file: name, bytes and SHA-256; `report` gets the bytes of each piece."""
    lines, names = [], [file.name for file in files]
    for file in files:
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while piece := stream.read(CHUNK):
                digest.update(piece)
                report(len(piece))
        is_shared = names.count(file.name) > 1
        name = f"{file.parent.name}/{file.name}" if is_shared else file.name
        lines.append(f"- `{name}`, {file.stat().st_size:,} bytes, SHA-256 `{digest.hexdigest()}`")
    return lines


def model_card(plan: Conversion, files: Sequence[str], *, source: str, dtype: str, out: str) -> str:
    """The text of a run folder's README.md: what the weights are and where they come from.

    Args:
      plan: of the conversion.
      files: of the weights, as `described`.
      source: what kind of file it was.
      dtype: what the weights are stored in.
      out: the folder's name, for the example.
    """
    record, fields, missing = plan.record, plan.fields(), lacking(plan)
    export = record.forms[0]
    target = "FOLDER" if export == "diffusers" else "FILE.safetensors"
    rows = [f"| `{name}` | `{value}` | {origin} |" for name, (value, origin) in fields.items()]
    codes = fields.get("model.codebook_size", ("",))[0]
    return f"""# {record.title}, converted weights

Converted by `python -m paella_jax.convert --family {record.family}` from a {source}:

{chr(10).join(files)}

{plan.parameter_count():,} parameters, stored as {dtype} in `weights.safetensors`.
{f"{chr(10)}{missing}{chr(10)}" if missing else ""}
## Architecture

| field of config.json | value | taken from |
|---|---|---|
{chr(10).join(rows)}

"default" is the released model's value, which the weights cannot confirm (of the heads: their
width).

## Use

    {record.usage.format(out=out, codes=codes)}

Fine-tune with `--config.init_from={out}`; write the published names back with
`python -m paella_jax.convert --export {export} --checkpoint {out} --out {target}`.

## Licence

To be filled in: the terms under which the weights above were published. Converting changes
names and layout only, so those terms go on holding.
"""
