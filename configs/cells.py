"""What every token predictor's configuration has: the cell, its networks, objective and sampler.

A cell is corruption x network x sampler (paella_jax/families/cells.py); configs/paella.py and
configs/muse.py start from here and choose one. Only the chosen network's block is read; a new one
(paella_jax/families/networks.py) gets a block in `_add_networks`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from paella_jax.config import sibling

common = sibling(__file__, "common")


def token_config(preset: str) -> ConfigDict:
    """All blocks with the released Paella's values."""
    config = common.base()
    config.method = "tokens"
    config.preset = preset
    config.tokenizer = ""  # run folder of a trained VQGAN
    config.low_tokenizer = ""  # the small images' one, for cell.network=super_resolution

    config.cell = ConfigDict()
    config.cell.corruption = "uniform"  # uniform (random tokens) or mask
    config.cell.network = "unet"  # a key of NETWORKS: unet, transformer, uvit, super_resolution
    config.cell.sampler = "random"  # what is corrupted again: random or least confident tokens

    _add_networks(config)
    _add_conditions(config)
    _add_objective_and_sampler(config)
    common.add_evaluation(config)
    return config


def _add_networks(config: ConfigDict) -> None:
    config.model = ConfigDict()  # cell.network=unet, and the vocabulary of all
    config.model.codebook_size = 8192  # must equal the tokenizer's
    config.model.token_width = 256  # token embedding and classifier width
    config.model.patch_size = 2
    config.model.time_width = 64
    config.model.cond_width = 1024  # width of the conditioning sequence
    config.model.widths = (640, 1280, 1280)  # channels per level
    config.model.depths = (6, 16, 6)  # repetitions of the level's pattern, down and up
    config.model.num_heads = (0, 16, 16)
    config.model.patterns = ("CT", "CTA", "CTA")  # C conv, T timestep, A attention, F MLP
    config.model.clip_tokens = 4
    config.model.num_classes = 0  # condition on class labels (data must have them)
    config.model.num_segments = 0  # condition on segmentation maps (data must have them)
    config.model.positions = False  # position vectors, for small maps
    config.model.kernel_size = 3
    config.model.dropout = 0.1
    config.model.self_attention = True
    config.model.remat = False  # recompute activations in the backward pass
    config.model.loop = False  # repeated blocks as one loop: for deep networks, which compile long
    common.add_kernels(config.model)

    config.transformer = ConfigDict()  # cell.network=transformer: MUSE's base model, here 3B
    config.transformer.width = 2048
    config.transformer.depth = 48
    config.transformer.num_heads = 16  # a guess: not published
    config.transformer.feed_forward_width = 8192
    config.transformer.time_width = 0  # of the noise level's embedding; 0: not told, as MUSE
    config.transformer.tied_head = False  # MaskGIT's head: a norm, the input's table and a bias
    config.transformer.dropout = 0.0
    config.transformer.remat = False
    config.transformer.loop = False  # layers as one loop: for deep networks, which compile long
    config.transformer.attention = "auto"  # kernel: auto, xla, cudnn or flash

    _add_uvit(config)
    _add_super_resolution(config)


def _add_uvit(config: ConfigDict) -> None:
    config.uvit = ConfigDict()  # cell.network=uvit: aMUSEd, here 256
    config.uvit.vocabulary_size = 0  # rows of the input table; 0: the codes and the mask
    config.uvit.token_width = 768
    config.uvit.conv_width = 768
    config.uvit.conv_blocks = 3
    config.uvit.conv_heads = 12
    config.uvit.width = 1024
    config.uvit.depth = 22
    config.uvit.num_heads = 16
    config.uvit.feed_forward_width = 2816
    config.uvit.micro_width = 256
    config.uvit.micro_conds = 5  # 6: it is also told the noise level
    config.uvit.downsample = False
    config.uvit.upsample = False
    config.uvit.positions = False  # position vectors, for small maps
    config.uvit.use_bias = False
    config.uvit.learned_norms = True
    config.uvit.norm_epsilon = 1e-6
    config.uvit.dropout = 0.0
    config.uvit.attention_dropout = 0.0
    config.uvit.remat = False
    config.uvit.attention = "auto"  # kernel: auto, xla, cudnn or flash
    config.uvit.depthwise = "auto"  # convolutions: auto, shifts or convolution


def _add_super_resolution(config: ConfigDict) -> None:
    config.super_resolution = ConfigDict()  # cell.network=super_resolution: MUSE's Table 6
    config.super_resolution.low_grid = 16  # side of the small image's token map
    config.super_resolution.low_depth = 16
    config.super_resolution.width = 1024
    config.super_resolution.depth = 32
    config.super_resolution.num_heads = 16  # a guess: not published
    config.super_resolution.feed_forward_width = 4096
    config.super_resolution.block_size = 8  # tokens per side of a local attention block
    config.super_resolution.time_width = 0
    config.super_resolution.tied_head = False
    config.super_resolution.dropout = 0.0
    config.super_resolution.remat = False
    config.super_resolution.loop = False
    config.super_resolution.attention = "auto"  # kernel: auto, xla, cudnn or flash


