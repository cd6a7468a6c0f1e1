"""Paella as released: the token predictor and the CLIP prior (docs/models/paella.md 4.3, 6)."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.convert.blocks import level_entries, level_fields, needed_shape, width_into
from paella_jax.convert.released import DRAW, SHAPES, Found, Released
from paella_jax.encoders.published import read_config_of
from paella_jax.families import token_training
from paella_jax.files.tensors import ConversionError, Entry, Names, Weights, linear, norm
from paella_jax.models.clip_prior import ClipPrior
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.paella import Paella
from paella_jax.typing import Tensors

HEAD_WIDTH = 80
FILE = ("Paella", "paella_v3.pt")  # for error messages


def paella_entries(model: Paella) -> list[Entry]:
    """The name table of one configuration of the token predictor."""
    return [
        Entry("in_mapper.0.weight", ("token_table",)),
        Entry("out_mapper.1.weight", ("classifier",), "conv1x1"),
        *linear("embedding.1", "embedding", "proj", layout="conv1x1"),
        *linear("clf.1", "output", "proj", layout="conv1x1"),
        *linear("byt5_mapper", "conditioning", "text"),
        *linear("clip_mapper", "conditioning", "clip_text"),
        *linear("clip_image_mapper", "conditioning", "clip_image"),
        *level_entries(model.patterns, model.depths),
    ]


def _paella_inputs(model: Paella, text_width: int, clip_width: int | None) -> tuple[Any, ...]:
    """Every conditioning input of the release; `clip_width` None leaves out CLIP's."""
    size, cond = model.grid_divisor, Conditioning(text=jnp.zeros((1, 1, text_width)))
    if clip_width is not None:
        clip = jnp.zeros((1, clip_width))
        cond = replace(cond, text_pooled=clip, image_pooled=clip[None])
    return jnp.zeros((1, size, size), jnp.int32), jnp.zeros((1,)), cond


def _paella_widths(tensors: Tensors) -> tuple[int, int | None]:
    has_clip = any(name.startswith("clip_") for name in tensors)
    clip = width_into(tensors, "clip_mapper.weight") if has_clip else None
    return width_into(tensors, "byt5_mapper.weight"), clip


def condition_widths(tensors: Tensors) -> tuple[int, int | None]:
    """Widths of the text states and of CLIP's embeddings; None for a model without CLIP."""
    width = lambda layer: needed_shape(tensors, f"{layer}.weight", 2, *FILE)[1]
    has_clip = any(name.startswith("clip_") for name in tensors)
    return width("byt5_mapper"), width("clip_mapper") if has_clip else None


