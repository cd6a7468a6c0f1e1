"""aMUSEd's transformer: diffusers' UVit2DModel <-> our parameters (docs/models/muse.md 2.4)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.files.tensors import ConversionError, Entry, export_tensors, import_tensors
from paella_jax.models.uvit import UViT

UVIT_CLASS = "UVit2DModel"
RELEASED_HEAD_WIDTH = 64
RELEASED_MICRO_WIDTH = 256
MICRO_CONDS = 5
# Our field -> diffusers' argument, where the value is the same.
UVIT_FIELDS = {
    "vocabulary_size": "vocab_size",
    "codebook_size": "codebook_size",
    "token_width": "in_channels",
    "conv_width": "block_out_channels",
    "conv_blocks": "num_res_blocks",
    "conv_heads": "block_num_heads",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "feed_forward_width": "intermediate_size",
    "text_width": "encoder_hidden_size",
    "pooled_width": "cond_embed_dim",
    "micro_width": "micro_cond_encode_dim",
    "downsample": "downsample",
    "upsample": "upsample",
    "use_bias": "use_bias",
    "learned_norms": "ln_elementwise_affine",
    "norm_epsilon": "layer_norm_eps",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
}


def uvit_from_diffusers_config(config: Mapping[str, Any]) -> UViT:
    """Our module for a UVit2DModel's config.json; what it leaves out has aMUSEd's value.

    Raises:
      ValueError: the micro-conditions' widths do not belong together.
    """
    fields = {ours: config[theirs] for ours, theirs in UVIT_FIELDS.items() if theirs in config}
    model = UViT(**fields)
    total = config.get("micro_cond_embed_dim", MICRO_CONDS * model.micro_width)
    if total % model.micro_width:
        raise ValueError(
            f"micro_cond_embed_dim {total} must be a multiple of micro_cond_encode_dim "
            f"{model.micro_width}"
        )
    return model.clone(micro_conds=total // model.micro_width)


def uvit_diffusers_config(model: UViT, sample_size: int) -> dict[str, Any]:
    """The inverse: what config.json holds. `sample_size` is the token map's usual side."""
    return {
        "_class_name": UVIT_CLASS,
        **{theirs: getattr(model, ours) for ours, theirs in UVIT_FIELDS.items()},
        "micro_cond_embed_dim": model.micro_conds * model.micro_width,
        "sample_size": sample_size,
    }


def linear_entries(
    name: str, *path: str, bias: bool = True, layout: str = "linear", leaf: str = "kernel"
) -> list[Entry]:
    """A linear layer or convolution: weight, and bias where it has one."""
    entries = [Entry(f"{name}.weight", (*path, leaf), layout)]
    if bias:
        entries.append(Entry(f"{name}.bias", (*path, leaf.replace("kernel", "bias"))))
    return entries


def norm_entries(name: str, *path: str, bias: bool = False) -> list[Entry]:
    """A norm: scale, and bias where it has one."""
    scale = Entry(f"{name}.weight", (*path, "scale"))
    return [scale, Entry(f"{name}.bias", (*path, "bias"))] if bias else [scale]


def attention_entries(name: str, *path: str, bias: bool) -> list[Entry]:
    """The four projections of diffusers' Attention, our SeparateAttention."""
    parts = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "out"}
    return [
        entry
        for theirs, ours in parts.items()
        for entry in linear_entries(f"{name}.{theirs}", *path, ours, bias=bias)
    ]


