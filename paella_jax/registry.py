"""Every method, one record each: from a config's `method` to what trains, draws and compiles it.

A new one is a file in families/ and a record here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.families import abstract, direct_decoder, stage_b, stage_c, token_training
from paella_jax.families.clip_prior import clip_prior_method
from paella_jax.families.start import carry_frozen, fine_tuned
from paella_jax.families.vqgan_training import vqgan_method
from paella_jax.pipelines.load import LOADERS
from paella_jax.reports import previews
from paella_jax.training.distributed import first_alone
from paella_jax.training.from_encoded import from_encoded
from paella_jax.training.method import Method
from paella_jax.training.validation import with_validation


@dataclass(frozen=True)
class Family:
    """One `method`.

    Attributes:
      build: (config, prepared run folder) -> what the loop trains, from random parameters.
      abstract: config -> the same with shapes for frozen networks and one blank sample, of which
        no file is read; what `compile` compiles.
      prepare: (config, run folder) -> puts frozen networks there, once.
      preview: (config, prepared run folder, maker of the held-back samples) -> what draws samples
        while it trains; not asked for where `log.preview_images` is 0.
      load: (run folder, options) -> what `paella_jax.load` returns; None where a run draws no
        images from text.
      released: the `--family` names of published weights that `convert` turns into such runs.
    """

    build: Callable[[ConfigDict, Path], Method]
    abstract: Callable[[ConfigDict], Method]
    prepare: Callable[[ConfigDict, Path], None] = lambda config, workdir: None
    preview: Callable[[ConfigDict, Path, previews.Held], previews.Preview] | None = None
    load: Callable[..., Any] | None = None
    released: tuple[str, ...] = ()


FAMILIES: dict[str, Family] = {
    "vqgan": Family(
        build=lambda config, workdir: vqgan_method(config),
        abstract=abstract.abstract_vqgan,
        preview=previews.vqgan_preview,
        released=("vqgan",),
    ),
    "tokens": Family(
        prepare=token_training.prepare,
        build=token_training.token_method,
        abstract=abstract.abstract_tokens,
        preview=previews.token_preview,
        load=LOADERS["tokens"],
        released=("paella", "amused"),
    ),
    "clip_prior": Family(
        build=lambda config, workdir: clip_prior_method(config),
        abstract=abstract.abstract_clip_prior,
        preview=previews.clip_prior_preview,
        released=("clip_prior",),
    ),
    "stage_b": Family(
        prepare=stage_b.prepare,
        build=stage_b.stage_b_method,
        abstract=abstract.abstract_stage_b,
        preview=previews.stage_b_preview,
        load=LOADERS["stage_b"],
        released=("stage_b",),
    ),
    "stage_c": Family(
        prepare=stage_c.prepare,
        build=stage_c.stage_c_method,
        abstract=abstract.abstract_stage_c,
        preview=previews.stage_c_preview,
        load=LOADERS["stage_c"],
        released=("stage_c",),
    ),
    "direct_decoder": Family(
        prepare=direct_decoder.prepare,
        build=direct_decoder.direct_decoder_method,
        abstract=abstract.abstract_direct_decoder,
    ),
}


def family_of(config: ConfigDict) -> Family:
    """The record of a config's method. Raises ConfigError for an unknown one."""
    if config.method not in FAMILIES:
        *names, last = (repr(name) for name in FAMILIES)
        raise ConfigError(f"method must be {', '.join(names)} or {last}, got {config.method!r}")
    return FAMILIES[config.method]


def build_method(config: ConfigDict, workdir: Path) -> Method:
    """Networks, objective, data and preview of `config.method`, in a prepared run folder.

    Raises:
      ConfigError: unknown method, or parts that do not fit together.
    """
    method, family = method_alone(config, workdir), family_of(config)
    if config.log.get("validation_images", 0):
        method = dataclasses.replace(method, held=cache(method.held))  # both read it
    if family.preview is not None and config.log.preview_images:
        preview = family.preview(config, workdir, method.held)
        method = dataclasses.replace(method, preview=preview)
    method = with_validation(config, from_encoded(config, method))
    return fine_tuned(config, workdir, method)


def method_alone(config: ConfigDict, workdir: Path) -> Method:
    """Networks, objective and data as the config has them, without preview and starting weights.

    Raises:
      ConfigError: unknown method, or parts that do not fit together.
    """
    family = family_of(config)

    def prepare() -> None:
        carry_frozen(config, workdir)
        family.prepare(config, workdir)

    first_alone("frozen networks", prepare)
    return family.build(config, workdir)


def abstract_method(config: ConfigDict) -> Method:
    """The method of a config without any file: see `Family.abstract`.

    Raises:
      ConfigError: unknown method, or parts that do not fit together.
    """
    return family_of(config).abstract(config)
