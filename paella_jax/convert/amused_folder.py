"""A diffusers AmusedPipeline's folder, read and written (docs/models/muse.md 2.1, 2.6)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from paella_jax.convert.joined import joined
from paella_jax.convert.released import ForeignConfig, Found
from paella_jax.convert.vqgan import VQMODEL
from paella_jax.encoders.clip_transformer import tower_config
from paella_jax.encoders.published import TEXT, check_clip, load_clip_text_folder
from paella_jax.families import tokens, vqgan
from paella_jax.families.cells import check_cell
from paella_jax.files import weights_file
from paella_jax.files.safetensors_file import write_safetensors
from paella_jax.files.tensors import ConversionError, Weights
from paella_jax.files.weights_file import CONFIG, DIFFUSERS_WEIGHTS
from paella_jax.models.uvit import UViT
from paella_jax.models.vqmodel import VQModel
from paella_jax.runs.frozen import carry_clip, place_of, variables_of, write_tokenizer
from paella_jax.typing import Tensors, Tree

INDEX, PIPELINE = "model_index.json", "AmusedPipeline"
TRANSFORMER, VQVAE, SCHEDULER = "transformer", "vqvae", "scheduler"
TEXT_ENCODER, TOKENIZER = "text_encoder", "tokenizer"
# Part -> library and class, as model_index.json names them.
CLASSES = {
    SCHEDULER: ("diffusers", "AmusedScheduler"),
    TEXT_ENCODER: ("transformers", "CLIPTextModelWithProjection"),
    TOKENIZER: ("transformers", "CLIPTokenizer"),
    TRANSFORMER: ("diffusers", "UVit2DModel"),
    VQVAE: ("diffusers", "VQModel"),
}
SCHEDULER_CONFIG = f"{SCHEDULER}/scheduler_config.json"
# What must be there besides weights.
NEEDED = (
    INDEX, *(f"{part}/{CONFIG}" for part in (TRANSFORMER, VQVAE, TEXT_ENCODER)), TOKENIZER,
    SCHEDULER_CONFIG,
)  # fmt: skip
SCHEDULES = ("cosine", "linear")  # AmusedScheduler's, and ours by the same names
TOKENIZER_FILES = (
    "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
DOWNSAMPLING = 16  # of the released tokenizer


class AmusedFolder(NamedTuple):
    """An opened pipeline folder; of its weights nothing is read yet."""

    path: Path
    weights: Weights  # the U-ViT's
    tokenizer: Weights  # the weights of its VQModel
    found: Found  # config fields that the folder tells: the fraction still masked
    mask_token: int  # the scheduler's id of an unknown token
    tokenizer_family: str = VQMODEL.family  # what its weights must be

    @property
    def files(self) -> tuple[Path, ...]:
        """Every weights file."""
        folder, kind = self.path / TEXT_ENCODER, CLASSES[TEXT_ENCODER][1]
        text = weights_file.weight_files(folder, lambda name: True, kind)
        return (*self.weights.files, *self.tokenizer.files, *text)

    @property
    def source(self) -> str:
        """What kind of files they are."""
        return f"diffusers pipeline folder (the transformer a {self.weights.source})"

    def check(self, config: ConfigDict, tokenizer: ConfigDict, transformer: UViT) -> None:
        """Raises ConversionError for parts that do not belong together; `tokenizer` its config."""
        check_cell(config)
        theirs, codes = tokenizer.model.codebook_size, config.model.codebook_size
        mask, apart = config.uvit.vocabulary_size - 1, "they do not belong together"
        if theirs != codes:
            sizes = f"its vqvae has {theirs} codes, its transformer {codes}"
            raise ConversionError(f"{self.path}: {sizes}; {apart}")
        if self.mask_token != mask:
            ids = f"mask_token_id is {self.mask_token}, the transformer's last row is {mask}"
            raise ConversionError(f"{self.path}: its scheduler's {ids}; {apart}")
        check_size(config, tokenizer)
        with self.clip_folder() as clip:
            widths, shown = (transformer.text_width, transformer.pooled_width), TEXT_ENCODER
            check_clip("--weights", str(clip), *widths, shown=str(self.path / shown))

    def carry(self, config: ConfigDict, tree: Tree, folder: Path) -> None:
        """Writes tokenizer (its config and tree) and text encoder, as `token_training.prepare`."""
        variables = variables_of(tree["params"], tree["model_state"])
        write_tokenizer(config, variables, place_of("tokenizer", folder))
        with self.clip_folder() as clip, weights_file.errors_name(self.path / TEXT_ENCODER):
            carry_clip(clip, place_of(tokens.CLIP, folder))

    @contextmanager
    def clip_folder(self) -> Iterator[Path]:
        """The text encoder and its tokenizer as one Hugging Face folder, made of links."""
        with joined(self.path / TEXT_ENCODER, self.path / TOKENIZER) as folder:
            yield folder


def check_size(config: ConfigDict, tokenizer: ConfigDict) -> None:
    """Raises ConversionError for an image size that the networks cannot divide."""
    divisor = vqgan.make_vqgan(tokenizer).downsampling * (2 if config.uvit.downsample else 1)
    if config.data.image_size % divisor:
        raise ConversionError(
            f"data.image_size {config.data.image_size} must be a multiple of {divisor} for these "
            f"networks; give --config.data.image_size={divisor}"
        )


def open_folder(path: str | Path) -> AmusedFolder | None:
    """Opens a pipeline's folder; None where the path is no such folder.

    Raises:
      ConversionError: parts are missing (all are listed), weights cannot be read, or the
        scheduler does what our sampler does not.
    """
    folder = Path(path)
    is_folder = (folder / TRANSFORMER).is_dir() and (folder / VQVAE).is_dir()
    if (folder / INDEX).is_file():
        pipeline = weights_file.read_json(folder / INDEX).get("_class_name")
        is_folder = str(pipeline).startswith("Amused")
    if not is_folder:
        return None
    missing = [name for name in NEEDED if not (folder / name).exists()]
    if missing:
        raise ConversionError(
            f"{folder} lacks {', '.join(missing)} of an {PIPELINE}; download the whole folder, or "
            f"give {folder / TRANSFORMER} with --tokenizer VQGAN_RUN --clip CLIP_FOLDER"
        )
    file, ours = folder / SCHEDULER_CONFIG, CLASSES[SCHEDULER][1]
    config = weights_file.read_json(file)
    schedule, kind = config.get("masking_schedule", "cosine"), config.get("_class_name")
    if kind != ours:
        raise ConversionError(f"{file} is of a {kind!r}, not of an {ours}")
    if schedule not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        what = f"masking_schedule {schedule!r} is not known here, only {known}"
        raise ConversionError(f"{file}: {what}")
    if "mask_token_id" not in config:
        raise ConversionError(f"{file} has no field 'mask_token_id'; download it again")
    found = {"sampler.schedule": (schedule, "its scheduler")}
    weights, tokenizer = (weights_file.open_weights(folder / part) for part in (TRANSFORMER, VQVAE))
    opened = AmusedFolder(folder, weights, tokenizer, found, config["mask_token_id"])
    try:
        len(opened.files)  # lists them, which finds what is missing
    except FileNotFoundError as error:
        raise ConversionError(str(error)) from error
    return opened


def open_run(
    checkpoint: str | Path, config: ConfigDict, transformer: UViT, foreign: ForeignConfig
) -> Callable[..., list[str]]:
    """What writes a run as a pipeline, whose transformer's config.json is `foreign`.

    Returns:
      Folder, transformer's tensors and how to store them -> writes every part that the run carries,
      and returns the names of the others; see `Export.write`.

    Raises:
      ConversionError, ValueError: networks or a schedule that diffusers' classes cannot be.
    """
    frozen, pixels, tokenizer = Path(checkpoint) / "frozen", DOWNSAMPLING, None
    schedule, scheduler = config.sampler.schedule, CLASSES[SCHEDULER][1]
    if (frozen / "vqgan.json").is_file():
        tokenizer, variables = vqgan.load_carried_tokenizer(Path(checkpoint))
        if not isinstance(tokenizer, VQModel):
            raise ConversionError(
                f"{checkpoint} carries a tokenizer of architecture 'paella', diffusers' "
                "AmusedPipeline takes a 'resnet' only"
            )
        pixels = tokenizer.downsampling
    side = config.data.image_size // pixels
    configs = {f"{TRANSFORMER}/{CONFIG}": foreign.write(transformer, sample_size=side)}
    if schedule not in SCHEDULES:
        all_of_it = " and ".join(SCHEDULES)
        raise ConversionError(f"sampler.schedule is {schedule!r}, {scheduler} has {all_of_it} only")
    configs[SCHEDULER_CONFIG] = {
        "_class_name": scheduler, "mask_token_id": transformer.mask_token,
        "masking_schedule": schedule,
    }  # fmt: skip
    clip, vqvae = frozen / tokens.CLIP if (frozen / tokens.CLIP).is_dir() else None, None
    if tokenizer is not None and VQMODEL.foreign is not None:
        configs[f"{VQVAE}/{CONFIG}"] = VQMODEL.foreign.write(tokenizer)
        vqvae = VQMODEL.names.save(variables["params"], tokenizer, copy=False)
    missing = [VQVAE] * (vqvae is None) + [TEXT_ENCODER, TOKENIZER] * (clip is None)
    if not missing:  # an index names every part
        configs[INDEX] = {"_class_name": PIPELINE} | {n: [*kind] for n, kind in CLASSES.items()}

    def write(out: Path, tensors: Tensors, *stored: Any) -> list[str]:
        write_safetensors(out / TRANSFORMER / DIFFUSERS_WEIGHTS, tensors, *stored)
        if vqvae is not None:
            write_safetensors(out / VQVAE / DIFFUSERS_WEIGHTS, vqvae)
        if clip is not None:
            _write_text_encoder(clip, out)
        for name, content in configs.items():
            _write_json(out / name, content)
        return missing

    return write


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2))


def _write_text_encoder(clip: Path, out: Path) -> None:
    """Copies the text tower and the tokenizer's files; of both towers only the text's is kept."""
    text, tokenizer = out / TEXT_ENCODER, out / TOKENIZER
    text.mkdir(parents=True)
    tokenizer.mkdir()
    config = weights_file.read_config(clip)
    has_both = config.get("model_type") == "clip"
    for file in clip.iterdir():
        if file.is_file() and file.name in TOKENIZER_FILES:
            shutil.copy(file, tokenizer / file.name)
        elif file.is_file() and not has_both and file.name != "README.md":
            shutil.copy(file, text / file.name)
    if has_both:
        fields, projection = tower_config(config, "text")
        module, params = load_clip_text_folder(clip)
        write_safetensors(text / weights_file.WEIGHTS[0], TEXT.save(params, module))
        own = {"architectures": [CLASSES[TEXT_ENCODER][1]], "model_type": "clip_text_model"}
        _write_json(text / CONFIG, {**fields, **own, "projection_dim": projection})
