"""Checks of text encoders that a conversion takes along, by their configs only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paella_jax.encoders.clip_text import clip_text_from_hf_config
from paella_jax.encoders.published import TEXT
from paella_jax.files import weights_file
from paella_jax.files.tensors import ConversionError

CLIP_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))


def _config(option: str, folder: str) -> dict[str, Any]:
    try:
        return weights_file.read_config(Path(folder))
    except FileNotFoundError as error:
        raise ConversionError(f"{option}: {error}") from error


def check_width(option: str, folder: str, field: str, needed: int | None) -> None:
    """Raises ConversionError for a folder (empty for none) whose config has another width.

    `needed` is None where the weights have no layers for it.
    """
    if not folder:
        return
    width = _config(option, folder).get(field)
    if needed is None:
        raise ConversionError(f"{option} {folder}: these weights have no layers for it")
    if width != needed:
        raise ConversionError(
            f"{option} {folder} has {field} {width}, the weights were trained with {needed}"
        )


def check_clip(
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
    config = _config(option, folder)
    with weights_file.errors_name(Path(shown)):
        tower = clip_text_from_hf_config(config)
    if tower.width != width:
        raise ConversionError(
            f"{shown} has hidden_size {tower.width}, the weights were trained with {width} "
            "(released: 768 of CLIP ViT-L/14 for aMUSEd, 1024 of ViT-H/14 for Stage B, 1280 of "
            "ViT-bigG/14 for Stage C)"
        )
    projection = _projection(path, tower.projection) if pooled is not None else None
    if projection != pooled:
        raise ConversionError(
            f"{shown} has projection_dim {projection}, the weights were trained with {pooled}"
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
    wanted = lambda name: name == TEXT.projection
    tensors = weights_file.read_weights(folder, wanted, TEXT.model_class)
    return len(tensors[TEXT.projection]) if tensors else None
