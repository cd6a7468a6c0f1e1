"""The CLIP prior family: text embedding -> image embedding, trained on precomputed pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.data.embeddings import EmbeddingSource, embedding_transform
from paella_jax.files.compile_cache import keep_programs
from paella_jax.models.clip_prior import ClipPrior
from paella_jax.noise.gaussian import CosineSchedule
from paella_jax.noise.tokens import sample_keys
from paella_jax.objectives.noise_prediction import clip_prior_objective
from paella_jax.runs.checkpoint import restore_variables
from paella_jax.runs.folder import read_config_of
from paella_jax.sampling.diffusion import FROM_UNIT_NOISE, plan
from paella_jax.sampling.diffusion_settings import DDPMSettings, DiffusionCourse
from paella_jax.sampling.guidance import guide
from paella_jax.sampling.loop import advance, padded
from paella_jax.training.method import Method
from paella_jax.typing import Array, Tree

if TYPE_CHECKING:
    from paella_jax.data.loader import Source


def make_clip_prior(config: ConfigDict) -> ClipPrior:
    """The network of a config, in its compute dtype."""
    return ClipPrior(**config.model, dtype=jnp.dtype(config.precision))


class ClipPriorSampler:
    """Image embeddings for text embeddings. Calls with the same shapes share one program, whatever
    their steps and guidance (but for guidance of 1)."""

    def __init__(self, config: ConfigDict, params: Tree) -> None:
        """`params` is a run's tree, {"prior": ...}."""
        self.model = make_clip_prior(config)
        self.schedule = CosineSchedule(**config.schedule)
        self.settings = DDPMSettings(**config.sampler)
        self.set_params(params)
        self._sample = jax.jit(self._draw, static_argnames="program")

    def set_params(self, params: Tree) -> None:
        """Replaces the weights; nothing is compiled again."""
        self.params = jax.device_put(params["prior"])

    def __call__(
        self,
        text_embeddings: Array | np.ndarray,
        key: Array,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        sample_index: Array | None = None,
    ) -> Array:
        """Draws one image embedding per text.

        Args:
          text_embeddings: float [batch, clip_width], pooled and projected, not normalised.
          key: PRNG key, or [batch] keys, one per sample.
          num_steps: predictions; default the run's (60 as released).
          guidance_scale: 1 switches guidance off; default the run's (3 as released).
          sample_index: int [batch]; sample i's randomness comes from (key, sample_index[i]) alone.

        Returns:
          float32 [batch, clip_width].

        Raises:
          ValueError: embeddings of another shape or not finite, or settings without sense.
        """
        texts = np.asarray(text_embeddings, np.float32)
        if texts.ndim != 2 or texts.shape[1] != self.model.clip_width:
            raise ValueError(
                f"text_embeddings have shape {texts.shape}, this prior needs "
                f"[batch, {self.model.clip_width}]"
            )
        if not np.isfinite(texts).all():
            raise ValueError("text_embeddings hold values that are not finite")
        settings = self.settings
        if num_steps is not None:
            settings = replace(settings, num_steps=num_steps)
        if guidance_scale is not None:
            settings = replace(settings, guidance_scale=guidance_scale)
        settings.check()
        index = jnp.arange(len(texts)) if sample_index is None else sample_index
        course, program = padded(settings.course()), settings.program()
        return self._sample(self.params, jnp.asarray(texts), key, index, course, program=program)

    def _draw(
        self,
        params: Tree,
        texts: Array,
        key: Array,
        index: Array,
        course: DiffusionCourse,
        program: DDPMSettings,
    ) -> Array:
        predict = lambda text: lambda x, t: self.model.apply({"params": params}, x, t, text)
        denoise = guide(predict(texts), predict(jnp.zeros_like(texts)))
        shape = (texts.shape[0], self.model.clip_width)
        keys = key if key.ndim == 1 else sample_keys(key, index)
        loop = plan(denoise, keys, shape, program, self.schedule, FROM_UNIT_NOISE, course)
        nothing = jnp.zeros(shape)
        reached = loop.carry, (nothing, nothing)
        (drawn, _), _ = advance(loop, reached, course.edges[0], course.edges[-1])
        return drawn


def clip_prior_method(config: ConfigDict, source: Source | None = None) -> Method:
    """Training of configs/clip_prior.py, on `config.data` unless a source is given.

    Raises:
      ConfigError: unknown source, unusable embeddings, or a schedule or sampler without sense.
    """
    if config.data.source != "embeddings":
        raise ConfigError(
            f"data.source must be 'embeddings' for a clip_prior, got {config.data.source!r}"
        )
    model = make_clip_prior(config)
    try:
        schedule = CosineSchedule(**config.schedule)
        DDPMSettings(**config.sampler).check()
        if source is None:
            source = EmbeddingSource(config.data.folder, model.clip_width, "train")
    except ValueError as error:
        raise ConfigError(str(error)) from error

    def init(key: Array) -> tuple[Tree, Tree]:
        embedding = jnp.zeros((1, model.clip_width))
        return {"prior": model.init(key, embedding, jnp.zeros((1,)), embedding)["params"]}, {}

    return Method(
        title="clip_prior",
        init=init,
        objective=clip_prior_objective(
            lambda params, x, t, text: model.apply({"params": params["prior"]}, x, t, text),
            schedule,
            config.objective,
        ),
        frozen={},
        source=source,
        transform=embedding_transform,
        held=lambda: EmbeddingSource(config.data.folder, model.clip_width, "validation"),
    )


def mean_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over rows of the cosine between [batch, width] and [batch, width]."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / np.maximum(norms, 1e-12)).mean())


def load_clip_prior(workdir: str | Path) -> ClipPriorSampler:
    """A trained or converted prior, ready to sample.

    Raises:
      CheckpointError: not a clip_prior's run folder, or unreadable.
    """
    keep_programs()
    config = read_config_of("a clip_prior", workdir)
    _, restored = restore_variables(workdir)
    return ClipPriorSampler(config, restored["params"])
