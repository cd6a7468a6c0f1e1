"""Würstchen's Stages B and C as released (docs/models/wuerstchen.md 1, 4.1, 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.convert import blocks
from paella_jax.convert.compressor import BESIDE_STAGE_B
from paella_jax.convert.released import DEFAULT, DRAW, Field, ForeignConfig, Released, Written
from paella_jax.encoders.published import check_clip
from paella_jax.families import stage_b, stage_c
from paella_jax.families.text_side import TextSide, carry_text
from paella_jax.families.vqgan import architecture_of, make_vqgan
from paella_jax.files.tensors import ConversionError, Entry, Names, Weights, linear
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.stage_b import StageB
from paella_jax.models.stage_c import StageC
from paella_jax.noise.gaussian import CosineSchedule
from paella_jax.runs.folder import read_config
from paella_jax.runs.frozen import carry
from paella_jax.typing import Tensors

HEAD_WIDTH, PATCH_SIZE = 64, 2
PIXELS = 1024  # from which on the released stages draw (docs/models/wuerstchen.md 5.5)
# Network and its released file, for error messages.
FILE_B, FILE_C = ("Stage B", "model_v2_stage_b.pt"), ("Stage C", "model_v2_stage_c.pt")
TEXT_B, TEXT_C = "clip_mapper.weight", "cond_mapper.0.weight"  # what the text goes through
# Tensors of the first release's Stage B, a Paella over tokens.
TOKEN_MODEL = ("in_mapper.0.weight", "out_mapper.1.weight", "byt5_mapper.weight")


def _inputs(side: int, channels: int, text_width: int) -> tuple[Any, ...]:
    latents, text = jnp.zeros((1, side, side, channels)), jnp.zeros((1, 1, text_width))
    return latents, jnp.zeros((1,)), Conditioning(text=text)


def _carry(run: str, clip: str, config: ConfigDict, folder: Path) -> None:
    carry(run, config[run], folder)
    if config.text.folder:
        carry_text(config, folder, clip)


def stage_b_entries(model: StageB) -> list[Entry]:
    """The original's name table of one configuration."""
    entries = [
        *linear("clip_mapper", "text"),
        *linear("embedding.1", "embedding", "proj", layout="conv1x1"),
        *linear("clf.1", "output", "proj", layout="conv1x1"),
        *blocks.level_entries(model.patterns, model.depths),
    ]
    last = 2 * len(model.widths) - 1
    for level in range(len(model.widths)):
        # One list for both ways: the levels going down, then the levels going up.
        for side, place in (("down", level), ("up", last - level)) if model.inject[level] else ():
            name = f"effnet_mappers.{place}"
            entries += linear(name, f"{side}_{level}_guide", layout="conv1x1")
    return entries


def refuse_token_model(tensors: Tensors) -> None:
    """Raises ConversionError for the first release's Stage B."""
    if found := [name for name in TOKEN_MODEL if name in tensors]:
        raise ConversionError(
            f"this Stage B works on tokens (it has {', '.join(found)}): a Paella, as in the first "
            "Würstchen release; only the second release's is supported, give its "
            "model_v2_stage_b.pt or diffusers decoder"
        )


def _widths_b(tensors: Tensors) -> tuple[int]:
    refuse_token_model(tensors)
    return (blocks.width_into(tensors, TEXT_B),)


def infer_stage_b(tensors: Tensors, head_width: int | Sequence[int] = HEAD_WIDTH) -> dict[str, Any]:
    """Fields of `StageB` from a state dict's names and shapes, original or diffusers.

    Not told by them: `dropout`, `self_attention`, the number of heads and how the patched channels
    divide into patch and latent channels (the patch size is taken as the release's 2). `num_heads`
    is there only where every level with attention can have heads of `head_width`, which is one
    number or one per level.

    Raises:
      ConversionError: tensors that carry the sizes are missing or do not belong together, or the
        file is the first release's token model.
    """
    refuse_token_model(tensors)
    shape = lambda name, rank: blocks.needed_shape(tensors, name, rank, *FILE_B)
    width, patched = shape("embedding.1.weight", 4)[:2]
    if patched % PATCH_SIZE**2:
        raise ConversionError(
            f"not a Stage B: embedding.1.weight takes {patched} channels, which are no "
            f"{PATCH_SIZE}x{PATCH_SIZE} patches; give the model's config"
        )
    fields = blocks.level_fields(tensors, width, FILE_B, head_width)
    mappers = [f"effnet_mappers.{level}.weight" for level in range(len(fields["widths"]))]
    fields |= {
        "latent_channels": patched // PATCH_SIZE**2, "patch_size": PATCH_SIZE,
        "cond_width": shape(TEXT_B, 2)[0], "inject": tuple(name in tensors for name in mappers),
    }  # fmt: skip
    guided = next((name for name in mappers if name in tensors), None)
    return fields if guided is None else fields | {"guide_channels": shape(guided, 4)[1]}


