"""A preset's train step, and what `encode` computes for it beforehand."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.compile.programs import train_program
from paella_jax.evaluation.flops import count_flops
from paella_jax.families.abstract import token_networks
from paella_jax.registry import abstract_method
from paella_jax.speed.case import Case
from paella_jax.training.from_encoded import encoding_of


def train_case(config: ConfigDict, mesh: Mesh, encoded: bool) -> Case:
    """One update, optimiser and frozen networks included; to be measured under `mesh`.

    Its products are counted without those that are only recomputed to save memory, and without
    those of image conditions that are dropped.
    """
    program = train_program(config, mesh, encoded)
    plain = train_program(_without_remat(config), mesh, encoded)
    name = "train step, encoded data" if encoded else "train step"
    counted = (plain.function, plain.arguments)
    skipped = 0.0 if encoded else of_dropped_conditions(config)
    given = (name, program.function, program.arguments, config.batch_size, counted)
    return Case(*given, carries=True, skipped=skipped)


def encoding_case(config: ConfigDict) -> Case:
    """A batch of images and texts through the frozen networks, as `encode` runs them."""
    method = abstract_method(config)
    encoding = encoding_of(config, method)
    sample = method.transform(method.source[0])
    shape = lambda x: jax.ShapeDtypeStruct((config.batch_size, *np.shape(x)), np.asarray(x).dtype)
    batch = {name: shape(x) for name, x in sample.items()}
    arguments = (method.frozen, batch)
    return Case("encode images and texts", jax.jit(encoding.arrays), arguments, config.batch_size)


def of_dropped_conditions(config: ConfigDict) -> float:
    """FLOPs of frozen CLIP towers on the images and texts of a batch that nobody sees."""
    if "image_encoder" not in config or config.image_encoder.kind != "clip":
        return 0.0
    networks, frozen = token_networks(config)
    count, side, drop = config.batch_size, config.data.image_size, config.objective
    images = jax.ShapeDtypeStruct((count, side, side, 3), np.float32)
    skipped = drop.image_drop * count_flops(networks.embed_images, {}, frozen, images)
    if networks.clip_text is None or networks.text_encoder is None:
        return skipped
    texts = jax.ShapeDtypeStruct((count, 77), np.int32)
    return skipped + drop.clip_text_drop * count_flops(networks.embed_texts, frozen, texts)


def _without_remat(config: ConfigDict) -> ConfigDict:
    config = config.copy_and_resolve_references()
    for block in config.values():
        if isinstance(block, ConfigDict) and "remat" in block:
            block.remat = False
    return config
