"""The folder of a diffusers AmusedPipeline: its parts opened and checked.

Source: docs/models/muse.md 2.1, 2.6.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from paella_jax.files import hf_folder
from paella_jax.files.tensors import ConversionError, Weights
from paella_jax.files.weights_file import open_weights

INDEX, PIPELINE = "model_index.json", "AmusedPipeline"
TRANSFORMER, VQVAE, TEXT_ENCODER, TOKENIZER, SCHEDULER = PARTS = (
    "transformer", "vqvae", "text_encoder", "tokenizer", "scheduler",
)  # fmt: skip
# Part -> library and class, as model_index.json names them.
CLASSES = {
    SCHEDULER: ("diffusers", "AmusedScheduler"),
    TEXT_ENCODER: ("transformers", "CLIPTextModelWithProjection"),
    TOKENIZER: ("transformers", "CLIPTokenizer"),
    TRANSFORMER: ("diffusers", "UVit2DModel"),
    VQVAE: ("diffusers", "VQModel"),
}
SCHEDULER_CONFIG = "scheduler_config.json"
# What must be there besides weights.
NEEDED = (
    INDEX,
    f"{TRANSFORMER}/{hf_folder.CONFIG}",
    f"{VQVAE}/{hf_folder.CONFIG}",
    f"{TEXT_ENCODER}/{hf_folder.CONFIG}",
    TOKENIZER,
    f"{SCHEDULER}/{SCHEDULER_CONFIG}",
)
SCHEDULES = ("cosine", "linear")  # AmusedScheduler's, and ours by the same names
TOKENIZER_FILES = (
    "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip


class AmusedFolder(NamedTuple):
    """An opened pipeline folder; of its weights nothing is read yet.

    Attributes:
      folder: the whole.
      transformer: the U-ViT's weights.
      vqvae: the tokenizer's.
      schedule: share still masked, a value of our `sampler.schedule`.
      mask_token: the scheduler's id of an unknown token.
    """

    folder: Path
    transformer: Weights
    vqvae: Weights
    schedule: str
    mask_token: int

    @property
    def files(self) -> tuple[Path, ...]:
        """Every weights file."""
        text = hf_folder.weight_files(
            self.folder / TEXT_ENCODER, lambda name: True, CLASSES[TEXT_ENCODER][1]
        )
        return (*self.transformer.files, *self.vqvae.files, *text)

    @contextmanager
    def clip_folder(self) -> Iterator[Path]:
        """The text encoder and its tokenizer as one Hugging Face folder, made of links."""
        with tempfile.TemporaryDirectory() as name:
            joined = Path(name)
            for part in (TEXT_ENCODER, TOKENIZER):
                for file in (self.folder / part).iterdir():
                    link = joined / file.name
                    if file.is_file() and not link.exists():
                        link.symlink_to(file.absolute())
            yield joined


def is_amused_folder(path: str | Path) -> bool:
    """Whether a path is such a folder, be it incomplete."""
    folder = Path(path)
    if not (folder / INDEX).is_file():
        return (folder / TRANSFORMER).is_dir() and (folder / VQVAE).is_dir()
    return str(hf_folder.read_json(folder / INDEX).get("_class_name")).startswith("Amused")


def open_amused_folder(path: str | Path) -> AmusedFolder:
    """Opens a folder that `is_amused_folder`.

    Raises:
      ConversionError: parts are missing (all are listed), weights cannot be read, or the
        scheduler does what our sampler does not.
    """
    folder = Path(path)
    missing = [name for name in NEEDED if not (folder / name).exists()]
    if missing:
        raise ConversionError(
            f"{folder} lacks {', '.join(missing)} of an {PIPELINE}; download the whole folder, or "
            f"give {folder / TRANSFORMER} with --tokenizer VQGAN_RUN --clip CLIP_FOLDER"
        )
    schedule, mask_token = _read_scheduler(folder / SCHEDULER / SCHEDULER_CONFIG)
    opened = AmusedFolder(
        folder, open_weights(folder / TRANSFORMER), open_weights(folder / VQVAE), schedule,
        mask_token,
    )  # fmt: skip
    try:
        assert opened.files
    except FileNotFoundError as error:
        raise ConversionError(str(error)) from error
    return opened


def _read_scheduler(file: Path) -> tuple[str, int]:
    config = hf_folder.read_json(file)
    kind, ours = config.get("_class_name"), CLASSES[SCHEDULER][1]
    if kind != ours:
        raise ConversionError(f"{file} is of a {kind!r}, not of an {ours}")
    schedule = config.get("masking_schedule", "cosine")
    if schedule not in SCHEDULES:
        raise ConversionError(
            f"{file}: masking_schedule {schedule!r} is not known here, only {', '.join(SCHEDULES)}"
        )
    if "mask_token_id" not in config:
        raise ConversionError(f"{file} has no field 'mask_token_id'; download it again")
    return schedule, config["mask_token_id"]


def model_index() -> dict[str, Any]:
    """What model_index.json holds."""
    return {"_class_name": PIPELINE, **{part: list(kind) for part, kind in CLASSES.items()}}


def scheduler_config(schedule: str, mask_token: int) -> dict[str, Any]:
    """What scheduler_config.json holds.

    Raises:
      ConversionError: a schedule that AmusedScheduler does not have.
    """
    if schedule not in SCHEDULES:
        raise ConversionError(
            f"sampler.schedule is {schedule!r}, {CLASSES[SCHEDULER][1]} has "
            f"{' and '.join(SCHEDULES)} only"
        )
    return {
        "_class_name": CLASSES[SCHEDULER][1],
        "mask_token_id": mask_token,
        "masking_schedule": schedule,
    }
