"""The small files of a published model folder, copied into a run only as what their names say.

A downloaded folder may hold a link of a known name to any file of this machine; copied unread, that
file would be in a run, and given away with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from paella_jax.files.tensors import ConversionError
from paella_jax.files.weights_file import CONFIG, read_json
from paella_jax.runs.inside import check_inside

# Of tokenizers, and of configs.
SMALL_FILES = (
    CONFIG, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "spiece.model",
)  # fmt: skip
PIECES = b"\n"  # how a sentencepiece model begins: its field of pieces


def copy_small_files(folder: Path, target: Path, names: Iterable[str] = SMALL_FILES) -> None:
    """Copies those that are there.

    Raises:
      ConversionError: a file that is not what its name says; OSError: it cannot be read.
      CheckpointError: a link to what is no part of the folder.
    """
    for name in names:
        if (folder / name).is_file():
            check_inside(folder / name, folder)
            _check(folder / name)
            shutil.copy(folder / name, target / name)


def _check(file: Path) -> None:
    if file.suffix == ".json":
        read_json(file)
        return
    content = file.read_bytes()
    lines = [line for line in content.split(b"\n") if not line.startswith(b"#")]
    is_pairs = all(len(line.split()) in (0, 2) for line in lines)
    if not (is_pairs if file.suffix == ".txt" else content.startswith(PIECES)):
        raise ConversionError(f"{file} is no file of a tokenizer; download it again")
