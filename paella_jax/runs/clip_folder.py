"""A CLIP model's folder, carried along by the runs that use it."""

from __future__ import annotations

import shutil
from pathlib import Path

from paella_jax.config import ConfigError
from paella_jax.encoders.published import load_clip_text_folder
from paella_jax.encoders.text import ClipTokenizer
from paella_jax.files.atomic import atomic_path
from paella_jax.files.weights_file import weight_files


def carry_clip(source: str, target: Path) -> None:
    """Copies a CLIP folder's config, weights and tokenizer; the copy appears whole or not at all.

    Raises:
      ConfigError: no such folder, or its text tower or tokenizer cannot be read.
    """
    folder = Path(source)
    try:
        # Read before the copy counts as done: a folder that was corrected is not copied again.
        load_clip_text_folder(folder)
        ClipTokenizer(folder)
        files = weight_files(folder, lambda name: True, "CLIPModel")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source} is not a model folder to use: {error}") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as part:
        part.mkdir()
        for file in (*folder.glob("*.json"), *folder.glob("*.txt"), *files):
            shutil.copy(file, part / file.name)
