"""Würstchen's Stage B: compressor latents -> Stage A latents, with the compressor.

    python -m paella_jax.train --config configs/stage_b.py:shapes --workdir runs/stage_b \
        --config.tokenizer=runs/vqgan

Presets: `tiny` (continuous integration), `shapes` (embedded data), `folder32` and `folder64` (own
images, on one machine) and `v2`, the released architecture, with its second phase `v2_1024`
(unmeasured here: need a pod). The recipe of v2's Stage B was never published; it is the first
version's, with the paper's steps and batch size (docs/models/wuerstchen.md 4.4).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from paella_jax.config import choose, sibling

common = sibling(__file__, "common")


def get_config(preset: str = "shapes") -> ConfigDict:
    """Builds one preset. Raises ConfigError for an unknown one."""
    presets = {"tiny": _tiny, "shapes": _shapes, "v2": _v2, "v2_1024": _v2_1024,
               "folder32": lambda config: _folder(config, 32),
               "folder64": lambda config: _folder(config, 64)}  # fmt: skip
    fill = choose(__file__, presets, preset)
    config = common.base()
    config.method = "stage_b"
    config.preset = preset
    config.tokenizer = ""  # run folder of a trained VQGAN: Stage A

    config.model = ConfigDict()
    config.model.latent_channels = 4  # Stage A's
    config.model.patch_size = 2
    config.model.time_width = 64
    config.model.cond_width = 1024
    config.model.widths = (320, 640, 1280, 1280)
    config.model.depths = (4, 4, 14, 4)
    config.model.num_heads = (0, 10, 20, 20)
    config.model.patterns = ("CT", "CTA", "CTA", "CTA")
    config.model.inject = (False, True, True, True)  # levels that see the compressor's latents
    config.model.guide_channels = 16  # the compressor's
    config.model.kernel_size = 3
    config.model.dropout = 0.1
    config.model.self_attention = True
    config.model.remat = False
    config.model.loop = False  # repeated blocks as one loop: for deep networks, which compile long
    common.add_kernels(config.model)

    config.compressor = ConfigDict()
    config.compressor.variant = "s"  # or l
    config.compressor.stages = ()  # instead: rows of models/compressor.py's Stage
    config.compressor.head_channels = 1280
    config.compressor.stochastic_depth = 0.2
    config.compressor.ratio = 0.75  # compressor pixels per image pixel (768 of 1024)
    # Stage C draws (latents + shift) / scale, which should have about unit variance.
    config.compressor.shift = 1.0
    config.compressor.scale = 42.0
    config.compressor.train = True  # along with Stage B; False: frozen, from the run below
    config.compressor.run = ""
    # File of torchvision's EfficientNetV2 that its backbone starts from, as published.
    config.compressor.weights = ""

    common.add_text(config, kind="clip")
    common.add_diffusion(config)
    common.add_evaluation(config)
    config.objective.text_drop = 0.05
    config.objective.guide_drop = 0.05  # fraction of samples without guide
    config.objective.guide_noise_share = 0.3  # fraction of the others whose guide is noised
    config.objective.guide_noise = 0.5  # up to this level
    config.objective.loss_weight = "none"  # unknown for the released one

    config.sampler.num_steps = 12
    config.sampler.guidance_scale = 1.0  # off, as released

    fill(config)
    return config


def _shapes(config: ConfigDict) -> None:
    config.num_steps = 4000
    config.batch_size = 32
    config.model.time_width = 32
    config.model.cond_width = 64
    config.model.widths = (64, 128)
    config.model.depths = (1, 1)
    config.model.num_heads = (0, 4)
    config.model.patterns = ("CT", "CTA")
    config.model.inject = (True, True)
    config.model.patch_size = 1  # the maps are small enough
    config.model.guide_channels = 4
    config.model.dropout = 0.0
    # 32 pixels -> 4 x 4 latents: 64 numbers for 3072.
    config.compressor.stages = (
        ("fused", 1, 3, 1, 24, 24, 1),
        ("fused", 4, 3, 2, 24, 48, 1),
        ("fused", 4, 3, 2, 48, 64, 2),
    )
    config.compressor.head_channels = 256
    config.compressor.stochastic_depth = 0.0
    config.compressor.ratio = 1.0
    config.compressor.shift = 0.0
    config.compressor.scale = 1.5
    config.text.kind = "none"  # the paper's appendix D: Stage B does not need it
    config.optim.learning_rate = 2e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.optim.beta2 = 0.98
    config.optim.weight_decay = 0.0
    config.checkpoint.every = 500
    config.log.preview_images = 32


def _tiny(config: ConfigDict) -> None:
    _shapes(config)
    config.data.spec = "tiny"
    config.num_steps = 300
    config.model.widths = (48,)
    config.model.depths = (2,)
    config.model.num_heads = (0,)
    config.model.patterns = ("CT",)
    config.model.inject = (True,)
    config.compressor.stages = (
        ("fused", 1, 3, 1, 16, 16, 1),
        ("fused", 4, 3, 2, 16, 24, 1),
        ("fused", 4, 3, 2, 24, 32, 1),
    )
    config.compressor.head_channels = 64
    config.optim.learning_rate = 2e-3
    config.checkpoint.every = 300
    config.evaluation.num_images = 64
    config.evaluation.batch_size = 32


def _folder(config: ConfigDict, size: int) -> None:
    """Own images: 8 channels on 4x4 or 8x8 latents, an eighth of the tokenizer's numbers."""
    _shapes(config)
    common.own_images(config, size)
    config.data.captions = False
    config.num_steps = 3000 if size <= 32 else 12_000
    config.batch_size = 16
    config.model.widths = (96, 192)
    config.model.depths = (1, 2)
    config.model.guide_channels = 8
    config.optim.learning_rate = 1e-3
    config.optim.ema_decay = 0.998
    config.checkpoint.every = 1000


def _v2(config: ConfigDict) -> None:
    common.on_a_pod(config)
    config.data.image_size = 512
    config.data.crop = "random"
    config.num_steps = 457_000
    config.batch_size = 512
    config.model.remat = True
    config.model.loop = True
    config.optim.beta2 = 0.95


def _v2_1024(config: ConfigDict) -> None:
    """The paper's second phase, from `init_from`: 1024-pixel images."""
    _v2(config)
    common.train_on(config)
    config.data.image_size = 1024
    config.num_steps = 300_000
    config.batch_size = 128