def _read_c_out(value: int, config: Mapping[str, Any]) -> int:
    if value != config["c_in"]:
        raise ValueError("c_in and c_out must be equal (the prediction is noise in the input)")
    return value


def _check_b(config: ConfigDict, weights: Weights, tokenizer: ConfigDict | None) -> None:
    check_clip("--text", config.text.folder, blocks.width_into(weights, TEXT_B))
    if tokenizer is None:
        return
    if architecture_of(tokenizer) != "paella":
        raise ConversionError(
            f"--tokenizer {config.tokenizer} is of architecture {architecture_of(tokenizer)!r}; "
            "Stage B works on the latents of a 'paella' only"
        )
    parts = config.compressor
    networks = stage_b.StageBNetworks(
        StageB(**config.model), stage_b.make_compressor(config), make_vqgan(tokenizer),
        TextSide(None, None, 0), CosineSchedule(), parts.ratio, parts.shift, parts.scale, True,
    )  # fmt: skip
    size, divisor = config.data.image_size, networks.size_divisor
    if size % divisor:
        raise ConversionError(
            f"data.image_size {size} must be a multiple of {divisor} for these stages; give "
            f"--config.data.image_size={divisor * max(1, round(size / divisor))}"
        )


STAGE_B = Released(
    family="stage_b", title="Würstchen Stage B with its semantic compressor",
    usage="python -m paella_jax.convert --family stage_c --weights FILE --stage_b {out} "
    "--text CLIP_FOLDER --out NEW_FOLDER",
    marks=("effnet_mappers.0.weight", "effnet_mappers.1.weight", "effnet_mappers.2.weight"),
    runs={"method": "stage_b"}, preset="stage_b:v2",
    make=lambda config, tensors=None: StageB(**config.model),
    names=Names(
        stage_b_entries,
        lambda model, width: _inputs(model.grid_divisor, model.latent_channels, width),
        _widths_b, diffusers=blocks.SPLIT_ATTENTION,
    ),
    own="stage_b", infer=infer_stage_b, heads=({"num_heads": "widths"}, HEAD_WIDTH),
    foreign=ForeignConfig("WuerstchenDiffNeXt", StageB, {
        "c_in": "latent_channels", "c_out": Field("latent_channels", read=_read_c_out),
        "c_r": "time_width", "patch_size": "patch_size", "c_cond": "cond_width",
        "c_hidden": "widths",
        "nhead": Field(
            "num_heads", lambda value, config: [max(heads, 0) for heads in value],
            lambda value, module: [heads or -1 for heads in value],
        ),
        "blocks": "depths", "level_config": "patterns", "inject_effnet": "inject",
        "effnet_embd": "guide_channels", "clip_embd": Written(told="text_width"),
        "kernel_size": "kernel_size", "dropout": "dropout",
    }, lacks={"self_attention": True}),
    told=("num_heads", "dropout", "patch_size", "latent_channels"),
    forms=("original", "diffusers"), groups=("wuerstchen",),
    extra=lambda *known: {"data.image_size": (PIXELS, DEFAULT)},
    needs={"tokenizer": ("tokenizer", "VQGAN_RUN"), "text": ("text.folder", "CLIP_FOLDER")},
    tokenizer=("latent_channels", "latent channels"), check=_check_b,
    carry=partial(_carry, "tokenizer", stage_b.CLIP), refuse=refuse_token_model,
    text_input=TEXT_B,
    beside=BESIDE_STAGE_B,
)  # fmt: skip


