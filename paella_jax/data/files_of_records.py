"""Files of many records each: which ones a setting names, and which are for training.

A setting is a file, a folder, a glob (`*.tar`) or a range (`{0000..0099}.tar`, `{a,b}.tar`);
several are joined by "::".
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paella_jax.data.listing import list_files
from paella_jax.data.split_names import TEST, TRAIN, VALIDATION, split_of_file

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MOST_FILES = 10_000_000  # of a range
TOLD = 3  # missing files


@dataclass(frozen=True)
class ChosenFiles:
    """The files of a split.

    Attributes:
      files: in their order.
      how: how they were chosen, in words; empty where nothing says which records are held back.
      note: what else is to be told of the choice; empty for nothing.
    """

    files: list[Path]
    how: str
    note: str = ""


def find_files(
    field: str, given: str, pattern: str, left_out: Counter[str] | None = None
) -> list[Path]:
    """The files that a setting names, in the order of their paths, each once.

    Args:
      field: the setting's name, for errors.
      given: its value.
      pattern: regex on the names of such files in a folder.
      left_out: gets the number of links to files that are named too.

    Raises:
      ValueError: no such file or folder, none of the kind in it, or an address.
    """
    if "://" in given or given.startswith("pipe:"):
        raise ValueError(f"{field} {given!r} is an address; copy the files to a disk and name them")
    found: list[Path] = []
    missing: list[str] = []
    for part in (p for whole in given.split("::") for p in expand_braces(whole)):
        path = Path(part).expanduser()
        if path.is_dir():
            found += [f for f in list_files(path, Counter()) if re.search(pattern, f.name)]
        elif path.is_file():
            found.append(path)
        elif glob.has_magic(part):
            found += [Path(f) for f in glob.glob(str(path), recursive=True) if Path(f).is_file()]
        else:
            missing.append(part)
    if missing:
        more = f" and {len(missing) - TOLD} more" if len(missing) > TOLD else ""
        raise ValueError(f"{field}: there is no {', '.join(missing[:TOLD])}{more}")
    special = next((file for file in found if file.exists() and not file.is_file()), None)
    if special is not None:  # opening a pipe would wait for ever
        raise ValueError(f"{field}: {special} is a folder, pipe or device; leave it out")
    if not found:
        raise ValueError(f"{field} {given!r} names no files of its kind")
    wrong = [file for file in found if not re.search(pattern, file.name)]
    if wrong:
        advice = "; unpack it: a compressed archive cannot be read by position"
        raise ValueError(
            f"{field}: {wrong[0]} has not the suffix of its kind"
            + (advice if wrong[0].suffix in (".gz", ".zst", ".bz2", ".xz", ".tgz") else "")
        )
    return _each_once(found, Counter() if left_out is None else left_out)


def _each_once(files: Sequence[Path], left_out: Counter[str]) -> list[Path]:
    """Every file of the disk once, by its own name rather than by a link's."""
    of_target: dict[str, Path] = {}
    is_own = lambda file: os.path.realpath(file) == os.path.abspath(file)
    for file in sorted(set(files), key=lambda f: (f.is_symlink(), not is_own(f), f.parts)):
        first = of_target.setdefault(os.path.realpath(file), file)
        left_out["links to files that are there already"] += first is not file
    return sorted(of_target.values(), key=lambda file: file.parts)


def expand_braces(text: str) -> list[str]:
    """`a{0..2}` -> a0, a1, a2; `{x,y}` -> x, y; zeros in front are kept.

    Raises:
      ValueError: a range of too many.
    """
    found = BRACES.search(text)
    if not found:
        return [text]
    span = RANGE.fullmatch(found[1])
    if span:
        first, last = int(span[1]), int(span[2])
        if abs(last - first) >= MOST_FILES:
            raise ValueError(f"{text!r} names more than {MOST_FILES} files")
        step, width = (1 if last >= first else -1), len(span[1]) if span[1][0] == "0" else 0
        inner = [str(i).zfill(width) for i in range(first, last + step, step)]
    else:
        inner = found[1].split(",")
    before, after = text[: found.start()], expand_braces(text[found.end() :])
    return [before + middle + rest for middle in inner for rest in after]


def choose_files(
    files: Sequence[Path], held: Sequence[Path], training: bool, left_out: Counter[str]
) -> ChosenFiles:
    """The files for training, or for validation.

    Args:
      files: all that were given.
      held: those given for validation; none: their names or those of their folders say which,
        train and validation (split_names.py), or nothing does.
      training: which of the two is asked for.
      left_out: gets the number of files that are in neither.

    Raises:
      ValueError: the same files are given for both, and no others.
    """
    if held:
        kept_back = {file.resolve() for file in held}  # two settings may name one file in two ways
        rest = [file for file in files if file.resolve() not in kept_back]
        if not rest:
            raise ValueError("data.validation_files names all files of the training")
        return ChosenFiles(rest if training else list(held), "data.validation_files")
    below = Path(os.path.commonpath([file.absolute().parent for file in files]))
    labels = [split_of_file(file, below) for file in files]
    known = next((k for k in (VALIDATION, TEST) if any(label in k for label in labels)), ())
    if not known or not any(label in TRAIN for label in labels):
        found = sorted({label for label in labels if label})
        note = f"; files of {' and '.join(found)} alone: not used as splits" if found else ""
        return ChosenFiles(list(files), "", note)
    wanted = TRAIN if training else known
    chosen = [file for file, label in zip(files, labels, strict=True) if label in wanted]
    others = sum(label not in (*TRAIN, *known) for label in labels)
    left_out["files of another split"] += others
    return ChosenFiles(chosen, f"{len(chosen)} files named {split_of_file(chosen[0], below)}")
