"""aMUSEd's tokenizer: diffusers' VQModel <-> our parameters (docs/models/muse.md 2.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.convert.amused import (
    attention_entries,
    index_count,
    linear_entries,
    norm_entries,
    shape_of,
)
from paella_jax.files.tensors import Entry, export_tensors, import_tensors
from paella_jax.models.vqmodel import VQModel

VQMODEL_CLASS = "VQModel"
ENCODER_LEVELS = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
DECODER_LEVELS = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}


def vqmodel_from_diffusers_config(config: Mapping[str, Any]) -> VQModel:
    """Our module for a VQModel's config.json.

    Raises:
      ValueError: an option that our network does not have.
    """
    fixed = {"in_channels": 3, "out_channels": 3, "act_fn": "silu", "norm_type": "group"}
    for name, value in fixed.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name} {config[name]!r} is not supported, only {value!r}")
    widths = tuple(config["block_out_channels"])
    encoder = _attention_of(config, "down_block_types", ENCODER_LEVELS)
    decoder = _attention_of(config, "up_block_types", DECODER_LEVELS)
    latent_channels = config["latent_channels"]
    return VQModel(
        widths=widths,
        blocks_per_level=config["layers_per_block"],
        latent_channels=latent_channels,
        code_channels=config.get("vq_embed_dim") or latent_channels,
        codebook_size=config["num_vq_embeddings"],
        norm_groups=config["norm_num_groups"],
        middle_attention=config.get("mid_block_add_attention", True),
        encoder_attention=encoder,
        decoder_attention=decoder[::-1],
    )


def _attention_of(
    config: Mapping[str, Any], key: str, kinds: Mapping[str, bool]
) -> tuple[bool, ...]:
    unknown = [kind for kind in config[key] if kind not in kinds]
    if unknown:
        raise ValueError(f"{key} {unknown} are not supported, only {sorted(kinds)}")
    return tuple(kinds[kind] for kind in config[key])


def vqmodel_diffusers_config(model: VQModel, sample_size: int = 32) -> dict[str, Any]:
    """The inverse: what config.json holds. Nothing reads `sample_size`.

    Raises:
      ValueError: a decoder of other sizes than the encoder's, which diffusers cannot hold.
    """
    if model.decoder_sizes != (tuple(model.widths), model.blocks_per_level + 1):
        raise ValueError(
            f"decoder_widths {model.decoder_widths} and decoder_blocks_per_level "
            f"{model.decoder_blocks_per_level} have no place in diffusers' VQModel; export the "
            "tokenizer from before its decoder was replaced"
        )
    name_of = lambda kinds, attention: next(k for k, value in kinds.items() if value == attention)
    same = model.code_channels == model.latent_channels
    return {
        "_class_name": VQMODEL_CLASS,
        "act_fn": "silu",
        "in_channels": 3,
        "out_channels": 3,
        "norm_type": "group",
        "block_out_channels": list(model.widths),
        "down_block_types": [name_of(ENCODER_LEVELS, a) for a in model.encoder_attention],
        "up_block_types": [name_of(DECODER_LEVELS, a) for a in model.decoder_attention[::-1]],
        "layers_per_block": model.blocks_per_level,
        "latent_channels": model.latent_channels,
        "vq_embed_dim": None if same else model.code_channels,
        "num_vq_embeddings": model.codebook_size,
        "norm_num_groups": model.norm_groups,
        "mid_block_add_attention": model.middle_attention,
        "lookup_from_codebook": True,
        "force_upcast": True,
        "sample_size": sample_size,
        "scaling_factor": 0.18215,
    }


def vqmodel_entries(model: VQModel) -> list[Entry]:
    """The name table of one configuration."""
    entries = [
        *linear_entries("encoder.conv_in", "encoder_in", layout="conv"),
        *norm_entries("encoder.conv_norm_out", "encoder_norm", bias=True),
        *linear_entries("encoder.conv_out", "encoder_out", layout="conv"),
        *linear_entries("quant_conv", "latents_to_codes", layout="conv1x1"),
        Entry("quantize.embedding.weight", ("codebook",)),
        *linear_entries("post_quant_conv", "codes_to_latents", layout="conv1x1"),
        *linear_entries("decoder.conv_in", "decoder_in", layout="conv"),
        *norm_entries("decoder.conv_norm_out", "decoder_norm", bias=True),
        *linear_entries("decoder.conv_out", "decoder_out", layout="conv"),
    ]
    last = len(model.widths) - 1
    for side, widths, blocks in (
        ("encoder", model.widths, model.blocks_per_level),
        ("decoder", *model.decoder_sizes),
    ):
        theirs = "down_blocks" if side == "encoder" else "up_blocks"
        # Each side in the order it runs in: the decoder's deepest level first.
        order = range(last + 1) if side == "encoder" else range(last, -1, -1)
        attention = getattr(model, f"{side}_attention")
        before = widths[0] if side == "encoder" else widths[-1]
        for place, level in enumerate(order):
            name, path = f"{side}.{theirs}.{place}", f"{side}_levels_{place}"
            width = widths[level]
            for block in range(blocks):
                projected = block == 0 and before != width
                entries += _resnet(f"{name}.resnets.{block}", path, f"block_{block}", projected)
                if attention[level]:
                    attention_name = f"{name}.attentions.{block}"
                    entries += _pixel_attention(attention_name, path, f"attention_{block}")
            before = width
            if place < last:
                sampler = "downsamplers" if side == "encoder" else "upsamplers"
                entries += linear_entries(
                    f"{name}.{sampler}.0.conv", path, "resample", layout="conv"
                )
        name, path = f"{side}.mid_block", f"{side}_middle"
        for block in range(2):
            entries += _resnet(f"{name}.resnets.{block}", path, f"block_{block}", False)
        if model.middle_attention:
            entries += _pixel_attention(f"{name}.attentions.0", path, "attention_0")
    return entries


def _resnet(name: str, level: str, block: str, projected: bool) -> list[Entry]:
    entries = []
    for number in (1, 2):
        entries += norm_entries(f"{name}.norm{number}", level, block, f"norm_{number}", bias=True)
        path = (level, block, f"conv_{number}")
        entries += linear_entries(f"{name}.conv{number}", *path, layout="conv")
    if projected:
        entries += linear_entries(
            f"{name}.conv_shortcut", level, block, "shortcut", layout="conv1x1"
        )
    return entries


def _pixel_attention(name: str, level: str, block: str) -> list[Entry]:
    return [
        *norm_entries(f"{name}.group_norm", level, block, "norm", bias=True),
        *attention_entries(name, level, block, "attention", bias=True),
    ]


def abstract_vqmodel(model: VQModel) -> dict[str, Any]:
    """Shapes of all parameters; nothing is computed."""
    size = model.downsampling
    init = lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    return jax.eval_shape(init)["params"]


def import_vqmodel(tensors: Mapping[str, np.ndarray], model: VQModel) -> dict[str, Any]:
    """State dict -> our parameters. Raises ConversionError listing every misfit."""
    return import_tensors(vqmodel_entries(model), tensors, abstract_vqmodel(model))


def export_vqmodel(
    params: Mapping[str, Any], model: VQModel, copy: bool = True
) -> dict[str, np.ndarray]:
    """Our parameters -> state dict; `copy` as in `export_tensors`."""
    return export_tensors(vqmodel_entries(model), params, copy)


def infer_vqmodel(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Fields of `VQModel` from a state dict's names and shapes: all but `norm_groups`.

    Raises:
      ConversionError: tensors that carry the sizes are missing.
    """
    shape = lambda name, rank: shape_of(tensors, name, rank, VQMODEL_CLASS)
    codes, code_channels = shape("quantize.embedding.weight", 2)
    latent_channels = shape("encoder.conv_out.weight", 4)[0]
    levels = index_count(tensors, r"encoder\.down_blocks\.(\d+)\.")
    widths = tuple(
        shape(f"encoder.down_blocks.{level}.resnets.0.conv1.weight", 4)[0]
        for level in range(levels)
    )
    has = lambda name: f"{name}.attentions.0.to_q.weight" in tensors
    return {
        "widths": widths,
        "blocks_per_level": index_count(tensors, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "latent_channels": latent_channels,
        "code_channels": code_channels,
        "codebook_size": codes,
        "middle_attention": has("encoder.mid_block"),
        "encoder_attention": tuple(has(f"encoder.down_blocks.{i}") for i in range(levels)),
        "decoder_attention": tuple(has(f"decoder.up_blocks.{i}") for i in range(levels))[::-1],
    }
