"""The CLIP prior: text embedding -> image embedding.

    python -m paella_jax.train --config configs/clip_prior.py:tiny --workdir runs/prior \
        --config.data.folder=EMBEDDINGS --config.model.clip_width=WIDTH

EMBEDDINGS is a folder with `embeddings.npz` or `embeddings.safetensors` (data/embeddings.py).
Presets: `tiny` (continuous integration) and `released`, the released architecture with its
published recipe (unmeasured here: needs a pod and embeddings).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from paella_jax.config import choose, sibling

common = sibling(__file__, "common")


def get_config(preset: str = "released") -> ConfigDict:
    """Builds one preset. Raises ConfigError for an unknown one."""
    presets = {"tiny": _tiny, "released": _released}
    fill = choose(__file__, presets, preset)
    config = common.base()
    config.method = "clip_prior"
    config.preset = preset
    config.data.source = "embeddings"

    config.model = ConfigDict()
    config.model.clip_width = 1024  # of both embeddings (CLIP ViT-H/14)
    config.model.width = 1280  # residual stream
    config.model.time_width = 64
    config.model.num_blocks = 48

    common.add_diffusion(config)
    config.objective.minimum_t = 0.0
    config.objective.stretch = 1.0
    config.objective.text_drop = 0.1  # fraction of samples trained without text (per sample)

    config.sampler.num_steps = 60
    config.sampler.guidance_scale = 3.0  # 1 is off
    config.sampler.evaluate_at_one = False  # the released sampler never evaluates t = 1
    fill(config)
    return config


def _released(config: ConfigDict) -> None:
    """The published training script's values; its float16 is bfloat16 here."""
    config.num_steps = 500_000
    config.batch_size = 512
    config.precision = "bfloat16"
    config.mesh.fsdp = -1
    config.mesh.data = 1
    config.optim.learning_rate = 3e-4
    config.optim.clip_norm = 5.0
    config.optim.ema_decay = 0.999
    config.optim.ema_start = 5000
    config.checkpoint.every = 5000
    config.log.preview_every = 10_000


def _tiny(config: ConfigDict) -> None:
    config.num_steps = 300
    config.batch_size = 128
    config.model.clip_width = 16
    config.model.width = 64
    config.model.time_width = 16
    config.model.num_blocks = 2
    config.optim.learning_rate = 2e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 25
    config.optim.ema_decay = 0.98
    config.sampler.num_steps = 20
    config.sampler.guidance_scale = 1.0
    config.checkpoint.every = 300
    config.log.preview_images = 64
