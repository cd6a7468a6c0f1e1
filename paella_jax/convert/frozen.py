"""The networks that a converted model takes along: checked by their configs, then carried."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from paella_jax.convert import hf_folder
from paella_jax.convert.paella import condition_widths
from paella_jax.convert.plan import Conversion
from paella_jax.convert.tensors import ConversionError, Weights
from paella_jax.convert.wuerstchen import TEXT_B, TEXT_C, text_width
from paella_jax.encoders.clip_text import clip_text_from_hf_config
from paella_jax.families import stage_b, stage_c
from paella_jax.families.text_side import TextSide, carry_text
from paella_jax.families.tokens import prepare_frozen
from paella_jax.families.vqgan import carry_tokenizer, make_vqgan
from paella_jax.models.stage_b import StageB
from paella_jax.noise.gaussian import CosineSchedule
from paella_jax.training.checkpoint import read_config

# Family -> option -> the config field it stands for.
OPTIONS: dict[str, dict[str, str]] = {
    "paella": {"tokenizer": "tokenizer", "text": "text.folder", "clip": "clip.folder"},
    "stage_b": {"tokenizer": "tokenizer", "text": "text.folder"},
    "stage_c": {"stage_b": "stage_b", "text": "text.folder"},
}
# What a family cannot draw without: option with its value -> config field.
NEEDED: dict[str, dict[str, str]] = {
    "paella": {"--tokenizer VQGAN_RUN": "tokenizer", "--text T5_FOLDER": "text.folder"},
    "stage_b": {"--tokenizer VQGAN_RUN": "tokenizer", "--text CLIP_FOLDER": "text.folder"},
    "stage_c": {"--stage_b STAGE_B_RUN": "stage_b", "--text CLIP_FOLDER": "text.folder"},
}
CLIP_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))


def lacking(plan: Conversion) -> str:
    """Which frozen networks are still needed to draw, and how to add them; empty for none."""
    needed = NEEDED.get(plan.family, {})
    missing = [option for option, field in needed.items() if not _value(plan.config, field)]
    if not missing:
        return ""
    fields = " and ".join(f"--config.{field}" for field in needed.values())
    return (
        "This folder cannot draw yet: it lacks frozen networks. Convert again with "
        f"`{' '.join(missing)}`, or give {fields} when fine-tuning."
    )


def _value(config: ConfigDict, field: str) -> str:
    for part in field.split("."):
        config = config[part]
    return str(config)


def check_frozen(plan: Conversion, weights: Weights) -> None:
    """Checks the networks that a conversion takes along, by their configs only.

    Raises:
      ConversionError: folders that are not there, or of other sizes than the weights.
      CheckpointError: the tokenizer or Stage B is no run folder.
      ValueError: a text encoder's config describes a model that is none.
    """
    checks = {"paella": _check_paella, "stage_b": _check_stage_b, "stage_c": _check_stage_c}
    if plan.family in checks:
        checks[plan.family](plan.config, weights)


def carry_frozen(plan: Conversion, folder: Path) -> None:
    """Copies the given networks into a new run folder. `check_frozen` was called before."""
    config = plan.config
    if plan.family == "paella" and config.tokenizer:
        prepare_frozen(config, folder)
    if plan.family == "stage_b" and config.tokenizer:
        carry_tokenizer(config.tokenizer, folder)
    if plan.family == "stage_c" and config.stage_b:
        stage_b.carry_stage_b(config.stage_b, folder)
    names = {"stage_b": stage_b.CLIP, "stage_c": stage_c.CLIP}
    if plan.family in names and config.text.folder:
        carry_text(config, folder, names[plan.family])


def _check_paella(config: ConfigDict, weights: Weights) -> None:
    given = {"--text": config.text.folder, "--clip": config.clip.folder}
    if not config.tokenizer:
        options = [option for option, folder in given.items() if folder]
        if options:
            raise ConversionError(
                f"{' and '.join(options)} needs --tokenizer too: networks are carried together"
            )
        return
    _check_tokenizer(config.tokenizer, "codebook_size", config.model.codebook_size, "codes")
    widths = dict(zip(given, condition_widths(weights), strict=True))
    for (option, folder), field in zip(given.items(), ("d_model", "projection_dim"), strict=True):
        if folder:
            _check_width(option, folder, field, widths[option])


def _check_tokenizer(run: str, field: str, needed: int, what: str) -> ConfigDict:
    """The config of a tokenizer's run, of the right size."""
    tokenizer = read_config(run)
    size = tokenizer.model.get(field) if tokenizer.method == "vqgan" else None
    if size != needed:
        raise ConversionError(
            f"--tokenizer {run} is a {tokenizer.method} with {size} {what}, the weights need a "
            f"vqgan with {needed}"
        )
    return tokenizer


def _check_width(option: str, folder: str, field: str, needed: int | None) -> None:
    try:
        width = hf_folder.read_config(Path(folder)).get(field)
    except FileNotFoundError as error:
        raise ConversionError(f"{option}: {error}") from error
    if needed is None:
        raise ConversionError(f"{option} {folder}: these weights have no layers for it")
    if width != needed:
        raise ConversionError(
            f"{option} {folder} has {field} {width}, the weights were trained with {needed}"
        )


def _check_stage_b(config: ConfigDict, weights: Weights) -> None:
    _check_clip(config.text.folder, text_width(weights, TEXT_B))
    if not config.tokenizer:
        return
    channels = config.model.latent_channels
    tokenizer = _check_tokenizer(config.tokenizer, "latent_channels", channels, "latent channels")
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


def _check_stage_c(config: ConfigDict, weights: Weights) -> None:
    _check_clip(config.text.folder, text_width(weights, TEXT_C))
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
    missing = [] if (frozen / "vqgan.json").is_file() else ["--tokenizer VQGAN_RUN"]
    if behind.text.kind == "clip" and not (frozen / stage_b.CLIP).is_dir():
        missing.append("--text CLIP_FOLDER")
    if missing:
        raise ConversionError(
            f"--stage_b {run} lacks frozen networks; convert it again with {' '.join(missing)}"
        )


def _check_clip(folder: str, needed: int) -> None:
    """Raises ConversionError for a CLIP folder that is not whole, or of another width."""
    if not folder:
        return
    path = Path(folder)
    try:
        config = hf_folder.read_config(path)
    except FileNotFoundError as error:
        raise ConversionError(f"--text: {error}") from error
    with hf_folder.errors_name(path / hf_folder.CONFIG):
        width = clip_text_from_hf_config(config).width
    if width != needed:
        raise ConversionError(
            f"--text {folder} has hidden_size {width}, the weights were trained with {needed} "
            "(released: 1024 of CLIP ViT-H/14 for Stage B, 1280 of ViT-bigG/14 for Stage C)"
        )
    if not any(all((path / name).is_file() for name in names) for names in CLIP_TOKENIZERS):
        raise ConversionError(
            f"--text {folder} has neither tokenizer.json nor vocab.json and merges.txt; copy them "
            "there (diffusers repositories keep them in the folder `tokenizer`)"
        )
