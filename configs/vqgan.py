"""The f4 VQGAN tokenizer. MUSE's is in configs/resnet_vqgan.py.

    python -m paella_jax.train --config configs/vqgan.py:shapes --workdir runs/vqgan

Presets: `tiny` (continuous integration), `shapes` (quickstart), `shapes64` (longer run),
`folder32` and `folder64` (a user's own images, on one machine), and `f4`, the released architecture
with the published recipe (unmeasured here: needs a pod and images).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from paella_jax.config import choose, sibling

common = sibling(__file__, "common")


def get_config(preset: str = "shapes") -> ConfigDict:
    """Builds one preset. Raises ConfigError for an unknown one."""
    presets = {"tiny": _tiny, "shapes": _shapes, "shapes64": _shapes64, "f4": _f4,
               "folder32": lambda config: _folder(config, 32),
               "folder64": lambda config: _folder(config, 64)}  # fmt: skip
    fill = choose(__file__, presets, preset)
    config = common.base()
    config.method = "vqgan"
    config.preset = preset
    config.architecture = "paella"
    config.train_decoder_only = False  # True: encoder and codebook stay those of init_from

    config.model = ConfigDict()
    config.model.levels = 2  # halvings: 2 gives f4
    config.model.bottleneck_blocks = 12
    config.model.width = 384  # channels at the deepest level
    config.model.latent_channels = 4
    config.model.codebook_size = 8192
    config.model.scale_factor = 0.3764  # latents are divided by this for latent diffusion

    add_objective(config)
    fill(config)
    return config


def add_objective(config: ConfigDict) -> None:
    """Losses, adversary and care of the codebook: the same fields for every tokenizer."""
    config.objective = ConfigDict()
    config.objective.reconstruction_weight = 1.0  # mean squared error
    config.objective.codebook_weight = 1.0
    config.objective.commitment_weight = 0.25
    config.objective.unquantized_share = 0.1  # samples decoded from raw latents (for Stage B)
    config.objective.adversarial_weight = 0.0  # 0: no discriminator is built
    # Points in time: a fraction of num_steps up to 1, else a step.
    config.objective.adversarial_start = 0.0  # when the weight switches on
    config.objective.adversarial_loss = "nonsaturating"  # the paper's sigmoid loss, or hinge
    config.objective.discriminator_depth = 6
    config.objective.discriminator_width = 512
    config.objective.perceptual_weight = 0.0
    config.objective.perceptual_file = ""  # VGG features as safetensors, supplied by the user
    config.objective.usage_decay = 0.99  # moving average of how often each code is used
    config.objective.revive_every = 50  # steps between replacing dead codes; 0: never
    config.objective.revive_until = 1.0  # no code is replaced from here on
    # From here on the latent norm keeps to its running statistics. Small batches need it:
    # where backgrounds differ, batch statistics wobble by more than the distance of two codes.
    config.objective.settle_statistics_from = 1.0
    config.objective.dead_share = 0.03  # a code used less than this fraction of the mean is dead


def _shapes(config: ConfigDict) -> None:
    config.num_steps = 900
    config.batch_size = 64
    config.model.width = 64
    config.model.bottleneck_blocks = 2
    config.model.codebook_size = 1024
    config.model.scale_factor = 1.0  # these latents have unit variance already
    config.objective.reconstruction_weight = 10.0  # images are flat: their error is small
    config.objective.unquantized_share = 0.05
    config.objective.revive_until = 0.72
    config.objective.settle_statistics_from = 1 / 3
    config.objective.revive_every = 25
    config.optim.learning_rate = 2e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 50
    config.optim.beta2 = 0.99
    config.optim.weight_decay = 0.0
    config.checkpoint.every = 300
    config.log.every = 50


def _tiny(config: ConfigDict) -> None:
    _shapes(config)
    config.data.spec = "tiny"
    config.num_steps = 600
    config.batch_size = 32
    config.model.width = 48
    config.model.bottleneck_blocks = 1
    config.model.codebook_size = 128
    config.objective.revive_until = 2 / 3
    config.objective.settle_statistics_from = 0.25
    config.checkpoint.every = 300


def _shapes64(config: ConfigDict) -> None:
    _shapes(config)
    config.data.spec = "shapes64"
    config.data.image_size = 64
    config.num_steps = 2000
    config.batch_size = 32
    config.model.width = 96
    config.model.codebook_size = 1024
    config.objective.revive_until = 0.6
    config.objective.settle_statistics_from = 0.3


def _folder(config: ConfigDict, size: int) -> None:
    """Icons, drawings or photographs of 32 or 64 pixels; captions are not read."""
    _shapes(config)
    common.own_images(config, size)
    config.data.captions = False
    config.data.flip = True
    config.num_steps = 3000
    config.batch_size = 32 if size <= 32 else 16
    config.model.width = 96
    config.model.codebook_size = 2048
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 100
    config.checkpoint.every = 1000
    config.log.preview_every = 1000


def _f4(config: ConfigDict) -> None:
    """Würstchen appendix: 500k steps, batch 256, 128-pixel crops, adversarial loss after 10k."""
    config.data.source = "folder"
    config.data.image_size = 128
    config.data.resize = 256  # 128-pixel crops out of 256-pixel images
    config.data.crop = "random"
    config.data.captions = False
    config.num_steps = 500_000
    config.batch_size = 256
    config.precision = "bfloat16"
    config.optim.warmup_steps = 1000
    config.objective.adversarial_weight = 0.01
    config.objective.adversarial_start = 10_000
    # 0.1 in the paper; needs objective.perceptual_file, so it is off until one is given.
    config.objective.perceptual_weight = 0.0
    config.checkpoint.every = 5000
    config.log.preview_every = 5000
