"""aMUSEd as released: its transformer, alone or in a pipeline's folder (docs/models/muse.md 2)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.convert import amused_folder, released
from paella_jax.convert.blocks import index_count, needed_shape, response_norm
from paella_jax.convert.paella import carry_tokens
from paella_jax.convert.released import DRAW, Field, ForeignConfig, Released, Written, value_of
from paella_jax.encoders.published import check_clip
from paella_jax.families.cells import check_cell
from paella_jax.families.vqgan import make_vqgan
from paella_jax.files import weights_file
from paella_jax.files.tensors import ConversionError, Entry, Names, Weights, attention, linear, norm
from paella_jax.models.uvit import UViT
from paella_jax.outside import shortened
from paella_jax.typing import Tensors

UVIT_CLASS = "UVit2DModel"
LARGEST_SIDE = 4096  # tokens
HEAD_WIDTH, MICRO_WIDTH, MICRO_CONDS = 64, 256, 5  # as released


def _read_micro_conds(total: int, config: Mapping[str, Any]) -> int:
    width = config.get("micro_cond_encode_dim", MICRO_WIDTH)
    if total % width:
        raise ValueError(
            f"micro_cond_embed_dim {total} must be a multiple of micro_cond_encode_dim {width}"
        )
    return total // width


# What a config leaves out has aMUSEd's value; `sample_size` is the token map's usual side.
UVIT_CONFIG = ForeignConfig(UVIT_CLASS, UViT, {
    "vocab_size": "vocabulary_size", "codebook_size": "codebook_size",
    "in_channels": "token_width", "block_out_channels": "conv_width",
    "num_res_blocks": "conv_blocks", "block_num_heads": "conv_heads",
    "hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "num_heads",
    "intermediate_size": "feed_forward_width", "encoder_hidden_size": "text_width",
    "cond_embed_dim": "pooled_width", "micro_cond_encode_dim": "micro_width",
    "downsample": "downsample", "upsample": "upsample",
    "use_bias": "use_bias", "ln_elementwise_affine": "learned_norms",
    "layer_norm_eps": "norm_epsilon",
    "hidden_dropout": "dropout", "attention_dropout": "attention_dropout",
    "micro_cond_embed_dim": Field(
        "micro_conds", _read_micro_conds, lambda value, module: value * module.micro_width
    ),
    "sample_size": Written(told="sample_size"),
}, optional=True)  # fmt: skip


def uvit_entries(model: UViT) -> list[Entry]:
    """The name table of one configuration."""
    bias = model.use_bias
    layer, scale = partial(linear, bias=bias), partial(_learned_norm, model)
    entries = [
        *layer("encoder_proj", "text"),
        *scale("encoder_proj_layer_norm", "text_norm"),
        Entry("embed.embeddings.weight", ("token_table",)),
        *scale("embed.layer_norm", "embedding_norm"),
        *layer("embed.conv", "embedding", layout="conv1x1"),
        *layer("cond_embed.linear_1", "condition_in"),
        *layer("cond_embed.linear_2", "condition_out"),
        *scale("project_to_hidden_norm", "hidden_in_norm"),
        *layer("project_to_hidden", "hidden_in"),
        *scale("project_from_hidden_norm", "hidden_out_norm"),
        *layer("project_from_hidden", "hidden_out"),
        *layer("mlm_layer.conv1", "output", layout="conv1x1"),
        *scale("mlm_layer.layer_norm", "output_norm"),
        Entry("mlm_layer.conv2.weight", ("classifier",), "conv1x1"),
    ] + [Entry("mlm_layer.conv2.bias", ("classifier_bias",))] * bias
    for side, resample, layout, present in (
        ("down", "downsample", "conv", model.downsample),
        ("up", "upsample", "conv_transpose", model.upsample),
    ):
        if present:
            theirs, ours = f"{side}_block.{resample}", f"{side}_resample"
            entries += scale(f"{theirs}.norm", ours, "norm")
            entries += layer(f"{theirs}.conv", ours, layout=layout)
        for index in range(model.conv_blocks):
            name, path = f"{side}_block.res_blocks.{index}", f"{side}_conv_{index}"
            entries += _conv_block(model, name, path)
            name, path = f"{side}_block.attention_blocks.{index}", f"{side}_attention_{index}"
            if model.conv_width != model.width:
                entries += layer(f"{name}.kv_mapper", path, "text_mapper")
            for number in (1, 2):
                entries += norm(f"{name}.norm{number}", path, f"norm_{number}", bias=False)
                entries += attention(f"{name}.attn{number}", path, f"attention_{number}", bias=bias)
    for index in range(model.depth):
        entries += _layer(model, f"transformer_layers.{index}", f"layer_{index}")
    return entries


def _learned_norm(model: UViT, name: str, *path: str, bias: bool = False) -> list[Entry]:
    return norm(name, *path, bias=bias) if model.learned_norms else []


def _conv_block(model: UViT, name: str, path: str) -> list[Entry]:
    layer = partial(linear, bias=model.use_bias)
    return [
        *layer(f"{name}.depthwise", path, layout="conv", leaf="depthwise_kernel"),
        *_learned_norm(model, f"{name}.norm", path, "norm"),
        *layer(f"{name}.channelwise_linear_1", path, "expand"),
        *response_norm(f"{name}.channelwise_norm", path),
        *layer(f"{name}.channelwise_linear_2", path, "contract"),
        *layer(f"{name}.cond_embeds_mapper", path, "modulation"),
    ]


def _layer(model: UViT, name: str, path: str) -> list[Entry]:
    bias = model.use_bias
    entries = linear(f"{name}.ff.net.0.proj", path, "feed_forward", "expand", bias=bias)
    entries += linear(f"{name}.ff.net.2", path, "feed_forward", "contract", bias=bias)
    for number in (1, 2, 3):
        theirs, ours = f"{name}.norm{number}", (path, f"norm_{number}")
        entries += linear(f"{theirs}.linear", *ours, "modulation", bias=bias)
        its_bias = bias and number == 3
        entries += _learned_norm(model, f"{theirs}.norm", *ours, "norm", bias=its_bias)
    for number in (1, 2):
        entries += attention(f"{name}.attn{number}", path, f"attention_{number}", bias=bias)
    return entries


def _inputs(model: UViT) -> tuple[Any, ...]:
    tokens = jnp.zeros((1, model.grid_divisor, model.grid_divisor), jnp.int32)
    text = jnp.zeros((1, 1, model.text_width))
    return tokens, text, jnp.zeros((1, model.pooled_width)), jnp.zeros((1, model.micro_conds))


def infer_uvit(
    tensors: Tensors, head_width: int = HEAD_WIDTH, micro_width: int = MICRO_WIDTH
) -> dict[str, Any]:
    """Fields of `UViT` from a state dict's names and shapes.

    Not told by them: `norm_epsilon`, the dropouts, the number of heads, and how the condition
    divides into pooled text and micro-conditions. Heads are there where the widths can be heads of
    `head_width`; `pooled_width`, `micro_width` and `micro_conds` where the condition has room for
    aMUSEd's five numbers of `micro_width`.

    Raises:
      ConversionError: tensors that carry the sizes are missing.
    """
    shape = lambda name, rank: needed_shape(tensors, name, rank, UVIT_CLASS)
    vocabulary, token_width = shape("embed.embeddings.weight", 2)
    width, text_width = shape("encoder_proj.weight", 2)
    conv_width = shape("embed.conv.weight", 4)[0]
    fields: dict[str, Any] = {
        "vocabulary_size": vocabulary, "codebook_size": shape("mlm_layer.conv2.weight", 4)[0],
        "token_width": token_width, "conv_width": conv_width,
        "conv_blocks": index_count(tensors, r"down_block\.res_blocks\.(\d+)\."),
        "width": width, "depth": index_count(tensors, r"transformer_layers\.(\d+)\."),
        "feed_forward_width": shape("transformer_layers.0.ff.net.2.weight", 2)[1],
        "text_width": text_width,
        "downsample": "down_block.downsample.conv.weight" in tensors,
        "upsample": "up_block.upsample.conv.weight" in tensors,
        "use_bias": "encoder_proj.bias" in tensors,
        "learned_norms": "encoder_proj_layer_norm.weight" in tensors,
    }  # fmt: skip
    for field, size in (("conv_heads", conv_width), ("num_heads", width)):
        if size % head_width == 0:
            fields[field] = size // head_width
    pooled = shape("cond_embed.linear_1.weight", 2)[1] - MICRO_CONDS * micro_width
    if pooled > 0:
        fields |= {"pooled_width": pooled, "micro_width": micro_width, "micro_conds": MICRO_CONDS}
    return fields


def make_uvit(config: Mapping[str, Any], text_width: int = 768, pooled_width: int = 768) -> UViT:
    """The network of a run's config, in float32."""
    codes, fields = config["model"]["codebook_size"], dict(config["uvit"])
    fields["vocabulary_size"] = fields["vocabulary_size"] or codes + 1
    return UViT(**fields, codebook_size=codes, text_width=text_width, pooled_width=pooled_width)