def uvit_entries(model: UViT) -> list[Entry]:
    """The name table of one configuration."""
    bias, learned = model.use_bias, model.learned_norms
    linear = lambda name, path, layout="linear": linear_entries(
        name, path, bias=bias, layout=layout
    )
    norm = lambda name, *path: norm_entries(name, *path) if learned else []
    entries = [
        *linear("encoder_proj", "text"),
        *norm("encoder_proj_layer_norm", "text_norm"),
        Entry("embed.embeddings.weight", ("token_table",)),
        *norm("embed.layer_norm", "embedding_norm"),
        *linear("embed.conv", "embedding", "conv1x1"),
        *linear("cond_embed.linear_1", "condition_in"),
        *linear("cond_embed.linear_2", "condition_out"),
        *norm("project_to_hidden_norm", "hidden_in_norm"),
        *linear("project_to_hidden", "hidden_in"),
        *norm("project_from_hidden_norm", "hidden_out_norm"),
        *linear("project_from_hidden", "hidden_out"),
        *linear("mlm_layer.conv1", "output", "conv1x1"),
        *norm("mlm_layer.layer_norm", "output_norm"),
        Entry("mlm_layer.conv2.weight", ("classifier",), "conv1x1"),
    ]
    if bias:
        entries.append(Entry("mlm_layer.conv2.bias", ("classifier_bias",)))
    resampled = (
        ("down", "downsample", "conv", model.downsample),
        ("up", "upsample", "conv_transpose", model.upsample),
    )
    for side, name, layout, present in resampled:
        if present:
            theirs, ours = f"{side}_block.{name}", f"{side}_resample"
            entries += norm(f"{theirs}.norm", ours, "norm")
            entries += linear(f"{theirs}.conv", ours, layout)
        for index in range(model.conv_blocks):
            entries += _conv_block(
                model, f"{side}_block.res_blocks.{index}", f"{side}_conv_{index}"
            )
            theirs = f"{side}_block.attention_blocks.{index}"
            entries += _text_attention(model, theirs, f"{side}_attention_{index}")
    for index in range(model.depth):
        entries += _layer(model, f"transformer_layers.{index}", f"layer_{index}")
    return entries


def _conv_block(model: UViT, name: str, path: str) -> list[Entry]:
    bias = model.use_bias
    return [
        *linear_entries(
            f"{name}.depthwise", path, bias=bias, layout="conv", leaf="depthwise_kernel"
        ),
        *(norm_entries(f"{name}.norm", path, "norm") if model.learned_norms else []),
        *linear_entries(f"{name}.channelwise_linear_1", path, "expand", bias=bias),
        Entry(f"{name}.channelwise_norm.gamma", (path, "response_norm", "gamma"), "channel"),
        Entry(f"{name}.channelwise_norm.beta", (path, "response_norm", "beta"), "channel"),
        *linear_entries(f"{name}.channelwise_linear_2", path, "contract", bias=bias),
        *linear_entries(f"{name}.cond_embeds_mapper", path, "modulation", bias=bias),
    ]


def _text_attention(model: UViT, name: str, path: str) -> list[Entry]:
    bias = model.use_bias
    entries = []
    if model.conv_width != model.width:
        entries += linear_entries(f"{name}.kv_mapper", path, "text_mapper", bias=bias)
    for number in (1, 2):
        entries += norm_entries(f"{name}.norm{number}", path, f"norm_{number}")
        entries += attention_entries(f"{name}.attn{number}", path, f"attention_{number}", bias=bias)
    return entries


def _layer(model: UViT, name: str, path: str) -> list[Entry]:
    bias = model.use_bias
    entries = [
        *linear_entries(f"{name}.ff.net.0.proj", path, "feed_forward", "expand", bias=bias),
        *linear_entries(f"{name}.ff.net.2", path, "feed_forward", "contract", bias=bias),
    ]
    for number in (1, 2, 3):
        theirs, ours = f"{name}.norm{number}", f"norm_{number}"
        entries += linear_entries(f"{theirs}.linear", path, ours, "modulation", bias=bias)
        if model.learned_norms:
            entries += norm_entries(f"{theirs}.norm", path, ours, "norm", bias=bias and number == 3)
    for number in (1, 2):
        entries += attention_entries(f"{name}.attn{number}", path, f"attention_{number}", bias=bias)
    return entries