def _add_conditions(config: ConfigDict) -> None:
    config.text = ConfigDict()
    config.text.kind = "t5"  # t5 (the fields below), or clip: the states of clip.folder's tower
    config.text.folder = ""  # frozen T5/ByT5 in Hugging Face layout; empty: train one jointly
    config.text.max_length = 768  # bytes including the end token; longer captions are cut
    # Static length of training batches, and so where captions are cut (docs/models/paella.md 3).
    config.text.pad_to = 256
    # Lengths that a frozen T5 sorts a batch's texts by, so that short ones cost less.
    config.text.buckets = 1
    config.text.attention = "xla"  # kernel of frozen encoders, of images too: xla, cudnn or auto
    config.text.empty_is_absent = False  # an empty text is invisible (MUSE), not its end token
    config.text.width = 1536  # the fields below describe a jointly trained encoder
    config.text.units = "bytes"  # or words, which have fixed vectors: lengths above are then words
    config.text.values_from = (
        "states"  # what attention reads of a word: its state in the text, or words
    )
    config.text.num_layers = 2
    config.text.num_heads = 4
    config.text.hidden_dim = 256
    config.text.dropout = 0.0

    config.clip = ConfigDict()
    config.clip.folder = ""  # frozen CLIP text and vision towers in Hugging Face layout
    config.image_encoder = ConfigDict()
    # none, clip (of clip.folder), or trained along: joint, a CLIP tower of the fields below, or
    # conv, convolutions of its width, which learn from fewer images
    config.image_encoder.kind = "none"
    config.image_encoder.patch_size = 8
    config.image_encoder.width = 96
    config.image_encoder.num_layers = 2
    config.image_encoder.num_heads = 4
    config.image_encoder.projection = 96  # width of the embedding


def _add_objective_and_sampler(config: ConfigDict) -> None:
    config.objective = ConfigDict()
    config.objective.density = "uniform"  # of the corrupted fraction: uniform, or cosine (MUSE)
    config.objective.minimum_t = 0.001  # smallest fraction
    config.objective.label_smoothing = 0.1
    # Tokens that the loss is of: all (weighted as Paella's), corrupted, or None: all where they are
    # random, corrupted where they are masks.
    config.objective.loss_positions = None
    config.objective.minimum_weight = 0.3  # of all: the weight of a clean token at t = 0
    # Shares of samples trained without a condition, each kind by its own draw per sample.
    config.objective.text_drop = 0.05
    config.objective.clip_text_drop = 0.9  # of CLIP's text beside the other; alone: text_drop
    config.objective.image_drop = 0.9
    config.objective.label_drop = 0.5
    config.objective.segmentation_drop = 0.5
    # Share of samples that keep a single kind, drawn by how often each is kept.
    config.objective.one_condition = 0.0
    # False: padding up to the batch's longest caption is seen as text, as in the released models'
    # training. Sampling never sees it: a prompt is drawn as if it were alone in its batch.
    config.objective.mask_padding = True
    config.objective.loss_chunks = 1  # cuts the classifier's positions to save memory
    common.add_generator(config.objective)

    config.sampler = ConfigDict()
    config.sampler.num_steps = 12
    config.sampler.temperature = (0.7, 0.3)  # first and last step
    config.sampler.guidance_scale = (8.0, 8.0)  # first and last step; 1 is off
    # Image to image of a strength below 1, as (near 0, near 1); None: guidance_scale
    config.sampler.image_guidance = None
    config.sampler.guided_steps = None  # guidance stops after this many steps
    config.sampler.renoise_steps = None  # None: all steps but the last
    config.sampler.renoise_mode = "initial"  # initial, previous or fresh
    config.sampler.typical_mass = None
    config.sampler.schedule = "cosine"  # fraction still masked: cosine, linear or power
    config.sampler.exponent = 2.0  # of the power schedule
    config.sampler.choice_temperature = (2.0, 0.0)  # noise on the confidences
    # One doubled batch per guided step instead of two calls; None: where it is faster.
    config.sampler.joint_guidance = None