def infer_paella(tensors: Tensors) -> dict[str, Any]:
    """Fields of `Paella` from a state dict's names and shapes.

    Not told by them: `dropout`, `self_attention`, `remat` and the number of heads. `num_heads` is
    there only where every level with attention can have heads 80 wide, as the released model's.

    Raises:
      ConversionError: tensors that carry the sizes are missing or do not belong together.
    """
    shape = lambda name, rank: needed_shape(tensors, name, rank, *FILE)
    codes, token_width = shape("in_mapper.0.weight", 2)
    cond_width = shape("byt5_mapper.weight", 2)[0]
    width, patched = shape("embedding.1.weight", 4)[:2]
    fields = {
        "codebook_size": codes, "token_width": token_width, "cond_width": cond_width,
        "patch_size": math.isqrt(patched // token_width),
    }  # fmt: skip
    for name in ("clip_image_mapper.weight", "clip_mapper.weight"):
        if name in tensors:
            fields["clip_tokens"] = shape(name, 2)[0] // cond_width
    return fields | level_fields(tensors, width, FILE, HEAD_WIDTH)


def _settle(config: ConfigDict, *known: Any) -> Found:
    config.image_encoder.kind = "clip" if config.clip.folder else "none"
    return {}


def _check(config: ConfigDict, weights: Weights, tokenizer: ConfigDict | None) -> None:
    text, clip = condition_widths(weights)
    for option, folder, field, needed in (
        ("--text", config.text.folder, "d_model", text),
        ("--clip", config.clip.folder, "projection_dim", clip),
    ):
        width = read_config_of(option, folder).get(field) if folder else None
        if folder and needed is None:
            raise ConversionError(f"{option} {folder}: these weights have no layers for it")
        if folder and width != needed:
            raise ConversionError(
                f"{option} {folder} has {field} {width}, the weights were trained with {needed}"
            )


def carry_tokens(config: ConfigDict, folder: Path) -> None:
    """Copies what a token predictor draws with."""
    if config.tokenizer:
        token_training.prepare(config, folder)


def _check_run(config: ConfigDict) -> None:
    # Configs older than the choice have no such block.
    corruption = config.get("cell", {}).get("corruption", "uniform")
    if corruption != "uniform":
        raise ConversionError(
            f"cell.corruption is {corruption!r}, the original Paella has no mask: this "
            "run has no published format"
        )


PAELLA = Released(
    family="paella", title="Paella token predictor", usage=DRAW,
    marks=("byt5_mapper.weight", "in_mapper.0.weight", "out_mapper.1.weight"),
    runs={"method": "tokens", "cell.network": "unet"}, preset="paella:1b",
    make=lambda config, tensors=None: Paella(**config.model),
    names=Names(paella_entries, _paella_inputs, _paella_widths, optional=("clip_",)),
    own="predictor", infer=infer_paella, heads=({"num_heads": "widths"}, HEAD_WIDTH),
    extra=lambda weights, fields: {"text.width": (condition_widths(weights)[0], SHAPES)},
    settle=_settle,
    needs={
        "tokenizer": ("tokenizer", "VQGAN_RUN"), "text": ("text.folder", "T5_FOLDER"),
        "clip": ("clip.folder", ""),
    },
    together=True, tokenizer=("codebook_size", "codes"), check=_check, carry=carry_tokens,
    check_run=_check_run,
)  # fmt: skip


def clip_prior_entries(model: ClipPrior) -> list[Entry]:
    """The name table of one configuration: entry 0 is the input layer, the last the output."""
    entries = linear("blocks.0", "input") + linear(f"blocks.{model.num_blocks + 1}", "output")
    for index in range(model.num_blocks):
        name, ours = f"blocks.{index + 1}", f"block_{index}"
        entries += [
            *linear(f"{name}.0", ours, "expand", bias=False),
            *norm(f"{name}.1", ours, "hidden_norm"),
            *linear(f"{name}.3", ours, "contract", bias=False),
            *norm(f"{name}.4", ours, "out_norm"),
        ]
    return entries


def infer_clip_prior(tensors: Tensors) -> dict[str, int]:
    """Fields of `ClipPrior` from a state dict's shapes: they determine all of them.

    Raises:
      ConversionError: the tensors that carry the sizes are missing or do not belong together.
    """
    needed = ("blocks.0.weight", "blocks.1.0.weight")
    if bad := [name for name in needed if np.ndim(tensors.get(name, 0)) != 2]:
        raise ConversionError(
            f"not a CLIP prior: {' and '.join(bad)} missing or not a matrix; expected the state "
            "dict of prior_v1.pt (names blocks.N...)"
        )
    blocks = [name for name in tensors if re.fullmatch(r"blocks\.\d+\.0\.weight", name)]
    width, clip_width = np.shape(tensors["blocks.0.weight"])
    time_width = np.shape(tensors["blocks.1.0.weight"])[1] - width - clip_width
    if time_width < 4:
        raise ConversionError(
            f"not a CLIP prior: blocks.1.0.weight must take {width} + {clip_width} inputs and at "
            f"least 4 of the timestep embedding, it takes {time_width + width + clip_width}"
        )
    sizes = {"clip_width": clip_width, "width": width, "time_width": time_width}
    return sizes | {"num_blocks": len(blocks)}


CLIP_PRIOR = Released(
    family="clip_prior", title="CLIP prior (text embedding to image embedding)",
    usage='python -c "from paella_jax.families.clip_prior import load_clip_prior; '
    "prior = load_clip_prior('{out}')\"",
    marks=("blocks.0.weight", "blocks.1.0.weight"), runs={"method": "clip_prior"},
    preset="clip_prior:released",
    make=lambda config, tensors=None: ClipPrior(**config.model),
    names=Names(
        clip_prior_entries,
        lambda model: (embedding := jnp.zeros((1, model.clip_width)), jnp.zeros((1,)), embedding),
    ),
    own="prior", infer=infer_clip_prior,
)  # fmt: skip
