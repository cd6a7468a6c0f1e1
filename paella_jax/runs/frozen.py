"""The frozen networks that a run keeps below `frozen/`, so that its folder stands alone.

`CARRIED` has one row for each: its place, where it is copied from, how it is read. A part counts as
carried once its `mark` is there, which is written last; then nothing is read from elsewhere again.
What reads published folders is imported when one is read, which most runs never do.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_collections import ConfigDict

from paella_jax.config import ConfigError, to_json
from paella_jax.files.atomic import atomic_path, write_atomically
from paella_jax.files.foreign import checked
from paella_jax.files.regular import read_regular
from paella_jax.outside import parse_object
from paella_jax.runs.checkpoint import restore_variables
from paella_jax.runs.digests import check_noted
from paella_jax.runs.folder import CheckpointError, read_config_of
from paella_jax.runs.inside import check_inside, check_tree
from paella_jax.runs.model_files import copy_small_files
from paella_jax.runs.stored_config import read_stored_config
from paella_jax.runs.weights import load_tree, save_tree
from paella_jax.typing import Tree

if TYPE_CHECKING:
    from paella_jax.encoders.t5 import T5Encoder

FROZEN = "frozen"
FIXED = "fixed"  # a tokenizer's encoder and codebook in the model state, where they do not train
COMPRESSOR = "compressor"  # its parameters' name, in the trained or the frozen tree
T5_TOKENIZER_FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json",
                      "special_tokens_map.json", "added_tokens.json")  # fmt: skip


class Carried(NamedTuple):
    """One frozen network in a run's folder.

    Attributes:
      mark: file or folder below `frozen/` that is there once all of it is.
      copy: (run or model folder, path of the mark) -> writes it; None for what a run makes itself.
      load: path of the mark -> what it holds.
      files: all its entries in `frozen/`.
      name: in the error about its absence.
      option: of `convert` that adds it.
    """

    mark: str
    copy: Callable[[Path, Path], None] | None
    load: Callable[[Path], Any]
    files: tuple[str, ...] = ()
    name: str = ""
    option: str = ""


def place_of(part: str, workdir: str | Path) -> Path:
    """The mark of a part in a run's folder."""
    return Path(workdir) / FROZEN / CARRIED[part].mark


def carry(part: str, source: str | Path, workdir: str | Path, needed: str = "") -> None:
    """Copies a frozen network into a run's folder, once.

    Args:
      part: a key of `CARRIED`.
      source: the run or model folder it is in; empty for none.
      workdir: of the run.
      needed: what to say where it is neither there nor given; empty if the run can do without.

    Raises:
      ConfigError: `needed`, or the model folder cannot be used.
      CheckpointError: the source is no run of the right kind, or damaged.
    """
    place, copy = place_of(part, workdir), CARRIED[part].copy
    if place.exists():
        return
    if needed and not source:
        raise ConfigError(needed)
    if source and copy is not None:
        copy(Path(source), place)


def load_carried(part: str, workdir: str | Path) -> Any:
    """What a run carries of one frozen network.

    Raises:
      CheckpointError: it is not there, or damaged.
    """
    place, row = place_of(part, workdir), CARRIED[part]
    if row.name and not place.exists():
        raise CheckpointError(
            f"{place.parent.parent} carries no {row.name} (missing {place}); converted weights get "
            f"it with {row.option}"
        )
    check_noted(workdir, partial(_is_of, row))
    return row.load(place)


def _is_of(row: Carried, name: str) -> bool:
    """Whether a file of a run's folder belongs to one frozen network."""
    first, _, below = name.partition("/")
    start = row.mark.partition("/")[0].partition(".")[0]
    of_t5 = start == "text_encoder" and below in T5_TOKENIZER_FILES
    return first == FROZEN and (below.startswith((f"{start}.", f"{start}/")) or of_t5)


def copy_frozen(source: str | Path, workdir: Path, leave_out: Iterable[str] = ()) -> None:
    """Copies all that another run carries, but for some parts; whole or not at all.

    Raises:
      CheckpointError: it is damaged, or has a link to what is no part of it.
    """
    folder = Path(source) / FROZEN
    check_noted(source, lambda name: name.startswith(f"{FROZEN}/"))
    names = [name for part in leave_out for name in CARRIED[part].files]
    if folder.is_dir():
        check_tree(folder, Path(source))
        with atomic_path(workdir / FROZEN) as target:
            ignore = lambda inside, _: names if Path(inside) == folder else []
            shutil.copytree(folder, target, ignore=ignore)


# --- the tokenizer


def variables_of(params: Tree, model_state: Tree) -> Tree:
    """What a tokenizer's `apply` takes, out of a train state's trees."""
    variables = {"params": {**params["vqgan"], **model_state.get(FIXED, {})}}
    if "vqgan" in model_state:  # the ResNet keeps no batch statistics
        variables["batch_stats"] = model_state["vqgan"]
    return variables


def tokenizer_run(run: str | Path) -> tuple[ConfigDict, Tree]:
    """Config and variables of a trained tokenizer.

    Raises:
      CheckpointError: not a tokenizer's run folder, or unreadable.
    """
    config = read_config_of("a vqgan", run, "configs/vqgan.py or configs/resnet_vqgan.py")
    _, restored = restore_variables(run)
    return config, variables_of(restored["params"], restored["model_state"])


def write_tokenizer(config: ConfigDict, variables: Tree, place: Path) -> None:
    """Puts a tokenizer where `load_carried` finds it; `place` is its mark, the config."""
    save_tree(place.with_suffix(".safetensors"), variables)
    write_atomically(place, to_json(config))


