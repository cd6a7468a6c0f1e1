"""Paella: text -> tokens of a trained VQGAN.

    python -m paella_jax.train --config configs/paella.py:shapes --workdir runs/paella \
        --config.tokenizer=runs/vqgan

Presets: `tiny` (continuous integration), `shapes` (quickstart), `shapes_long` (more steps),
`shapes_tasks` (images, labels and maps as conditions too), `shapes64`, `folder32` and `folder64`
(a user's own captioned images, on one machine), `finetune` (trains on from another run), `style`
(LoRA on one image), `600m` and `1b` (released architecture and recipe; unmeasured here, needs a
pod). `--config.cell.corruption=mask` and the like change one factor.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from paella_jax.config import choose, sibling

cells = sibling(__file__, "cells")
common = sibling(__file__, "common")


def get_config(preset: str = "shapes") -> ConfigDict:
    """Builds one preset. Raises ConfigError for an unknown one."""
    presets = {
        "tiny": _tiny,
        "shapes": _shapes,
        "shapes_long": _shapes_long,
        "shapes64": _shapes64,
        "shapes_tasks": _shapes_tasks,
        "folder32": lambda config: cells.own_tokens(config, 32),
        "folder64": lambda config: cells.own_tokens(config, 64),
        "600m": _600m,
        "1b": _1b,
        "finetune": _finetune,
        "style": _style,
    }
    fill = choose(__file__, presets, preset)
    config = cells.token_config(preset)
    fill(config)
    return config


def _shapes(config: ConfigDict) -> None:
    common.shapes_recipe(config)
    common.shapes_text(config)
    cells.shapes_networks(config)
    config.objective.label_smoothing = 0.05
    config.objective.text_drop = 0.1
    config.optim.learning_rate = 2e-3
    config.sampler.guidance_scale = (2.0, 2.0)  # best of 1, 2, 3, 5, 8 (`evaluate --sweep`)
    config.sampler.image_guidance = (0.1, 0.6)  # captions say everything (docs/results.md 3)


def _shapes_long(config: ConfigDict) -> None:
    _shapes(config)
    config.num_steps = 12_000
    config.checkpoint.every = 2000
    config.log.preview_every = 1000


def _shapes_tasks(config: ConfigDict) -> None:
    """`shapes` with every kind of condition, for the image tasks of `sample.py`."""
    _shapes(config)
    config.num_steps = 8000
    config.batch_size = 16
    config.optim.learning_rate = 1e-3
    config.model.num_classes = 4  # the shapes
    config.model.num_segments = 5  # background and the shapes
    config.image_encoder.kind = "conv"
    # So that each condition learns to stand alone: an image without anything else, in a third of
    # the samples, is what its encoder learns from, and texts as much from theirs (results.md 3).
    config.objective.one_condition = 0.7
    config.objective.text_drop = 0.5
    config.objective.image_drop = 0.5
    config.objective.label_drop = 0.9
    config.objective.segmentation_drop = 0.9


def _tiny(config: ConfigDict) -> None:
    _shapes(config)
    common.tiny_recipe(config)
    cells.tiny_networks(config)


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
    config.text.max_length = 64
    config.text.pad_to = 48


def _1b(config: ConfigDict) -> None:
    """The released recipe (docs/models/paella.md 3); ByT5-XL is read from `text.folder`."""
    common.on_a_pod(config)
    config.data.image_size = 256
    config.data.crop = "random"
    config.num_steps = 1_500_000
    config.batch_size = 2048
    config.model.remat = True
    config.model.loop = True
    config.objective.loss_chunks = 16
    config.objective.mask_padding = False
    config.image_encoder.kind = "clip"
    config.text.width = 2560  # ByT5-XL's


def _600m(config: ConfigDict) -> None:
    """As `1b` with fewer blocks; the published 573M model is an older architecture."""
    _1b(config)
    config.model.widths = (512, 1024, 1024)
    config.model.depths = (6, 14, 6)


def _finetune(config: ConfigDict) -> None:
    """Trains on from `init_from` on a folder of images; what is None here is that run's.

    For LoRA add `--config.lora.rank=16 --config.optim.learning_rate=8e-4`.
    """
    cells.train_further(config)


def _style(config: ConfigDict) -> None:
    """The style of one image: data.image_file, data.caption and init_from."""
    cells.style_of_one_image(config)
