"""Masked transformers: MUSE and aMUSEd, text -> tokens of a trained VQGAN.

    python -m paella_jax.train --config configs/muse.py:shapes --workdir runs/muse \
        --config.tokenizer=runs/vqgan

Presets: `tiny` (continuous integration) and `shapes` (embedded data: MUSE's recipe on the data,
tokenizer and budget of configs/paella.py's), `folder32` and `folder64` (own captioned images, as
configs/paella.py's), `super_resolution_tiny` and `super_resolution_shapes`
(4x4 tokens of an f8 tokenizer to 8x8 of an f4 one), `632m`, `3b` and `super_resolution` (as
published, guesses named; docs/models/muse.md 1), `amused_256` and `amused_512` (the released
architecture, where `convert --family amused` starts from), `finetune` and `style` (LoRA on one
image). The published ones are unmeasured here: they need a pod.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from paella_jax.config import choose, sibling

cells = sibling(__file__, "cells")
common = sibling(__file__, "common")


# What aMUSEd's fine-tuning script spares from weight decay (docs/models/muse.md 2.8).
AMUSED_DECAY = r"^(?!.*(bias$|token_table$|(text_norm|embedding_norm|output_norm)/scale$))"


def get_config(preset: str = "shapes") -> ConfigDict:
    """Builds one preset. Raises ConfigError for an unknown one."""
    presets = {
        "tiny": _tiny,
        "shapes": _shapes,
        "folder32": lambda config: _folder(config, 32),
        "folder64": lambda config: _folder(config, 64),
        "super_resolution_shapes": _super_resolution_shapes,
        "super_resolution_tiny": _super_resolution_tiny,
        "632m": _632m,
        "3b": _3b,
        "super_resolution": _super_resolution,
        "amused_256": _amused_256,
        "amused_512": _amused_512,
        "finetune": cells.train_further,
        "style": cells.style_of_one_image,
    }
    fill = choose(__file__, presets, preset)
    config = cells.token_config(preset)
    config.cell.corruption = "mask"
    config.cell.network = "transformer"
    config.cell.sampler = "confidence"
    config.objective.density = "cosine"
    config.objective.label_smoothing = 0.1  # MUSE says nothing; MaskGIT's and open-muse's
    config.objective.text_drop = 0.1
    config.text.empty_is_absent = True
    config.lora.pattern = r"^predictor/.*(query|key|value)/kernel$"  # as aMUSEd's
    # Guidance t rises from 0 (w = 1 + t; docs/models/muse.md 1.6); its end is not published.
    config.sampler.num_steps = 24
    config.sampler.guidance_scale = (1.0, 5.0)
    config.sampler.temperature = (1.0, 1.0)
    fill(config)
    return config


def _shapes(config: ConfigDict) -> None:
    common.shapes_recipe(config)
    common.shapes_text(config)
    cells.shapes_networks(config)
    config.objective.label_smoothing = 0.05
    config.optim.learning_rate = 2e-3
    # For 64 tokens and a text that says all; docs/results.md 5.
    config.sampler.num_steps = 12
    config.sampler.temperature = (0.5, 0.5)
    config.sampler.choice_temperature = (0.5, 0.0)
    config.sampler.guidance_scale = (1.0, 1.5)


def _tiny(config: ConfigDict) -> None:
    _shapes(config)
    common.tiny_recipe(config)
    cells.tiny_networks(config)


def _folder(config: ConfigDict, size: int) -> None:
    """MUSE's recipe on own images, at the data and budget of configs/paella.py's."""
    cells.own_tokens(config, size)
    config.sampler.num_steps = 12
    config.sampler.temperature = (0.7, 0.7)
    config.sampler.choice_temperature = (2.0, 0.0)
    config.sampler.guidance_scale = (1.0, 4.0)


def _super_resolution_shapes(config: ConfigDict) -> None:
    """From a `shapes` tokenizer at f8 (4x4 tokens) to one at f4 (8x8)."""
    _shapes(config)
    config.cell.network = "super_resolution"
    config.sampler.num_steps = 8


def _super_resolution_tiny(config: ConfigDict) -> None:
    _tiny(config)
    config.cell.network = "super_resolution"
    config.sampler.num_steps = 8


def _published(config: ConfigDict) -> None:
    """Table 4's recipe (docs/models/muse.md 1.2, 1.5); T5-XXL is read from `text.folder`."""
    common.on_a_pod(config)
    config.data.image_size = 256
    config.num_steps = 1_500_000
    config.batch_size = 512
    config.text.max_length = 128  # a guess: not published
    config.text.pad_to = 128
    config.text.buckets = 4
    config.text.width = 4096  # T5-XXL's
    config.objective.loss_chunks = 4
    config.optim.kind = "adafactor"
    config.optim.beta1 = 0.9
    config.optim.beta2 = 0.96
    config.optim.weight_decay = 0.045
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 5000
    config.optim.clip_norm = 0.0  # not published
    # No average in training: the kept checkpoints are averaged afterwards with decay 0.7
    # (`python -m paella_jax.average`).
    config.checkpoint.keep = 20


def _3b(config: ConfigDict) -> None:
    _published(config)
    config.transformer.remat = True
    config.transformer.loop = True


def _632m(config: ConfigDict) -> None:
    """Depth and widths are a guess: of those that come near 632M the 3B model's proportions."""
    _published(config)
    config.transformer.width = 1024
    config.transformer.depth = 36
    config.transformer.feed_forward_width = 4096
    config.transformer.remat = True
    config.transformer.loop = True


def _super_resolution(config: ConfigDict) -> None:
    """16x16 to 64x64 tokens, Table 6 (docs/models/muse.md 1.3); `low_tokenizer` is the f16 one."""
    _published(config)
    config.cell.network = "super_resolution"
    config.data.image_size = 512
    config.num_steps = 1_000_000
    config.super_resolution.remat = True
    config.super_resolution.loop = True
    config.objective.loss_chunks = 16
    config.sampler.num_steps = 8


def _amused_256(config: ConfigDict) -> None:
    """aMUSEd's U-ViT on CLIP-L text; trains as its fine-tuning script (docs/models/muse.md 2)."""
    config.cell.network = "uvit"
    config.data.source = "folder"
    config.data.image_size = 256
    config.data.threads = 16
    config.data.crop = "random"  # the script's, which tells the network where it cropped
    config.log.validation_images = 2048
    config.num_steps = 10_000
    config.batch_size = 128
    config.precision = "bfloat16"
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.uvit.vocabulary_size = 8256  # 64 rows behind the codes, the last is the mask
    config.text.kind = "clip"
    config.text.empty_is_absent = False
    config.objective.label_smoothing = 0.0
    config.objective.text_drop = 0.1  # of its training before; the script drops none
    config.optim.learning_rate = 1e-4
    config.optim.warmup_steps = 0
    config.optim.clip_norm = 0.0
    config.optim.decay_pattern = AMUSED_DECAY
    config.optim.ema_decay = 0.9999
    config.sampler.num_steps = 12
    config.sampler.guidance_scale = (10.0, 10.0)


def _amused_512(config: ConfigDict) -> None:
    _amused_256(config)
    config.data.image_size = 512
    config.uvit.downsample = True
    config.uvit.upsample = True
