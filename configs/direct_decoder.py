"""A small decoder straight from Stage C's latents to the image (Würstchen appendix D).

    python -m paella_jax.train --config configs/direct_decoder.py:shapes --workdir runs/direct \
        --config.stage_b=runs/stage_b
"""

from __future__ import annotations

from ml_collections import ConfigDict

from paella_jax.config import choose, sibling

common = sibling(__file__, "common")


def get_config(preset: str = "shapes") -> ConfigDict:
    """Builds one preset. Raises ConfigError for an unknown one."""
    fill = choose(__file__, {"tiny": _tiny, "shapes": lambda config: None}, preset)
    config = common.base()
    config.method = "direct_decoder"
    config.preset = preset
    config.stage_b = ""  # run folder of a trained Stage B

    config.model = ConfigDict()
    config.model.width = 128
    config.model.blocks = 2
    config.model.doublings = 3

    config.num_steps = 1500
    config.batch_size = 32
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 50
    config.optim.weight_decay = 0.0
    config.checkpoint.every = 500
    fill(config)
    return config


def _tiny(config: ConfigDict) -> None:
    config.data.spec = "tiny"
    config.num_steps = 200
    config.model.width = 32
    config.model.blocks = 1
