"""The registry: from a config's `method` to something the loop can train."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.families.clip_prior import clip_prior_method
from paella_jax.families.direct_decoder import direct_decoder_method
from paella_jax.families.stage_b import stage_b_method
from paella_jax.families.stage_c import stage_c_method
from paella_jax.families.start import carry_frozen, fine_tuned
from paella_jax.families.tokens import prepare_frozen, token_method
from paella_jax.families.vqgan import vqgan_method
from paella_jax.reports.previews import stage_b_preview, stage_c_preview, token_preview
from paella_jax.training.method import Method


def build_method(config: ConfigDict, workdir: Path) -> Method:
    """Networks, objective, data and preview of `config.method`, in a prepared run folder.

    Raises:
      ConfigError: unknown method, or parts that do not fit together.
    """
    carry_frozen(config, workdir)
    return fine_tuned(config, workdir, _fresh_method(config, workdir))


def _fresh_method(config: ConfigDict, workdir: Path) -> Method:
    """The method starting from random parameters."""
    if config.method == "vqgan":
        return vqgan_method(config)
    if config.method == "tokens":
        prepare_frozen(config, workdir)
        return token_method(config, workdir, token_preview(config, workdir))
    if config.method == "clip_prior":
        return clip_prior_method(config, workdir)
    if config.method == "stage_b":
        return stage_b_method(config, workdir, stage_b_preview(config, workdir))
    if config.method == "stage_c":
        return stage_c_method(config, workdir, stage_c_preview(config, workdir))
    if config.method == "direct_decoder":
        return direct_decoder_method(config, workdir)
    raise ConfigError(
        "method must be 'vqgan', 'tokens', 'clip_prior', 'stage_b', 'stage_c' or "
        f"'direct_decoder', got {config.method!r}"
    )
