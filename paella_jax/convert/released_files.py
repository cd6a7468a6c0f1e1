"""By which files a published folder is told."""

from __future__ import annotations

from pathlib import Path

INDEX = "model_index.json"  # of diffusers' folders
# Network -> names of its released file without the suffix, the preferred first.
RELEASED = {
    "paella": ("paella_v3",),
    "tokenizer": ("vqgan_f4_v1_500k", "vqgan_f4"),
    "stage_b": ("model_v2_stage_b",),
    "stage_c": ("model_v2_stage_c",),
}


def is_published(folder: Path) -> bool:
    """Whether a folder looks like one that a model was published in."""
    names = {name for known in RELEASED.values() for name in known}
    return folder.is_dir() and any(f.name == INDEX or f.stem in names for f in folder.iterdir())