def _make(config: ConfigDict, tensors: Tensors | None = None) -> UViT:
    """`make_uvit`; the text has what the micro-conditions leave of the condition."""
    if not tensors:
        return make_uvit(config)
    width = lambda name: needed_shape(tensors, name, 2, UVIT_CLASS)[1]
    text, condition = width("encoder_proj.weight"), width("cond_embed.linear_1.weight")
    count, micro_width = config.uvit.micro_conds, config.uvit.micro_width
    pooled = condition - count * micro_width
    if pooled <= 0:
        raise ConversionError(
            f"cond_embed.linear_1.weight takes {condition} inputs, but {count} "
            f"micro-conditions of width {micro_width} leave none for the text; give the "
            f"folder with its {weights_file.CONFIG}, or --config.uvit.micro_width=N"
        )
    return make_uvit(config, text, pooled)


def _extra(weights: Weights, fields: Mapping[str, Any]) -> dict[str, Any]:
    file, count = weights_file.config_beside(weights), fields.get("micro_conds")
    if file is not None and count != MICRO_CONDS:  # a sixth would be the noise level's
        raise ConversionError(
            f"{file} has room for {count} micro-conditions, aMUSEd has {MICRO_CONDS}: "
            f"micro_cond_embed_dim must be {MICRO_CONDS} x micro_cond_encode_dim"
        )
    return {}