def _copy_tokenizer(run: Path, place: Path) -> None:
    config, variables = tokenizer_run(run)
    write_tokenizer(config, variables, place)


def _load_tokenizer(place: Path) -> tuple[ConfigDict, Tree]:
    return read_stored_config(place), load_tree(place.with_suffix(".safetensors"))


# --- text and image encoders


def _copy_t5(folder: Path, place: Path) -> None:
    from paella_jax.encoders.published import load_t5_folder

    _, params = load_t5_folder(folder)
    save_tree(place.with_suffix(".safetensors"), params)
    copy_small_files(folder, place.parent, T5_TOKENIZER_FILES)
    check_inside(folder / "config.json", folder)
    shutil.copy(folder / "config.json", place)


def _load_t5(place: Path) -> tuple[T5Encoder, Tree]:
    from paella_jax.encoders.t5 import t5_from_hf_config

    try:
        encoder = checked(t5_from_hf_config(parse_object(read_regular(place))))
    except (ValueError, TypeError, OSError) as error:
        raise CheckpointError(f"{place} is damaged ({error}); restore it from a copy") from error
    return encoder, load_tree(place.with_suffix(".safetensors"))


def carry_clip(folder: Path, place: Path) -> None:
    """Copies a CLIP folder's config, weights and tokenizer; the copy appears whole or not at all.

    Raises:
      ConfigError: no such folder, its text tower or tokenizer cannot be read, or a file of it is a
        link to elsewhere.
    """
    from paella_jax.encoders.text import ClipTokenizer
    from paella_jax.files.weights_file import index_file, weight_files

    try:
        # Read before the copy counts as done: a folder that was corrected is not copied again.
        _load_clip(folder)
        ClipTokenizer(folder)
        files = [*index_file(folder), *weight_files(folder, lambda name: True, "CLIPModel")]
        with atomic_path(place) as target:
            target.mkdir(parents=True)
            copy_small_files(folder, target)
            for file in files:
                check_inside(file, folder)
                shutil.copy(file, target / file.name)
    except (OSError, ValueError, CheckpointError) as error:
        raise ConfigError(f"{folder} is not a model folder to use: {error}") from error


def _load_clip(folder: Path) -> Any:
    from paella_jax.encoders.published import load_clip_text_folder

    return load_clip_text_folder(folder)


# --- Stage B and its compressor


def stage_b_run(run: str | Path) -> tuple[ConfigDict, Tree, Tree]:
    """Config, parameters (averaged if there is an average) and model state of a Stage B run.

    Raises:
      CheckpointError: not a Stage B run, or unreadable.
    """
    config = read_config_of("stage_b", run)
    _, restored = restore_variables(run)
    return config, restored["params"], restored["model_state"]


def has_compressor(run: str | Path) -> bool:
    """Whether a Stage B run has one: diffusers' published folders, from which it may be, do not."""
    trains = read_config_of("stage_b", run).compressor.train
    return trains or place_of(COMPRESSOR, run).is_file()


def compressor_variables(run: str | Path) -> Tree:
    """The compressor of a Stage B run: {"params", "batch_stats"}."""
    config, params, model_state = stage_b_run(run)
    if config.compressor.train:
        return {"params": params[COMPRESSOR], "batch_stats": model_state[COMPRESSOR]}
    return load_carried(COMPRESSOR, run)


def _copy_compressor(run: Path, place: Path) -> None:
    save_tree(place, compressor_variables(run))


def _copy_stage_b(run: Path, place: Path) -> None:
    """Copies Stage B with its compressor, its tokenizer (Stage A) and its text encoder."""
    config, params, _ = stage_b_run(run)
    workdir = place.parent.parent
    if has_compressor(run):
        _copy_compressor(run, place_of(COMPRESSOR, workdir))
    own = {name: tree for name, tree in params.items() if name != COMPRESSOR}
    save_tree(place.with_suffix(".safetensors"), own)
    stage_a, variables = load_carried("tokenizer", run)
    write_tokenizer(stage_a, variables, place_of("tokenizer", workdir))
    if config.text.kind == "clip":
        carry("stage_b_clip", place_of("stage_b_clip", run), workdir)
    write_atomically(place, to_json(config))


def _load_stage_b(place: Path) -> tuple[ConfigDict, Tree]:
    return read_stored_config(place), load_tree(place.with_suffix(".safetensors"))


def _tokenizer(mark: str, *files: str) -> Carried:
    option = "--tokenizer VQGAN_RUN"
    return Carried(mark, _copy_tokenizer, _load_tokenizer, files, "tokenizer", option)


def _clip(mark: str) -> Carried:
    option = "--text CLIP_FOLDER"
    return Carried(mark, carry_clip, _load_clip, (mark,), "text encoder", option)


CARRIED: dict[str, Carried] = {
    "tokenizer": _tokenizer("vqgan.json", "vqgan.json", "vqgan.safetensors"),
    "low_tokenizer": _tokenizer("low/frozen/vqgan.json", "low"),
    "text_encoder": Carried("text_encoder.json", _copy_t5, _load_t5),
    "clip": _clip("clip"),
    "stage_b_clip": _clip("stage_b_clip"),
    "stage_c_clip": _clip("stage_c_clip"),
    COMPRESSOR: Carried(
        "compressor.safetensors", _copy_compressor, load_tree, (), "compressor", "--compressor FILE"
    ),
    "stage_b": Carried(
        "stage_b.json", _copy_stage_b, _load_stage_b, name="Stage B", option="--stage_b STAGE_B_RUN"
    ),
    "base": Carried("base.safetensors", None, load_tree, ("base.safetensors",)),  # LoRA's
}
