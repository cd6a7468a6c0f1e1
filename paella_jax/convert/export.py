"""A run's weights in the published formats: original PyTorch names, or a diffusers folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from paella_jax.convert.recognise import RECORDS, record_of, run_family
from paella_jax.convert.released import Released, article
from paella_jax.convert.whole import divide, notes_of, unpublished
from paella_jax.files.atomic import whole_folder, write_atomically
from paella_jax.files.safetensors_file import Report, quiet, write_safetensors
from paella_jax.files.tensors import ConversionError
from paella_jax.files.weights_file import CONFIG, DIFFUSERS_WEIGHTS
from paella_jax.runs.derive import restore_all
from paella_jax.runs.folder import read_config
from paella_jax.typing import Tensors, Tree

ORIGINAL, DIFFUSERS = "original", "diffusers"
OWNERS = {r.beside.name: r.family for r in RECORDS if r.beside is not None}
FORMS = (ORIGINAL, DIFFUSERS, *OWNERS)


class Export(NamedTuple):
    """What a run becomes in a published format; nothing is written yet."""

    # PyTorch name -> view of the run's newest weights (averaged ones if any, LoRA merged); of a
    # pipeline its transformer's. Of an original file also networks that trained along (whole.py).
    tensors: Tensors
    left: list[str]  # names of networks of the run that the format has no place for
    content: Any = None  # of a diffusers folder its config.json, or what writes a pipeline's
    notes: Mapping[str, str] | None = None  # in a file's header

    def write(self, out: Path, dtype: np.dtype | None = None, report: Report = quiet) -> list[str]:
        """Writes a safetensors file, or for diffusers a folder; `dtype` is for `tensors` alone.

        Returns:
          Parts of a pipeline which the run does not carry, so that the folder lacks them.

        Raises:
          ConversionError: values do not fit `dtype`, or the disk is full.
        """
        if self.content is None:
            try:
                write_safetensors(out, self.tensors, dtype, report, self.notes)
            except OSError as error:
                raise ConversionError(f"cannot write {out}: {error}") from error
            return []
        with whole_folder(out) as part:
            if callable(self.content):
                return self.content(part, self.tensors, dtype, report)
            write_safetensors(part / DIFFUSERS_WEIGHTS, self.tensors, dtype, report)
            write_atomically(part / CONFIG, json.dumps(self.content, indent=2))
        return []


def plan_export(checkpoint: str | Path, form: str) -> Export:
    """A run in a published format.

    Args:
      checkpoint: run folder, trained or converted.
      form: original or diffusers, see `Released.forms`; or the name of a second network, in its
        original names.

    Raises:
      CheckpointError: no run there, or a damaged one.
      ConversionError: the format cannot hold this run.
    """
    config = read_config(checkpoint)
    record, family = record_of(config), run_family(config)
    if record is None:
        raise ConversionError(f"{checkpoint} is a {family!r}, which has no published format")
    this, beside = f"{checkpoint} is {article(family)}", record.beside
    ordered = sorted(RECORDS, key=lambda known: len(known.needs))  # what stands alone comes first
    able = list(dict.fromkeys(known.family for known in ordered if DIFFUSERS in known.forms))
    if form == DIFFUSERS and family not in able:
        raise ConversionError(
            f"--export diffusers exists for {', '.join(able)} only, {this}; use --export original"
        )
    if form not in (ORIGINAL, DIFFUSERS):
        if beside is None or beside.name != form:
            owner = article(OWNERS[form])
            raise ConversionError(f"--export {form} exists for {owner} only, {this}")
        variables = beside.of_run(checkpoint)
        return Export(beside.names.save(variables, beside.make(config), copy=False), [])
    record.check_run(config)
    if form not in record.forms:
        architecture = record.runs.get("architecture")
        what = f"{this} of architecture {architecture!r}" if architecture else this
        raise ConversionError(f"{what}, which has diffusers' names only; use --export diffusers")
    _, params, state = restore_all(checkpoint, config)
    variables = params[record.own] if record.of_run is None else record.of_run(params, state)
    left = sorted(params.keys() - {record.own, *record.training_only})
    if form == ORIGINAL and not record.names.whole:
        return _original(record, config, params, left)
    tensors = record.names.save(variables, record.make(config), form == DIFFUSERS, copy=False)
    if form == ORIGINAL:
        return Export(tensors, left, notes=notes_of(config))
    foreign, content = record.foreign, None
    if form == DIFFUSERS and foreign is not None:  # a network that cannot be one is refused now
        model = record.make(config, tensors)
        if record.open_run is not None:
            content = record.open_run(checkpoint, config, model, foreign)
        else:
            text_width = tensors[record.text_input].shape[1] if record.text_input else None
            content = foreign.write(model, text_width=text_width)
    return Export(tensors, left, content)


def _original(record: Released, config: ConfigDict, params: Tree, left: list[str]) -> Export:
    """All that a run trained in one file, but for a second network that has a file of its own."""
    published, others = divide(params[record.own], record.names, record.make(config))
    tensors = record.names.save(published, record.make(config), copy=False)
    apart = [name for name in left if record.beside is not None and name == record.beside.name]
    along = {name: params[name] for name in left if name not in apart}
    more = unpublished({record.own: others} | along)
    return Export({**tensors, **more}, apart, notes=notes_of(config))
