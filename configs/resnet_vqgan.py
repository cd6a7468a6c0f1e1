"""MUSE's tokenizer: a ResNet VQGAN without attention (docs/models/muse.md 1.4).

    python -m paella_jax.train --config configs/resnet_vqgan.py:shapes --workdir runs/resnet_vqgan

Presets: `tiny` (continuous integration), `shapes` (embedded data), `f16` (MUSE's base model, 256
pixels), `f8` (its super-resolution model, 512 pixels) and `finetune_decoder` (MUSE's larger
decoder on a frozen encoder; needs --config.init_from=RUN). The last three are unmeasured here: they
need a pod and images.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from paella_jax.config import choose, sibling

common = sibling(__file__, "common")
vqgan = sibling(__file__, "vqgan")


def get_config(preset: str = "shapes") -> ConfigDict:
    """Builds one preset. Raises ConfigError for an unknown one."""
    presets = {
        "tiny": _tiny,
        "shapes": _shapes,
        "f16": _f16,
        "f8": _f8,
        "finetune_decoder": _finetune_decoder,
    }
    fill = choose(__file__, presets, preset)
    config = common.base()
    config.method = "vqgan"
    config.preset = preset
    config.architecture = "resnet"
    config.train_decoder_only = False  # True: encoder and codebook stay those of init_from

    config.model = ConfigDict()
    config.model.widths = (128, 256, 256, 512, 768)  # channels per level; 5 levels give f16
    config.model.blocks_per_level = 2  # in the encoder
    config.model.latent_channels = 64  # on both sides of the projections to and from the codes
    config.model.code_channels = 64
    config.model.codebook_size = 8192
    config.model.norm_groups = 32
    config.model.middle_attention = False
    config.model.encoder_attention = (False,) * 5  # per level
    config.model.decoder_attention = (False,) * 5
    config.model.decoder_widths = ()  # empty: as the encoder's
    config.model.decoder_blocks_per_level = 0  # 0: one more than the encoder's

    vqgan.add_objective(config)
    # As in the VQ-VAE paper; aMUSEd's code swaps them: 0.25 on the codebook, 1 on commitment.
    config.objective.codebook_weight = 1.0
    config.objective.commitment_weight = 0.25
    config.objective.unquantized_share = 0.0  # no method works on these latents
    fill(config)
    return config


def _levels(config: ConfigDict, widths: tuple[int, ...]) -> None:
    config.model.widths = widths
    config.model.encoder_attention = config.model.decoder_attention = (False,) * len(widths)


def _shapes(config: ConfigDict) -> None:
    """f4, as Paella's tokenizer of the same data."""
    _levels(config, (16, 32, 64))
    config.num_steps = 1500
    config.batch_size = 32
    config.model.blocks_per_level = 1
    config.model.latent_channels = 16
    config.model.code_channels = 8
    config.model.codebook_size = 1024
    config.model.norm_groups = 8
    config.objective.reconstruction_weight = 10.0  # images are flat: their error is small
    config.objective.revive_until = 2 / 3
    config.objective.revive_every = 25
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 50
    config.optim.beta2 = 0.99
    config.optim.weight_decay = 0.0
    config.checkpoint.every = 500
    config.log.every = 50


def _tiny(config: ConfigDict) -> None:
    _shapes(config)
    _levels(config, (16, 32, 48))
    config.data.spec = "tiny"
    config.num_steps = 600
    config.model.codebook_size = 128
    config.checkpoint.every = 300


def _published(config: ConfigDict) -> None:
    """The recipe of MUSE; a field named here as a guess is not in the paper."""
    config.data.source = "folder"
    config.data.crop = "random"
    config.data.captions = False
    config.num_steps = 1_000_000
    config.batch_size = 256
    config.precision = "bfloat16"  # guess
    config.optim.learning_rate = 1e-4  # of tokenizer and discriminator
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 10_000
    config.optim.beta1 = 0.9
    config.optim.beta2 = 0.99
    config.optim.weight_decay = 1e-4
    config.objective.adversarial_weight = 0.1
    config.objective.adversarial_start = 10_000  # guess: after the warm-up
    # 0.05 in the paper; needs objective.perceptual_file, so it is off until one is given.
    config.objective.perceptual_weight = 0.0
    config.checkpoint.every = 5000
    config.log.preview_every = 5000


def _f16(config: ConfigDict) -> None:
    """MUSE gives the base width, 128, and 2 blocks per level; the decoder has 3, as taming's.

    The multipliers (1, 2, 2, 4, 6) and the code width, 64, are guesses: aMUSEd's.
    """
    _published(config)
    config.data.image_size = 256


def _f8(config: ConfigDict) -> None:
    """The same with one level less; its multipliers (1, 2, 2, 4) are a guess too."""
    _published(config)
    _levels(config, (128, 256, 256, 512))
    config.data.image_size = 512


def _finetune_decoder(config: ConfigDict) -> None:
    """A new decoder of 4 blocks per level and base width 256; the rest is that of `init_from`.

    The multipliers are those of `f16`; for an f8 tokenizer add
    `--config.model.decoder_widths=(256,512,512,1024)`. Steps and learning rate are not published:
    they are a guess.
    """
    _published(config)
    for name in config.model:
        config.model[name] = None
    config.model.decoder_widths = (256, 512, 512, 1024, 1536)
    config.model.decoder_blocks_per_level = 4
    config.precision = None
    config.data.image_size = None
    config.train_decoder_only = True
