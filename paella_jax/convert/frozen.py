"""The networks that a converted model takes along: checked by their configs, then carried."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from paella_jax.convert.amused_config import text_widths
from paella_jax.convert.amused_folder import TEXT_ENCODER, AmusedFolder
from paella_jax.convert.infer import article
from paella_jax.convert.paella import condition_widths
from paella_jax.convert.plan import Conversion, run_family
from paella_jax.convert.wuerstchen import TEXT_B, TEXT_C, text_width
from paella_jax.encoders.clip_text import clip_text_from_hf_config
from paella_jax.encoders.clip_weights import TEXT_PROJECTION
from paella_jax.families import stage_b, stage_c, token_training, tokens
from paella_jax.families.cells import check_cell
from paella_jax.families.text_side import TextSide, carry_text
from paella_jax.families.vqgan import architecture_of, make_vqgan
from paella_jax.files import hf_folder
from paella_jax.files.tensors import ConversionError, Weights
from paella_jax.models.stage_b import StageB
from paella_jax.noise.gaussian import CosineSchedule
from paella_jax.runs.folder import read_config
from paella_jax.runs.frozen import carry, carry_clip, place_of, variables_of, write_tokenizer

# Family -> option -> the config field it stands for.
OPTIONS: dict[str, dict[str, str]] = {
    "paella": {"tokenizer": "tokenizer", "text": "text.folder", "clip": "clip.folder"},
    "amused": {"tokenizer": "tokenizer", "clip": "clip.folder"},
    "stage_b": {"tokenizer": "tokenizer", "text": "text.folder"},
    "stage_c": {"stage_b": "stage_b", "text": "text.folder"},
}
# What a family cannot draw without: option with its value -> config field.
NEEDED: dict[str, dict[str, str]] = {
    "paella": {"--tokenizer VQGAN_RUN": "tokenizer", "--text T5_FOLDER": "text.folder"},
    "amused": {"--tokenizer VQGAN_RUN": "tokenizer", "--clip CLIP_FOLDER": "clip.folder"},
    "stage_b": {"--tokenizer VQGAN_RUN": "tokenizer", "--text CLIP_FOLDER": "text.folder"},
    "stage_c": {"--stage_b STAGE_B_RUN": "stage_b", "--text CLIP_FOLDER": "text.folder"},
}
CLIP_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))


def lacking(plan: Conversion) -> str:
    """Which frozen networks are still needed to draw, and how to add them; empty for none."""
    needed = NEEDED.get(plan.family, {}) if plan.amused is None else {}
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
      ValueError: a text encoder's config describes a model that is none, or fields of the config
        that do not fit together.
    """
    if plan.family == "amused":
        _check_amused(plan, weights)
    checks = {"paella": _check_paella, "stage_b": _check_stage_b, "stage_c": _check_stage_c}
    if plan.family in checks:
        checks[plan.family](plan.config, weights)


def carry_frozen(plan: Conversion, folder: Path) -> None:
    """Copies the given networks into a new run folder. `check_frozen` was called before."""
    config = plan.config
    if plan.family in ("paella", "amused") and config.tokenizer:
        token_training.prepare(config, folder)
    if plan.amused is not None:
        _carry_amused(plan, plan.amused, folder)
    if plan.family == "stage_b" and config.tokenizer:
        carry("tokenizer", config.tokenizer, folder)
    if plan.family == "stage_c" and config.stage_b:
        carry("stage_b", config.stage_b, folder)
    names = {"stage_b": stage_b.CLIP, "stage_c": stage_c.CLIP}
    if plan.family in names and config.text.folder:
        carry_text(config, folder, names[plan.family])


def _carry_amused(plan: Conversion, source: AmusedFolder, folder: Path) -> None:
    """Writes a pipeline folder's tokenizer and text encoder, as `token_training.prepare` does."""
    assert plan.tokenizer is not None
    tree = plan.tokenizer.tree
    variables = variables_of(tree["params"], tree["model_state"])
    write_tokenizer(plan.tokenizer.config, variables, place_of("tokenizer", folder))
    with source.clip_folder() as clip, hf_folder.errors_name(source.folder / TEXT_ENCODER):
        carry_clip(clip, place_of(tokens.CLIP, folder))


