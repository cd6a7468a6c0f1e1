"""Paella: text -> tokens of a trained VQGAN.

    python -m paella_jax.train --config configs/paella.py:shapes --workdir runs/paella \
        --config.tokenizer=runs/vqgan

Presets: `tiny` (continuous integration), `shapes` (quickstart), `shapes_long` (more steps),
`shapes_tasks` (images, labels and maps as conditions too), `shapes64`, `finetune` (trains on from
another run), `600m` and `1b` (released architecture and recipe; unmeasured here, needs a pod).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = "shapes") -> ConfigDict:
    """Builds one preset. Raises ValueError for an unknown one."""
    presets = {
        "tiny": _tiny,
        "shapes": _shapes,
        "shapes_long": _shapes_long,
        "shapes64": _shapes64,
        "shapes_tasks": _shapes_tasks,
        "600m": _600m,
        "1b": _1b,
        "finetune": _finetune,
    }
    if preset not in presets:
        raise ValueError(
            f"unknown preset {preset!r} of configs/paella.py; known: {sorted(presets)}"
        )
    config = common.base()
    config.method = "paella"
    config.preset = preset
    config.tokenizer = ""  # run folder of a trained VQGAN

    config.model = ConfigDict()
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
    config.model.kernel_size = 3
    config.model.dropout = 0.1
    config.model.self_attention = True
    config.model.remat = False  # recompute activations in the backward pass

    config.text = ConfigDict()
    config.text.folder = ""  # frozen T5/ByT5 in Hugging Face layout; empty: train one jointly
    config.text.max_length = 768  # bytes including the end token; longer captions are cut
    config.text.pad_to = 256  # static length of training batches
    config.text.width = 1536  # the fields below describe a jointly trained encoder
    config.text.num_layers = 2
    config.text.num_heads = 4
    config.text.hidden_dim = 256
    config.text.dropout = 0.0

    config.clip = ConfigDict()
    config.clip.folder = ""  # frozen CLIP text and vision towers in Hugging Face layout
    config.image_encoder = ConfigDict()
    config.image_encoder.kind = "none"  # none, clip (of clip.folder) or joint (fields below)
    config.image_encoder.patch_size = 8
    config.image_encoder.width = 96
    config.image_encoder.num_layers = 2
    config.image_encoder.num_heads = 4
    config.image_encoder.projection = 96  # width of the embedding

    config.objective = ConfigDict()
    config.objective.label_smoothing = 0.1
    config.objective.minimum_weight = 0.3  # loss weight of a clean token at t = 0
    config.objective.minimum_t = 0.001
    # Shares of samples trained without a condition, each kind by its own draw per sample.
    config.objective.text_drop = 0.05
    config.objective.clip_text_drop = 0.9
    config.objective.image_drop = 0.9
    config.objective.label_drop = 0.5
    config.objective.segmentation_drop = 0.5
    # False: padding up to the batch's longest caption is seen as text, as in the released models'
    # training. Sampling never sees it: a prompt is drawn as if it were alone in its batch.
    config.objective.mask_padding = True
    config.objective.loss_chunks = 1  # cuts the classifier's positions to save memory

    config.sampler = ConfigDict()
    config.sampler.num_steps = 12
    config.sampler.temperature = (0.7, 0.3)  # first and last step
    config.sampler.guidance_scale = (8.0, 8.0)  # first and last step; 1 is off
    config.sampler.guided_steps = None  # guidance stops after this many steps
    config.sampler.renoise_steps = None  # None: all steps but the last
    config.sampler.renoise_mode = "initial"  # initial, previous or fresh
    config.sampler.typical_mass = None
    config.sampler.joint_guidance = False  # one doubled batch per guided step instead of two calls

    common.add_evaluation(config)
    presets[preset](config)
    return config


def _shapes(config: ConfigDict) -> None:
    common.shapes_recipe(config)
    common.shapes_text(config)
    config.model.codebook_size = 1024
    config.model.token_width = 64
    config.model.time_width = 32
    config.model.cond_width = 96
    config.model.widths = (128,)
    config.model.depths = (2,)
    config.model.num_heads = (4,)
    config.model.patterns = ("CTA",)
    config.model.dropout = 0.0
    config.objective.label_smoothing = 0.05
    config.objective.text_drop = 0.1
    config.optim.learning_rate = 2e-3
    config.sampler.guidance_scale = (2.0, 2.0)  # best of 1, 2, 3, 5, 8 (`evaluate --sweep`)


def _shapes_long(config: ConfigDict) -> None:
    _shapes(config)
    config.num_steps = 12_000
    config.checkpoint.every = 2000
    config.log.preview_every = 1000


def _shapes_tasks(config: ConfigDict) -> None:
    """`shapes` with every kind of condition, for the image tasks of `sample.py`."""
    _shapes(config)
    config.num_steps = 4000
    config.model.num_classes = 4  # the shapes
    config.model.num_segments = 5  # background and the shapes
    config.image_encoder.kind = "joint"
    # So that the other conditions learn to stand alone; with half of the texts dropped the small
    # text encoder does not learn to read any more.
    config.objective.text_drop = 0.3
    config.objective.image_drop = 0.6
    config.objective.label_drop = 0.6
    config.objective.segmentation_drop = 0.6


def _tiny(config: ConfigDict) -> None:
    _shapes(config)
    common.tiny_recipe(config)
    config.model.codebook_size = 128
    config.model.token_width = 32
    config.model.cond_width = 64
    config.model.widths = (64,)
    config.model.depths = (2,)


def _shapes64(config: ConfigDict) -> None:
    _shapes(config)
    config.data.spec = "shapes64"
    config.data.image_size = 64
    config.num_steps = 6000
    config.batch_size = 32
    config.model.codebook_size = 1024
    config.model.widths = (128, 192)
    config.model.depths = (2, 4)
    config.model.num_heads = (0, 6)
    config.model.patterns = ("CT", "CTA")
    config.text.max_length = 192
    config.text.pad_to = 160


def _1b(config: ConfigDict) -> None:
    """The released recipe (reference/paella.md 3); ByT5-XL is read from `text.folder`."""
    config.data.source = "folder"
    config.data.image_size = 256
    config.num_steps = 1_500_000
    config.batch_size = 2048
    config.precision = "bfloat16"
    config.mesh.fsdp = -1
    config.mesh.data = 1
    config.model.remat = True
    config.objective.loss_chunks = 16
    config.objective.mask_padding = False
    config.image_encoder.kind = "clip"
    config.text.width = 2560  # ByT5-XL's
    config.checkpoint.every = 5000
    config.log.preview_every = 10_000


def _600m(config: ConfigDict) -> None:
    """As `1b` with fewer blocks; the published 573M model is an older architecture."""
    _1b(config)
    config.model.widths = (512, 1024, 1024)
    config.model.depths = (6, 14, 6)


def _finetune(config: ConfigDict) -> None:
    """Trains on from `init_from` on a folder of images; what is None here is that run's.

    For LoRA add `--config.lora.rank=16 --config.optim.learning_rate=8e-4`.
    """
    blocks = (config.model, config.text, config.clip, config.image_encoder)
    for block in (*blocks, config.objective, config.sampler):
        for name in block:
            block[name] = None
    config.precision = None
    config.data.image_size = None
    config.data.source = "folder"
    config.num_steps = 1000
    config.batch_size = 8
    config.optim.warmup_steps = 50
    config.checkpoint.every = 250
    config.log.every = 10
    config.log.preview_every = 250
