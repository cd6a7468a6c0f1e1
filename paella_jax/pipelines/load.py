"""A run folder of any family -> its pipeline: `paella_jax.load`.

Each loader imports its family when it is called: a token predictor needs nothing of Würstchen.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.files.compile_cache import keep_programs
from paella_jax.runs.derive import restore_trained
from paella_jax.runs.folder import CheckpointError, read_config
from paella_jax.runs.frozen import COMPRESSOR
from paella_jax.runs.manifest import check_files
from paella_jax.runs.stored_config import stored_config_named
from paella_jax.sharing.folder import SUPER_RESOLUTION, inside
from paella_jax.sharing.pipeline import Origin
from paella_jax.typing import Tree

if TYPE_CHECKING:
    from paella_jax.pipelines.tokens import TokenPipeline
    from paella_jax.pipelines.two_scale import TwoScalePipeline
    from paella_jax.pipelines.wuerstchen import WuerstchenPipeline

    AnyPipeline: TypeAlias = TokenPipeline | TwoScalePipeline | WuerstchenPipeline


def load(
    directory: str | Path,
    loaders: Mapping[str, Callable[..., Any]] | None = None,
    /,
    **options: Any,
) -> AnyPipeline:
    """Loads a run folder's newest checkpoint, or a converted folder, as a pipeline.

    Args:
      directory: run folder.
      loaders: method -> loader; None is the package's own, `LOADERS`.
      **options: of the family's loader: `offload` for Würstchen, `super_resolution` and `decoder`
        for token predictors.

    Raises:
      ValueError: an option that this kind of run does not have.
      CheckpointError: no run there, of a kind that draws nothing, incomplete or damaged, or a
        shared folder whose files are not what was shared.
    """
    keep_programs()
    loaders = LOADERS if loaders is None else loaders
    method = read_config(directory).method
    if method not in loaders:
        raise CheckpointError(
            f"{directory} holds a run of method {method!r}, which draws no images from text; give "
            f"one of {sorted(loaders)}"
        )
    check_files(directory)
    known = list(inspect.signature(loaders[method]).parameters)[1:]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"a run of method {method!r} has no loading option {', '.join(unknown)}; it has {known}"
        )
    if SUPER_RESOLUTION in known and SUPER_RESOLUTION in inside(directory):
        options.setdefault(SUPER_RESOLUTION, Path(directory) / SUPER_RESOLUTION)
    origin = Origin.of(directory, options)
    with stored_config_named(directory):
        pipe = loaders[method](directory, **options)
    if hasattr(pipe, "save"):
        pipe.origin = origin
    return pipe


def load_one_or_two_scales(
    directory: str | Path, *, decoder: str | Path = "", super_resolution: str | Path = ""
) -> TokenPipeline | TwoScalePipeline:
    """A token predictor, alone or with a network that enlarges what it draws.

    Args:
      directory: run folder of the base.
      decoder: run folder of a tokenizer with the same codes, whose decoder is used instead.
      super_resolution: run folder of a super-resolution network for its tokens.
    """
    if not super_resolution:
        return load_tokens(directory, decoder=decoder)
    from paella_jax.pipelines.two_scale import TwoScalePipeline

    return TwoScalePipeline(load_tokens(directory), load_tokens(super_resolution, decoder=decoder))


def load_tokens(directory: str | Path, *, decoder: str | Path = "") -> TokenPipeline:
    """Loads a token predictor's newest checkpoint (Paella, MUSE, aMUSEd), or a converted one.

    Args:
      directory: run folder.
      decoder: run folder of a tokenizer with the same codes, whose decoder is used instead.

    Raises:
      CheckpointError: no run there, of another kind, incomplete or damaged.
      ConfigError: `decoder` has other codes.
    """
    from dataclasses import replace

    from paella_jax.families.form_of_here import form_of_here
    from paella_jax.families.tokens import load_networks
    from paella_jax.families.vqgan import swap_decoder
    from paella_jax.pipelines.tokens import TokenPipeline
    from paella_jax.runs.derive import restore_trained

    workdir = Path(directory)
    config = form_of_here(read_config(workdir))
    if config.method != "tokens":
        raise CheckpointError(
            f"{workdir} holds a run of method {config.method!r}, not of a token predictor"
        )
    networks, frozen = load_networks(config, workdir)
    if decoder:
        vqgan, frozen["vqgan"] = swap_decoder(workdir, frozen["vqgan"], decoder)
        networks = replace(networks, vqgan=vqgan)
    params = restore_trained(workdir, config)
    if networks.text_is_joint and "text_encoder" not in params:
        raise CheckpointError(
            f"{workdir} holds converted weights without a text encoder; convert them again with "
            "--tokenizer VQGAN_RUN --text T5_FOLDER"
        )
    return TokenPipeline(networks, params, frozen, config)


def load_wuerstchen(directory: str | Path, offload: bool = False) -> WuerstchenPipeline:
    """Loads a Stage C run (all three stages), or a Stage B run (reconstruction only).

    Args:
      directory: run folder of configs/stage_c.py or configs/stage_b.py.
      offload: keep weights on the host and put one stage at a time on the device.

    Raises:
      CheckpointError: no run there, of another kind, or damaged.
      ConfigError: stages that do not belong together.
    """
    from paella_jax.families.form_of_here import form_of_here
    from paella_jax.families.stage_b import load_stage_b
    from paella_jax.pipelines.wuerstchen import WuerstchenPipeline

    workdir = Path(directory)
    config = form_of_here(read_config(workdir))
    if config.method not in ("stage_b", "stage_c"):
        raise CheckpointError(f"{workdir} holds a run of method {config.method!r}, not Würstchen's")
    if config.method == "stage_c":
        return load_stage_c_pipeline(config, workdir, None, offload)
    config_b, stage_b, params, frozen = load_stage_b(workdir, without_compressor=True)
    weights = _later_weights(params, frozen)
    return WuerstchenPipeline(stage_b, None, weights, {"stage_b": config_b}, offload)


def load_stage_c_pipeline(
    config: ConfigDict,
    workdir: Path,
    weights: tuple[Tree, Tree] | None = None,
    offload: bool = False,
    mesh: Mesh | None = None,
) -> WuerstchenPipeline:
    """All three stages of a Stage C run's folder.

    Args:
      config: of the run.
      workdir: its folder.
      weights: Stage C's parameters and frozen text encoder; None reads the newest checkpoint.
      offload: keep weights on the host and put one stage at a time on the device.
      mesh: the one that given weights lie on.
    """
    from paella_jax.families.stage_b import load_stage_b
    from paella_jax.families.stage_c import make_stage_c
    from paella_jax.pipelines.wuerstchen import WuerstchenPipeline

    config_b, stage_b, params, frozen = load_stage_b(workdir, without_compressor=True)
    stage_c, frozen_c = make_stage_c(config, workdir, stage_b)
    if weights is None:
        weights = (restore_trained(workdir, config), frozen_c)
    return WuerstchenPipeline(
        stage_b,
        stage_c,
        _later_weights(params, frozen) | {"stage_c": weights},
        {"stage_b": config_b, "stage_c": config},
        offload,
        mesh,
    )


def _later_weights(params: Tree, frozen: Tree) -> dict[str, Tree]:
    """The weights of everything after Stage C, by stage."""
    texts = {name: tree for name, tree in frozen.items() if name not in ("vqgan", COMPRESSOR)}
    own = {name: tree for name, tree in params.items() if name != COMPRESSOR}
    return {
        "stage_b": (own, texts),
        "vqgan": frozen["vqgan"],
        "compressor": frozen[COMPRESSOR],
    }


# method -> loader, of the package's own methods; registry.py has those that were added to it
LOADERS: dict[str, Callable[..., Any]] = {
    "tokens": load_one_or_two_scales,
    "stage_b": load_wuerstchen,
    "stage_c": load_wuerstchen,
}
