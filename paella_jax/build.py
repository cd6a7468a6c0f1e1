"""The registry: from a config's `method` to something the loop can train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.data.build import make_source
from paella_jax.evaluation.pictures import save_grid
from paella_jax.evaluation.shapes_report import score_images
from paella_jax.families.clip_prior import clip_prior_method
from paella_jax.families.finetune import carry_frozen, fine_tuned
from paella_jax.families.paella import load_networks, paella_method, prepare_frozen
from paella_jax.families.vqgan import vqgan_method
from paella_jax.pipeline import PaellaPipeline
from paella_jax.training.method import Method
from paella_jax.training.state import TrainState

Tree = Any


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
    if config.method == "paella":
        prepare_frozen(config, workdir)
        return paella_method(config, workdir, _paella_preview(config, workdir))
    if config.method == "clip_prior":
        return clip_prior_method(config, workdir)
    raise ConfigError(f"method must be 'vqgan', 'paella' or 'clip_prior', got {config.method!r}")


def _paella_preview(config: ConfigDict, workdir: Path) -> Any:
    """Samples captions of the validation split; scores them where the oracle can."""
    source = make_source(config.data, "validation", config.seed)
    count = min(config.log.preview_images, len(source))
    captions = [source[i]["caption"] for i in range(count)]
    pipelines: list[PaellaPipeline] = []

    def preview(state: TrainState, frozen: Tree, file: Path) -> dict[str, float]:
        if not pipelines:
            networks, _ = load_networks(config, workdir)
            pipelines.append(PaellaPipeline(networks, state.eval_params, frozen, config))
        pipeline = pipelines[0]
        pipeline.set_params(state.eval_params, frozen)
        images = pipeline.generate(captions, seed=list(range(count))).images
        if config.data.source != "shapes":
            save_grid(file, images[:16], captions[:16])
            return {}
        score = score_images(images, captions, config.data.spec)
        save_grid(file, images[:16], captions[:16], np.asarray(score.exact_images)[:16].tolist())
        return {"preview_exact": float(score.exact)}

    return preview