def abstract_uvit(model: UViT) -> dict[str, Any]:
    """Shapes of all parameters; nothing is computed."""
    size = model.grid_divisor
    init = lambda: model.init(
        jax.random.key(0),
        jnp.zeros((1, size, size), jnp.int32),
        jnp.zeros((1, 1, model.text_width)),
        jnp.zeros((1, model.pooled_width)),
        jnp.zeros((1, model.micro_conds)),
    )
    return jax.eval_shape(init)["params"]


def import_uvit(tensors: Mapping[str, np.ndarray], model: UViT) -> dict[str, Any]:
    """State dict -> our parameters. Raises ConversionError listing every misfit."""
    return import_tensors(uvit_entries(model), tensors, abstract_uvit(model))


def export_uvit(params: Mapping[str, Any], model: UViT, copy: bool = True) -> dict[str, np.ndarray]:
    """Our parameters -> state dict; `copy` as in `export_tensors`."""
    return export_tensors(uvit_entries(model), params, copy)


def infer_uvit(
    tensors: Mapping[str, np.ndarray],
    head_width: int = RELEASED_HEAD_WIDTH,
    micro_width: int = RELEASED_MICRO_WIDTH,
) -> dict[str, Any]:
    """Fields of `UViT` from a state dict's names and shapes.

    Not told by them: `norm_epsilon`, the dropouts, the number of heads, and how the condition
    divides into pooled text and micro-conditions. Heads are there where the widths can be heads of
    `head_width`; `pooled_width`, `micro_width` and `micro_conds` where the condition has room for
    aMUSEd's five numbers of `micro_width`.

    Raises:
      ConversionError: tensors that carry the sizes are missing.
    """
    shape = lambda name, rank: shape_of(tensors, name, rank, UVIT_CLASS)
    vocabulary, token_width = shape("embed.embeddings.weight", 2)
    width, text_width = shape("encoder_proj.weight", 2)
    conv_width = shape("embed.conv.weight", 4)[0]
    fields: dict[str, Any] = {
        "vocabulary_size": vocabulary,
        "codebook_size": shape("mlm_layer.conv2.weight", 4)[0],
        "token_width": token_width,
        "conv_width": conv_width,
        "conv_blocks": index_count(tensors, r"down_block\.res_blocks\.(\d+)\."),
        "width": width,
        "depth": index_count(tensors, r"transformer_layers\.(\d+)\."),
        "feed_forward_width": shape("transformer_layers.0.ff.net.2.weight", 2)[1],
        "text_width": text_width,
        "downsample": "down_block.downsample.conv.weight" in tensors,
        "upsample": "up_block.upsample.conv.weight" in tensors,
        "use_bias": "encoder_proj.bias" in tensors,
        "learned_norms": "encoder_proj_layer_norm.weight" in tensors,
    }
    for field, size in (("conv_heads", conv_width), ("num_heads", width)):
        if size % head_width == 0:
            fields[field] = size // head_width
    pooled = shape("cond_embed.linear_1.weight", 2)[1] - MICRO_CONDS * micro_width
    if pooled > 0:
        fields |= {"pooled_width": pooled, "micro_width": micro_width, "micro_conds": MICRO_CONDS}
    return fields


def index_count(tensors: Mapping[str, np.ndarray], pattern: str) -> int:
    """One more than the largest number `pattern` finds in a tensor's name; 0 without any."""
    matches = (re.match(pattern, name) for name in tensors)
    return 1 + max((int(match[1]) for match in matches if match), default=-1)


def shape_of(tensors: Mapping[str, np.ndarray], name: str, rank: int, kind: str) -> tuple[int, ...]:
    """A tensor's shape; ConversionError if it is missing or has another rank."""
    found = np.shape(tensors[name]) if name in tensors else None
    if found is None or len(found) != rank or 0 in found:
        state = "is missing" if found is None else f"has shape {found}"
        raise ConversionError(
            f"not a whole {kind}: {name}, which tells its sizes, {state}; expected a diffusers "
            f"{kind}'s state dict"
        )
    return found