def shapes_networks(config: ConfigDict) -> None:
    """Small networks for the embedded data; all are told the level.

    Forward passes on 8x8 tokens with 24 words of text, whose encoder is in it, need 62 (unet), 87
    (transformer) and 61 (uvit) MFLOP: a comparison evens that out by the number of images.
    """
    config.model.codebook_size = 1024
    config.model.token_width = 64
    config.model.time_width = 32
    config.model.cond_width = 96
    config.model.widths = (128,)
    config.model.depths = (2,)
    config.model.num_heads = (4,)
    config.model.patterns = ("CTA",)
    config.model.positions = True
    config.model.dropout = 0.0
    config.transformer.width = 96
    config.transformer.depth = 3
    config.transformer.num_heads = 4
    config.transformer.feed_forward_width = 384
    config.transformer.time_width = 32
    config.uvit.token_width = 64
    config.uvit.conv_width = 64
    config.uvit.conv_blocks = 1
    config.uvit.conv_heads = 4
    config.uvit.width = 128
    config.uvit.depth = 3
    config.uvit.num_heads = 4
    config.uvit.feed_forward_width = 352
    config.uvit.micro_width = 32
    config.uvit.micro_conds = 6
    config.uvit.positions = True
    config.uvit.downsample = True
    config.uvit.upsample = True
    config.super_resolution.low_grid = 4
    config.super_resolution.low_depth = 2
    config.super_resolution.width = 96
    config.super_resolution.depth = 3
    config.super_resolution.num_heads = 4
    config.super_resolution.feed_forward_width = 384
    config.super_resolution.block_size = 4


def own_networks(config: ConfigDict, size: int) -> None:
    """Networks for a user's images of 32 or 64 pixels on one machine.

    At 32 pixels they need 308 (unet), 393 (transformer) and 231 (uvit) MFLOP.
    """
    shapes_networks(config)
    config.model.codebook_size = 2048
    config.model.token_width = 128
    config.model.cond_width = 128
    config.model.widths = (256,) if size <= 32 else (128, 256)
    config.model.depths = (3,) if size <= 32 else (1, 3)
    config.model.num_heads = (8,) if size <= 32 else (0, 8)
    config.model.patterns = ("CTA",) if size <= 32 else ("CT", "CTA")
    config.model.dropout = 0.1
    config.transformer.width = 192
    config.transformer.depth = 4
    config.transformer.num_heads = 6
    config.transformer.feed_forward_width = 768
    config.transformer.dropout = 0.1
    config.uvit.token_width = 128
    config.uvit.conv_width = 128
    config.uvit.width = 256
    config.uvit.depth = 3
    config.uvit.num_heads = 8
    config.uvit.feed_forward_width = 704
    config.uvit.dropout = 0.1


def own_tokens(config: ConfigDict, size: int) -> None:
    """Everything of a token predictor on own images but its cell."""
    common.own_images(config, size)
    common.own_recipe(config)
    common.own_text(config)
    own_networks(config, size)
    config.objective.label_smoothing = 0.05
    config.objective.text_drop = 0.1
    config.sampler.guidance_scale = (3.0, 3.0)
    if size > 32:  # four times the tokens
        config.num_steps = 20_000


def tiny_networks(config: ConfigDict) -> None:
    """Smaller ones for the `tiny` data."""
    shapes_networks(config)
    config.model.codebook_size = 128
    config.model.token_width = 32
    config.model.cond_width = 64
    config.model.widths = (64,)
    config.transformer.width = 64
    config.transformer.depth = 2
    config.transformer.feed_forward_width = 256
    config.uvit.token_width = 32
    config.uvit.conv_width = 32
    config.uvit.width = 64
    config.uvit.depth = 2
    config.uvit.feed_forward_width = 176
    config.super_resolution.low_depth = 1
    config.super_resolution.width = 64
    config.super_resolution.depth = 2
    config.super_resolution.feed_forward_width = 256


def train_further(config: ConfigDict) -> None:
    """Trains on from `init_from` on a folder of images; what is None here is that run's."""
    for block, fields in config.items():
        if isinstance(fields, ConfigDict) and block not in {*common.base(), "evaluation"}:
            for name in fields:
                fields[name] = None
    config.precision = None
    config.data.image_size = None
    config.data.source = "folder"
    config.num_steps = 1000
    config.batch_size = 8
    config.optim.warmup_steps = 50
    config.checkpoint.every = 250
    config.log.every = 10
    config.log.preview_every = 250
    config.log.validation_images = 256


def style_of_one_image(config: ConfigDict) -> None:
    """One image's style by LoRA: aMUSEd's published recipe (docs/models/muse.md 2.8)."""
    train_further(config)
    config.data.source = "one_image"  # data.image_file and data.caption
    config.batch_size = 1
    config.num_steps = 1500
    config.optim.warmup_steps = 0
    config.optim.clip_norm = 0.0
    config.optim.learning_rate = 4e-4
    config.lora.rank = 16
    config.lora.alpha = 32.0
    config.checkpoint.every = 500
    config.log.preview_every = 0