def _check_amused(plan: Conversion, weights: Weights) -> None:
    config, source = plan.config, plan.amused
    check_cell(config)
    codes, widths = config.model.codebook_size, text_widths(weights, config)
    if source is None:
        if config.clip.folder and not config.tokenizer:
            raise ConversionError("--clip needs --tokenizer too: networks are carried together")
        if config.tokenizer:
            tokenizer = _check_tokenizer(config.tokenizer, "codebook_size", codes, "codes")
            _check_amused_size(config, tokenizer)
        _check_clip("--clip", config.clip.folder, *widths)
        return
    given = [f"--{option}" for option, field in OPTIONS["amused"].items() if _value(config, field)]
    if given:
        raise ConversionError(
            f"{source.folder} brings its own networks; leave out {' and '.join(given)}, or give "
            "its folder `transformer` alone"
        )
    assert plan.tokenizer is not None
    theirs = plan.tokenizer.config.model.codebook_size
    if theirs != codes:
        raise ConversionError(
            f"{source.folder}: its vqvae has {theirs} codes, its transformer {codes}; they do not "
            "belong together"
        )
    mask = config.uvit.vocabulary_size - 1
    if source.mask_token != mask:
        raise ConversionError(
            f"{source.folder}: its scheduler's mask_token_id is {source.mask_token}, the "
            f"transformer's last row is {mask}; they do not belong together"
        )
    _check_amused_size(config, plan.tokenizer.config)
    with source.clip_folder() as clip:
        shown = str(source.folder / TEXT_ENCODER)
        _check_clip("--weights", str(clip), *widths, shown=shown)


def _check_amused_size(config: ConfigDict, tokenizer: ConfigDict) -> None:
    divisor = make_vqgan(tokenizer).downsampling * (2 if config.uvit.downsample else 1)
    if config.data.image_size % divisor:
        raise ConversionError(
            f"data.image_size {config.data.image_size} must be a multiple of {divisor} for these "
            f"networks; give --config.data.image_size={divisor}"
        )


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
            f"--tokenizer {run} is {article(run_family(tokenizer))} with {size} {what}, the "
            f"weights need a vqgan with {needed}"
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
    _check_clip("--text", config.text.folder, text_width(weights, TEXT_B))
    if not config.tokenizer:
        return
    channels = config.model.latent_channels
    tokenizer = _check_tokenizer(config.tokenizer, "latent_channels", channels, "latent channels")
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


def _check_stage_c(config: ConfigDict, weights: Weights) -> None:
    _check_clip("--text", config.text.folder, text_width(weights, TEXT_C))
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


def _check_clip(
    option: str, folder: str, width: int, pooled: int | None = None, shown: str = ""
) -> None:
    """Raises ConversionError for a CLIP folder that is not whole, or of another width.

    Args:
      option: that gave it.
      folder: empty for none.
      width: of the states that the weights were trained with.
      pooled: of the projection; None where the weights take no pooled text.
      shown: what to call the folder.
    """
    if not folder:
        return
    path, shown = Path(folder), shown or f"{option} {folder}"
    try:
        config = hf_folder.read_config(path)
    except FileNotFoundError as error:
        raise ConversionError(f"{option}: {error}") from error
    with hf_folder.errors_name(Path(shown)):
        tower = clip_text_from_hf_config(config)
    if tower.width != width:
        raise ConversionError(
            f"{shown} has hidden_size {tower.width}, the weights were trained with {width} "
            "(released: 768 of CLIP ViT-L/14 for aMUSEd, 1024 of ViT-H/14 for Stage B, 1280 of "
            "ViT-bigG/14 for Stage C)"
        )
    if pooled is not None and _projection(path, tower.projection) != pooled:
        raise ConversionError(
            f"{shown} has projection_dim {_projection(path, tower.projection)}, the weights were "
            f"trained with {pooled}"
        )
    if not any(all((path / name).is_file() for name in names) for names in CLIP_TOKENIZERS):
        raise ConversionError(
            f"{shown} has neither tokenizer.json nor vocab.json and merges.txt; copy them "
            "there (diffusers repositories keep them in the folder `tokenizer`)"
        )


def _projection(folder: Path, known: int | None) -> int | None:
    """Width of a text tower's projection; where its config says nothing, the weights do."""
    if known is not None:
        return known
    wanted = lambda name: name == TEXT_PROJECTION
    tensors = hf_folder.read_weights(folder, wanted, "CLIPTextModelWithProjection")
    return len(tensors[TEXT_PROJECTION]) if tensors else None
