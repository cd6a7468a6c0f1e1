"""Paella's VQGAN and aMUSEd's VQModel as released (docs/models: paella.md 6, muse.md 2.5)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.convert.blocks import index_count, needed_shape
from paella_jax.convert.released import Field, Fixed, ForeignConfig, Released, Written
from paella_jax.files.tensors import (
    ConversionError,
    Entry,
    Names,
    attention,
    batch_norm,
    linear,
    norm,
)
from paella_jax.models.vqgan import VQGAN as PaellaVQGAN
from paella_jax.models.vqmodel import VQModel
from paella_jax.runs.frozen import variables_of
from paella_jax.typing import Tensors, Tree

CODEBOOKS = ("vquantizer.codebook.weight", "vquantizer.embedding.weight")  # diffusers' is second


def _pixels(model: PaellaVQGAN | VQModel) -> tuple[Any, ...]:
    return (jnp.zeros((1, model.downsampling, model.downsampling, 3)),)


def _with_codes(params: Tree, state: Tree) -> Tree:
    """In further training no code counts as dead before it has been watched for a while."""
    usage = np.ones(len(params["codebook"]), np.float32)
    codes = {"usage": usage, "candidates": np.zeros_like(params["codebook"], np.float32)}
    return {"params": {"vqgan": params}, "model_state": {**state, "codes": codes}}


def infer_vqgan(tensors: Tensors) -> dict[str, int]:
    """Fields of `VQGAN` from a state dict's names and shapes: all but `scale_factor`.

    Raises:
      ConversionError: the tensors that carry the sizes are missing.
    """
    count = lambda side: len([n for n in tensors if re.fullmatch(rf"{side}\.\d+\.gammas", n)])
    levels = count("down_blocks")
    codebook = CODEBOOKS[CODEBOOKS[1] in tensors]
    latents = f"down_blocks.{2 * levels - 1}.0.weight"
    for name, rank in ((codebook, 2), (latents, 4)):
        if np.ndim(tensors.get(name, 0)) != rank:
            raise ConversionError(
                f"not a whole VQGAN: {name}, which tells its sizes, is missing or has another "
                "shape; expected the state dict of vqgan_f4.pt or of a model of its kind"
            )
    codes, channels = np.shape(tensors[codebook])
    return {
        "levels": levels, "bottleneck_blocks": count("up_blocks") - (levels - 1),
        "width": np.shape(tensors[latents])[1],
        "latent_channels": channels, "codebook_size": codes,
    }  # fmt: skip


def _block(name: str, path: str) -> list[Entry]:
    return [
        Entry(f"{name}.gammas", ("params", path, "gammas")),
        *linear(f"{name}.depthwise.1", "params", path, "depthwise", layout="conv"),
        *linear(f"{name}.channelwise.0", "params", path, "expand"),
        *linear(f"{name}.channelwise.2", "params", path, "contract"),
    ]


def vqgan_entries(model: PaellaVQGAN) -> list[Entry]:
    """The name table of one configuration, over {"params", "batch_stats"}."""
    last = f"down_blocks.{2 * model.levels - 1}"  # 1x1 convolution and BatchNorm
    entries = [
        *linear("in_block.1", "params", "encoder_in", layout="conv1x1"),
        Entry(f"{last}.0.weight", ("params", "encoder_out", "kernel"), "conv1x1"),
        *batch_norm(f"{last}.1", "latent_norm"),
        Entry(CODEBOOKS[0], ("params", "codebook")),
        *linear("up_blocks.0.0", "params", "decoder_in", layout="conv1x1"),
        *linear("out_block.0", "params", "decoder_out", layout="conv1x1"),
    ]
    for level in range(model.levels):
        entries += _block(f"down_blocks.{2 * level}", f"encoder_blocks_{level}")
    for index in range(model.bottleneck_blocks):
        entries += _block(f"up_blocks.{1 + index}", f"decoder_blocks_{index}")
    first = 1 + model.bottleneck_blocks
    for level in range(model.levels - 1):
        down, up = f"down_blocks.{2 * level + 1}", f"up_blocks.{first + 2 * level}"
        entries += linear(down, "params", f"encoder_downs_{level}", layout="conv")
        entries += linear(up, "params", f"decoder_ups_{level}", layout="conv_transpose")
        entries += _block(f"up_blocks.{first + 2 * level + 1}", f"decoder_level_blocks_{level}")
    return entries


VQGAN = Released(
    family="vqgan", title="VQGAN tokenizer",
    usage="python -m paella_jax.train --config configs/paella.py:shapes --workdir RUN "
    "--config.tokenizer={out} --config.model.codebook_size={codes}",
    marks=(*CODEBOOKS, "in_block.1.weight"),
    runs={"method": "vqgan", "architecture": "paella"}, preset="vqgan:f4",
    make=lambda config, tensors=None: PaellaVQGAN(**config.model),
    names=Names(vqgan_entries, _pixels, whole=True, diffusers=(
        lambda table: [e._replace(name=e.name.replace(*CODEBOOKS)) for e in table], CODEBOOKS[1],
    )),
    own="vqgan", infer=infer_vqgan,
    foreign=ForeignConfig("PaellaVQModel", PaellaVQGAN, {
        "in_channels": Fixed(3), "out_channels": Fixed(3), "up_down_scale_factor": Fixed(2),
        "levels": "levels", "bottleneck_blocks": "bottleneck_blocks", "embed_dim": "width",
        "latent_channels": "latent_channels", "num_vq_embeddings": "codebook_size",
        "scale_factor": Field("scale_factor", read=lambda value, config: float(value)),
    }),
    told=("scale_factor",), forms=("original", "diffusers"), groups=("wuerstchen",),
    tree=lambda loaded: _with_codes(loaded["params"], {"vqgan": loaded["batch_stats"]}),
    of_run=variables_of, training_only=("discriminator",),
)  # fmt: skip


def vqmodel_entries(model: VQModel) -> list[Entry]:
    """The name table of one configuration."""
    entries = [
        *linear("encoder.conv_in", "encoder_in", layout="conv"),
        *norm("encoder.conv_norm_out", "encoder_norm"),
        *linear("encoder.conv_out", "encoder_out", layout="conv"),
        *linear("quant_conv", "latents_to_codes", layout="conv1x1"),
        Entry("quantize.embedding.weight", ("codebook",)),
        *linear("post_quant_conv", "codes_to_latents", layout="conv1x1"),
        *linear("decoder.conv_in", "decoder_in", layout="conv"),
        *norm("decoder.conv_norm_out", "decoder_norm"),
        *linear("decoder.conv_out", "decoder_out", layout="conv"),
    ]
    sides = (
        ("encoder", "down_blocks", "downsamplers", 1, model.widths, model.blocks_per_level),
        ("decoder", "up_blocks", "upsamplers", -1, *model.decoder_sizes),
    )
    for side, levels, sampler, step, widths, blocks in sides:
        # Each side in the order it runs in: the decoder's deepest level first.
        widths, attends = widths[::step], getattr(model, f"{side}_attention")[::step]
        for place, width in enumerate(widths):
            name, path = f"{side}.{levels}.{place}", f"{side}_levels_{place}"
            for block in range(blocks):
                projected = block == 0 and widths[max(place - 1, 0)] != width
                entries += _resnet(name, path, block, projected)
                if attends[place]:
                    entries += _pixel_attention(name, path, block)
            if place < len(widths) - 1:
                entries += linear(f"{name}.{sampler}.0.conv", path, "resample", layout="conv")
        name, path = f"{side}.mid_block", f"{side}_middle"
        for block in range(2):
            entries += _resnet(name, path, block, False)
        if model.middle_attention:
            entries += _pixel_attention(name, path, 0)
    return entries


def _resnet(level: str, path: str, block: int, projected: bool) -> list[Entry]:
    name, ours, entries = f"{level}.resnets.{block}", (path, f"block_{block}"), []
    for number in (1, 2):
        entries += norm(f"{name}.norm{number}", *ours, f"norm_{number}")
        entries += linear(f"{name}.conv{number}", *ours, f"conv_{number}", layout="conv")
    if projected:
        entries += linear(f"{name}.conv_shortcut", *ours, "shortcut", layout="conv1x1")
    return entries


def _pixel_attention(level: str, path: str, block: int) -> list[Entry]:
    name, ours = f"{level}.attentions.{block}", (path, f"attention_{block}")
    return norm(f"{name}.group_norm", *ours, "norm") + attention(name, *ours, "attention")


def infer_vqmodel(tensors: Tensors) -> dict[str, Any]:
    """Fields of `VQModel` from a state dict's names and shapes: all but `norm_groups`.

    Raises:
      ConversionError: tensors that carry the sizes are missing.
    """
    shape = lambda name, rank: needed_shape(tensors, name, rank, "VQModel")
    first = "encoder.down_blocks.{}.resnets.0.conv1.weight"
    shape(first.format(0), 4)
    codes, code_channels = shape("quantize.embedding.weight", 2)
    levels = index_count(tensors, r"encoder\.down_blocks\.(\d+)\.")
    blocks = index_count(tensors, r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")
    if levels * blocks > len(tensors):
        raise ConversionError(
            f"{levels} levels of {blocks} blocks have more than {len(tensors)} tensors; download "
            "the file again"
        )
    has = lambda name: f"{name}.attentions.0.to_q.weight" in tensors
    has_each = lambda side: tuple(has(f"{side}_blocks.{level}") for level in range(levels))
    return {
        "widths": tuple(shape(first.format(level), 4)[0] for level in range(levels)),
        "blocks_per_level": blocks,
        "latent_channels": shape("encoder.conv_out.weight", 4)[0],
        "code_channels": code_channels, "codebook_size": codes,
        "middle_attention": has("encoder.mid_block"),
        "encoder_attention": has_each("encoder.down"),
        "decoder_attention": has_each("decoder.up")[::-1],
    }  # fmt: skip


def _levels(way: str, side: str, step: int) -> Field:
    """Which levels have attention, told by the kinds of their blocks; `step` -1 reverses them."""
    key, plain = f"{way.lower()}_block_types", f"{way}{side}Block2D"
    names = (plain, f"Attn{plain}")

    def read(kinds: list[str], config: Mapping[str, Any]) -> tuple[bool, ...]:
        if unknown := [kind for kind in kinds if kind not in names]:
            raise ValueError(f"{key} {unknown} are not supported, only {sorted(names)}")
        return tuple(kind != plain for kind in kinds)[::step]

    return Field(
        f"{side.lower()}_attention", read, lambda value, module: [names[a] for a in value[::step]]
    )


def _check_decoder(model: VQModel) -> None:
    if model.decoder_sizes != (tuple(model.widths), model.blocks_per_level + 1):
        raise ValueError(
            f"decoder_widths {model.decoder_widths} and decoder_blocks_per_level "
            f"{model.decoder_blocks_per_level} have no place in diffusers' VQModel; export the "
            "tokenizer from before its decoder was replaced"
        )


def _make_vqmodel(config: ConfigDict, tensors: Any = None) -> VQModel:
    model = VQModel(**config.model)
    model.check()
    return model


VQMODEL = Released(
    family="vqgan", title="VQGAN tokenizer", usage=VQGAN.usage,
    marks=("quantize.embedding.weight", "encoder.conv_in.weight"),
    runs={"method": "vqgan", "architecture": "resnet"}, preset="resnet_vqgan:f16",
    make=_make_vqmodel, names=Names(vqmodel_entries, _pixels), own="vqgan",
    infer=infer_vqmodel,
    foreign=ForeignConfig("VQModel", VQModel, {
        "act_fn": Fixed("silu"), "in_channels": Fixed(3), "out_channels": Fixed(3),
        "norm_type": Fixed("group"),
        "block_out_channels": "widths",
        "down_block_types": _levels("Down", "Encoder", 1),
        "up_block_types": _levels("Up", "Decoder", -1),
        "layers_per_block": "blocks_per_level", "latent_channels": "latent_channels",
        "vq_embed_dim": Field(
            "code_channels", lambda value, config: value or config["latent_channels"],
            lambda value, module: None if value == module.latent_channels else value, None,
        ),
        "num_vq_embeddings": "codebook_size", "norm_num_groups": "norm_groups",
        "mid_block_add_attention": Field("middle_attention", default=True),
        "lookup_from_codebook": Written(True), "force_upcast": Written(True),
        "sample_size": Written(32, "sample_size"), "scaling_factor": Written(0.18215),
    }, check=_check_decoder),
    told=None, forms=("diffusers",), groups=("wuerstchen",),
    tree=lambda params: _with_codes(params, {}),
    of_run=lambda params, state: variables_of(params, state)["params"],
    training_only=("discriminator",),
)  # fmt: skip