def stage_c_entries(model: StageC) -> list[Entry]:
    """The original's name table of one configuration."""
    entries = [
        *linear("projection", "projection", layout="conv1x1"),
        *linear("cond_mapper.0", "text_in"),
        *linear("cond_mapper.2", "text_out"),
        *linear("out.1", "output", layout="conv1x1"),
    ]
    for index, kind in enumerate("CTA" * model.depth):
        entries += blocks.block_entries(kind, f"blocks.{index}", f"block_{index}")
    return entries


def infer_stage_c(tensors: Tensors, head_width: int = HEAD_WIDTH) -> dict[str, Any]:
    """Fields of `StageC` from a state dict's names and shapes, original or diffusers.

    Not told by them: `dropout`, `self_attention` and the number of heads. `num_heads` is there
    only where the width can be heads of `head_width`.

    Raises:
      ConversionError: tensors that carry the sizes are missing.
    """
    shape = lambda name, rank: blocks.needed_shape(tensors, name, rank, *FILE_C)
    width, channels = shape("projection.weight", 4)[:2]
    shape("blocks.0.depthwise.weight", 4)
    depth = -(-blocks.index_count(tensors, r"blocks\.(\d+)\.") // len("CTA"))
    fields = {"channels": channels, "width": width, "depth": depth}
    heads = {} if width % head_width else {"num_heads": width // head_width}
    return fields | blocks.block_fields(tensors, r"blocks\.\d+") | heads


def _settle_c(config: ConfigDict, *known: Any) -> dict[str, Any]:
    size = read_config(config.stage_b).data.image_size if config.stage_b else None
    return {"data.image_size": (size, "Stage B's run")} if size else {}


def _check_c(config: ConfigDict, weights: Weights, tokenizer: ConfigDict | None) -> None:
    check_clip("--text", config.text.folder, blocks.width_into(weights, TEXT_C))
    if not config.stage_b:
        return
    run, behind = config.stage_b, read_config(config.stage_b)
    if behind.method != "stage_b":
        raise ConversionError(f"--stage_b {run} is a run of method {behind.method!r}, not stage_b")
    if behind.model.guide_channels != config.model.channels:
        raise ConversionError(
            f"--stage_b {run} takes {behind.model.guide_channels} channels from Stage C, these "
            f"weights make {config.model.channels}; the stages do not belong together"
        )
    frozen = Path(run) / "frozen"
    missing = ["--tokenizer VQGAN_RUN"] * (not (frozen / "vqgan.json").is_file())
    if behind.text.kind == "clip" and not (frozen / stage_b.CLIP).is_dir():
        missing.append("--text CLIP_FOLDER")
    if missing:
        raise ConversionError(
            f"--stage_b {run} lacks frozen networks; convert it again with {' '.join(missing)}"
        )


STAGE_C = Released(
    family="stage_c", title="Würstchen Stage C", usage=DRAW,
    marks=("cond_mapper.0.weight", "cond_mapper.2.weight"), runs={"method": "stage_c"},
    preset="stage_c:v2", make=lambda config, tensors=None: StageC(**config.model),
    names=Names(
        stage_c_entries, lambda model, width: _inputs(1, model.channels, width),
        lambda tensors: (blocks.width_into(tensors, TEXT_C),), diffusers=blocks.SPLIT_ATTENTION,
    ),
    own="stage_c", infer=infer_stage_c, heads=({"num_heads": "width"}, HEAD_WIDTH),
    foreign=ForeignConfig("WuerstchenPrior", StageC, {
        "c_in": "channels", "c": "width", "c_cond": Written(told="text_width"),
        "c_r": "time_width", "depth": "depth", "nhead": "num_heads",
        "latent_size": Written([32, 32]),  # unused, the class's default
        "dropout": "dropout",
    }, lacks={"self_attention": True, "kernel_size": 3}),
    told=("num_heads", "dropout"), forms=("original", "diffusers"), groups=("wuerstchen",),
    averaged=("ema_state_dict", "state_dict"),
    extra=lambda *known: {"data.image_size": (PIXELS, DEFAULT)}, settle=_settle_c,
    needs={"stage_b": ("stage_b", "STAGE_B_RUN"), "text": ("text.folder", "CLIP_FOLDER")},
    check=_check_c, carry=partial(_carry, "stage_b", stage_c.CLIP),
    text_input=TEXT_C,
)  # fmt: skip
