"""Würstchen's Stage C: text -> the compressor's latents.

    python -m paella_jax.train --config configs/stage_c.py:shapes --workdir runs/wuerstchen \
        --config.stage_b=runs/stage_b

Presets: `tiny` (continuous integration), `shapes` (embedded data), `folder32` and `folder64` (own
captioned images, on one machine), `v2`, the released architecture
and recipe with its later phases `v2_1024`, `v2_mixed` and `v2_aesthetic`, and `paper`, the smaller
network that the paper describes (from `v2` on unmeasured here: they need a pod).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from paella_jax.config import choose, sibling

common = sibling(__file__, "common")


def get_config(preset: str = "shapes") -> ConfigDict:
    """Builds one preset. Raises ConfigError for an unknown one."""
    presets = {
        "tiny": _tiny,
        "shapes": _shapes,
        "folder32": lambda config: _folder(config, 32),
        "folder64": lambda config: _folder(config, 64),
        "v2": _v2,
        "v2_1024": _v2_1024,
        "v2_mixed": _v2_mixed,
        "v2_aesthetic": _v2_aesthetic,
        "paper": _paper,
    }
    fill = choose(__file__, presets, preset)
    config = common.base()
    config.method = "stage_c"
    config.preset = preset
    config.stage_b = ""  # run folder of a trained Stage B

    config.model = ConfigDict()
    config.model.channels = 16  # the compressor's
    config.model.width = 1536
    config.model.depth = 32
    config.model.num_heads = 24
    config.model.time_width = 64
    config.model.kernel_size = 3
    config.model.dropout = 0.1
    config.model.self_attention = True
    config.model.positions = False  # position vectors and latents of their size, for small maps
    config.model.remat = False
    config.model.loop = False  # repeated blocks as one loop: for deep networks, which compile long
    common.add_kernels(config.model)

    common.add_text(config, kind="clip")
    common.add_diffusion(config)
    common.add_evaluation(config)
    config.objective.text_drop = 0.05
    config.objective.loss_weight = "p2"  # the released code's, 1 - alpha_bar

    # Levels at the ends of sampling's ranges, and the steps in each.
    config.sampler.edges = (1.0, 2 / 3, 0.0)
    config.sampler.segments = (20, 10)
    config.sampler.guidance_scale = 4.0
    fill(config)
    return config


def _shapes(config: ConfigDict) -> None:
    common.shapes_recipe(config)
    common.shapes_text(config)
    config.model.channels = 4
    config.model.width = 128
    config.model.depth = 4
    config.model.num_heads = 4
    config.model.time_width = 32
    config.model.positions = True
    config.model.dropout = 0.0
    config.text.kind = "joint"
    config.objective.text_drop = 0.1
    # These latents show their image at noise levels where larger ones do not: of the usual schedule
    # only the last tenth needs the text, and p2 hardly weighs it (docs/results.md 4).
    config.schedule.scaler = 2.0
    config.objective.loss_weight = "clean"
    config.optim.learning_rate = 1e-3  # at 2e-3 some seeds never tell two objects' words apart
    config.sampler.guidance_scale = 2.0


def _tiny(config: ConfigDict) -> None:
    _shapes(config)
    common.tiny_recipe(config)
    config.optim.learning_rate = 2e-3
    config.model.width = 64
    config.model.depth = 2


def _folder(config: ConfigDict, size: int) -> None:
    """Own captioned images, at about the time of configs/paella.py's."""
    _shapes(config)
    common.own_images(config, size)
    common.own_recipe(config)
    common.own_text(config)
    config.num_steps = 4000 if size <= 32 else 20_000
    config.model.channels = 8
    config.model.width = 256
    config.model.num_heads = 8
    config.model.dropout = 0.1
    config.sampler.guidance_scale = 3.0


def _v2(config: ConfigDict) -> None:
    """The published script and the paper's first, longest phase (512-pixel images, 12 x 12)."""
    common.on_a_pod(config)
    config.data.image_size = 512
    config.data.crop = "random"
    config.num_steps = 500_000
    config.batch_size = 1536
    config.model.remat = True
    config.model.loop = True
    # The script averages every 100 updates with 0.9; 0.9 ** (1 / 100) in every update is the same.
    config.optim.ema_decay = 0.99895
    config.optim.ema_start = 5000


def _v2_1024(config: ConfigDict) -> None:
    """The paper's second phase, from `init_from`: 1024-pixel images, 24 x 24 latents."""
    _v2(config)
    common.train_on(config)
    config.data.image_size = 1024
    config.num_steps = 364_000


def _v2_mixed(config: ConfigDict) -> None:
    """The third phase, from `init_from`: a few steps on three aspect ratios."""
    _v2_1024(config)
    config.data.buckets = ((1024, 1024), (1024, 1664), (1664, 1024))  # latents 24x24, 24x39, 39x24
    config.num_steps = 4000
    config.batch_size = 768
    config.checkpoint.every = 1000


def _v2_aesthetic(config: ConfigDict) -> None:
    """The fourth, from `init_from`: as the third, on images chosen for their looks (`data.folder`).

    The released model is this phase's weights halfway to the third's (`convert --interpolate`).
    """
    _v2_mixed(config)
    config.num_steps = 50_000
    config.batch_size = 384


def _paper(config: ConfigDict) -> None:
    _v2(config)
    config.model.width = 1280
    config.model.depth = 16
    config.model.num_heads = 16
