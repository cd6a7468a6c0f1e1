"""Whether runs that are given for seeds to stand on fit, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.families.vqgan import make_vqgan
from paella_jax.runs.folder import CheckpointError, has_progress, read_config
from paella_jax.seeds.wish import Training, Wish


def check_given(wish: Wish, enlarges: bool) -> None:
    """Checks which runs are given, not yet what they are.

    Args:
      wish: of the command.
      enlarges: whether the run is a super-resolution.

    Raises:
      ConfigError: runs of no use to this method, one twice, or more than seeds.
    """
    stage_c = wish.config.method == "stage_c"
    kinds = {
        "tokenizer": wish.tokenizers,
        "low_tokenizer": wish.low_tokenizers,
        "stage_b": wish.stage_bs,
    }
    for name, given in kinds.items():
        if wish.config.get(name):
            raise ConfigError(
                f"leave --config.{name} out and give --{name} RUN, once or repeatedly"
            )
        if len(set(given)) < len(given):
            raise ConfigError(f"a --{name} is given twice; seeds take turns on different ones")
        if len(given) > len(wish.seeds):
            raise ConfigError(
                f"{len(given)} of --{name} for {len(wish.seeds)} seeds; give more seeds"
            )
    if not stage_c and (wish.stage_bs or wish.direct):
        raise ConfigError("--stage_b and --direct are for presets of stage_c")
    if wish.low_tokenizers and not enlarges:
        raise ConfigError("--low_tokenizer is for cell.network=super_resolution")
    if wish.stage_bs and wish.tokenizers:
        raise ConfigError("a --stage_b run has its tokenizer with it; leave --tokenizer out")
    if enlarges and 0 < len(wish.low_tokenizers) != len(wish.tokenizers) > 0:
        raise ConfigError("give as many --low_tokenizer as --tokenizer: they go together")


def config_of(folder: str, trainings: Sequence[Training]) -> ConfigDict:
    """The config of a run that is to be trained, or of a given one.

    Raises:
      CheckpointError: a given one is no run, or nothing was trained there.
    """
    for training in trainings:
        if str(training.workdir) == folder:
            return training.config
    config = read_config(folder)
    if not has_progress(folder):
        raise CheckpointError(f"{folder} holds no finished checkpoint; train it first")
    return config


def check_tokenizer(
    folder: str, tokenizer: ConfigDict, run: ConfigDict | None = None, grid: int = 0
) -> None:
    """Checks a tokenizer, given or to be trained.

    Args:
      folder: of the run.
      tokenizer: its config.
      run: of a token predictor on it; None where Stage B stands on it.
      grid: tokens per side that it must give; 0: any.

    Raises:
      ConfigError: it is none, or does not fit.
    """
    if tokenizer.method != "vqgan":
        raise ConfigError(f"{folder} is a {tokenizer.method} run, no tokenizer of configs/vqgan.py")
    model = make_vqgan(tokenizer)
    if run is None:
        return
    if model.codebook_size != run.model.codebook_size:
        raise ConfigError(
            f"{folder} has {model.codebook_size} codes, the run {run.model.codebook_size}; give "
            f"another --tokenizer, or --config.model.codebook_size={model.codebook_size}"
        )
    side = run.data.image_size // model.downsampling
    if grid and side != grid:
        raise ConfigError(
            f"{folder} gives {side}x{side} tokens of the small image, super_resolution.low_grid "
            f"is {grid}"
        )


def check_stage_b(folder: str, stage_b: ConfigDict, run: ConfigDict) -> None:
    """Checks a Stage B, given or to be trained, for a Stage C. Raises ConfigError."""
    if stage_b.method != "stage_b":
        raise ConfigError(f"{folder} is a {stage_b.method} run, not one of configs/stage_b.py")
    if stage_b.model.guide_channels != run.model.channels:
        raise ConfigError(
            f"{folder} compresses to {stage_b.model.guide_channels} channels, Stage C draws "
            f"{run.model.channels}; give --config.model.channels={stage_b.model.guide_channels}"
        )