def _settle(config: ConfigDict, weights: Weights, tokenizer: ConfigDict | None) -> dict[str, Any]:
    """Pixels of the training images: the token map's side times the tokenizer's downsampling."""
    file = weights_file.config_beside(weights)
    known = {} if file is None else weights_file.read_json(file)
    side = known.get("sample_size", 32 if config.uvit.downsample else 16)
    if type(side) is not int or not 0 < side <= LARGEST_SIDE:
        raise ConversionError(f"{file}: sample_size {shortened(repr(side))} is no side of a map")
    # Whatever else may have been given is refused later.
    is_known = tokenizer is not None and tokenizer.method == "vqgan"
    pixels = make_vqgan(tokenizer).downsampling if is_known else amused_folder.DOWNSAMPLING
    return {"data.image_size": (side * pixels, released.DEFAULT if file is None else released.JSON)}


def _check(config: ConfigDict, weights: Weights, tokenizer: ConfigDict | None) -> None:
    check_cell(config)
    if tokenizer is not None:
        amused_folder.check_size(config, tokenizer)
    model = _make(config, weights)
    check_clip("--clip", config.clip.folder, model.text_width, model.pooled_width)


def _check_run(config: ConfigDict) -> None:
    """Refuses runs that an AmusedPipeline cannot hold, with all reasons."""
    needed = {"cell.corruption": "mask", "text.kind": "clip", "uvit.micro_conds": MICRO_CONDS}
    found = {name: (value_of(config, name), only) for name, only in needed.items()}
    wrong = {name: pair for name, pair in found.items() if pair[0] != pair[1]}
    if wrong:
        reasons = "; ".join(f"{n} is {v!r}, it has {only!r} only" for n, (v, only) in wrong.items())
        raise ConversionError(f"diffusers' AmusedPipeline cannot be this run: {reasons}")


AMUSED = Released(
    family="amused", title="aMUSEd masked transformer", usage=DRAW,
    marks=("embed.embeddings.weight", "encoder_proj.weight", "mlm_layer.conv2.weight"),
    runs={"method": "tokens", "cell.network": "uvit"}, preset="muse:amused_256", make=_make,
    names=Names(uvit_entries, _inputs), own="predictor", infer=infer_uvit, block="uvit",
    heads=({"num_heads": "width", "conv_heads": "conv_width"}, HEAD_WIDTH),
    foreign=UVIT_CONFIG, told=None, forms=("diffusers",), extra=_extra, settle=_settle,
    needs={"tokenizer": ("tokenizer", "VQGAN_RUN"), "clip": ("clip.folder", "CLIP_FOLDER")},
    together=True, tokenizer=("codebook_size", "codes"), check=_check, carry=carry_tokens,
    check_run=_check_run, open_folder=amused_folder.open_folder,
    open_run=amused_folder.open_run,
)  # fmt: skip
