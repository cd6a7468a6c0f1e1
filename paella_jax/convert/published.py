"""Folders as Paella, Würstchen and aMUSEd are published -> run folders, converted once and kept.

A folder is told by its `model_index.json` (diffusers) or by the names of the released files. What
it lacks, as text encoders, is taken from options, from beside it, or from the hub and its cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from paella_jax.config import from_json, to_json
from paella_jax.convert import plan as engine
from paella_jax.convert.joined import joined
from paella_jax.convert.recognise import open_parts
from paella_jax.convert.released_files import INDEX, RELEASED
from paella_jax.files import weights_file
from paella_jax.files.atomic import atomic_path
from paella_jax.files.layouts import STEMS, SUFFIXES, choose
from paella_jax.files.tensors import ConversionError
from paella_jax.outside import say
from paella_jax.runs.digests import write_noted
from paella_jax.runs.folder import CONFIG_FILE
from paella_jax.sharing.hub import HubError, download, is_name
from paella_jax.sharing.portable import portable

FORMAT = 1  # of what is kept; another one converts anew


class Companion(NamedTuple):
    """A network that a published folder needs and does not bring."""

    what: str
    name: str  # of its repository on the hub


CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
# Option of `load` -> what it stands for.
COMPANIONS = {
    "text": Companion("ByT5-XL, Paella's text encoder", "google/byt5-xl"),
    "clip": Companion("CLIP ViT-H/14", CLIP_H),
    "prior": Companion("Würstchen's prior (Stage C)", "warp-ai/wuerstchen-prior"),
    "prior_text": Companion(
        "CLIP ViT-bigG/14, Stage C's text encoder", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"
    ),
}
OPTIONAL = {("paella", "clip")}  # kind and option: it draws without
COMPRESSOR = "compressor"  # the option of a file that Würstchen's diffusers folders lack
OPTIONS = (*COMPANIONS, COMPRESSOR)


class Published(NamedTuple):
    """A published folder.

    Attributes:
      kind: "amused", "paella", "wuerstchen" (original files) or "diffusers" (Würstchen's).
      folder: the path.
      needs: options of the networks it lacks.
      files: of "paella" and "wuerstchen": network -> file.
      combined: of "diffusers": whether the prior's parts lie in the same folder.
    """

    kind: str
    folder: Path
    needs: tuple[str, ...] = ()
    files: Mapping[str, Path] = {}
    combined: bool = False

    @property
    def sources(self) -> tuple[Path, ...]:
        """What is read of it."""
        return tuple(self.files.values()) or (self.folder,)


def recognise_folder(folder: Path) -> Published:
    """What a folder that is no run folder holds.

    Raises:
      ConversionError: nothing that can be drawn with; the message says what is known.
    """
    if (folder / INDEX).is_file():
        kind = str(weights_file.read_json(folder / INDEX).get("_class_name"))
        if kind.startswith("Amused"):
            return Published("amused", folder)
        if kind == "WuerstchenCombinedPipeline":
            return Published("diffusers", folder, combined=True)
        if kind == "WuerstchenDecoderPipeline":
            return Published("diffusers", folder, ("prior",))
        if kind == "WuerstchenPriorPipeline":
            raise ConversionError(
                f"{folder} is Würstchen's prior alone; load the decoder's folder (warp-ai/"
                f"wuerstchen) with prior={folder}"
            )
        raise ConversionError(f"{folder} holds a {kind}, which is not supported")
    names = [file.name for file in folder.iterdir()]
    found = {n: folder / name for n, stems in RELEASED.items() if (name := _first(names, stems))}
    if {"stage_b", "stage_c", "tokenizer"} <= found.keys():
        return Published("wuerstchen", folder, ("clip", "prior_text"), found)
    if {"paella", "tokenizer"} <= found.keys():
        return Published("paella", folder, ("text", "clip"), found)
    raise ConversionError(
        f"{folder} is not a whole published folder: paella_v3.pt belongs with vqgan_f4.pt, and "
        "model_v2_stage_b.pt with model_v2_stage_c.pt and vqgan_f4_v1_500k.pt; found only "
        f"{_listed(found)}. Download the others into it"
    )


def _listed(found: Mapping[str, Path]) -> str:
    return ", ".join(sorted(file.name for file in found.values())) or "none of them"


def needed_files(names: Sequence[str]) -> list[str]:
    """Of a published repository's files those that are read: one form of each network's weights."""
    kept = [n for n in names if n.endswith((".json", ".txt", ".model"))]
    for folder in sorted({n.rpartition("/")[0] for n in names}):
        inside = {n.rpartition("/")[2]: n for n in names if n.rpartition("/")[0] == folder}
        kept += [inside[name] for name in _weights_of(list(inside))]
    return sorted(dict.fromkeys(kept))


def _weights_of(names: Sequence[str]) -> list[str]:
    """Of the files in one folder the weights to read: released, diffusers' or transformers'."""
    if found := [name for stems in RELEASED.values() if (name := _first(names, stems))]:
        return found
    chosen = choose(names, STEMS)
    if chosen is None:
        return []
    layout = chosen[0]
    return [*layout.files, *([layout.index] if layout.index else [])]


def _first(names: Sequence[str], stems: Sequence[str]) -> str:
    """The first of a file's possible names that is there; empty if none is."""
    possible = (stem + suffix for stem in stems for suffix in SUFFIXES)
    return next((name for name in possible if name in names), "")


def kept_folder() -> Path:
    """Where converted folders are kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return cache / "paella_jax" / "converted"


def converted(folder: Path, offline: bool = True, **given: Any) -> Path:
    """The run folder that a published folder becomes; made at the first call, then found again.

    Args:
      folder: that `recognise_folder` knows.
      offline: take what it lacks from options and from the hub's cache alone.
      **given: `COMPANIONS` and `compressor`, as folders, files or names on the hub.

    Raises:
      ConversionError: an unknown folder, a part of it is missing, damaged or does not fit.
    """
    published = recognise_folder(folder)
    usual = (*published.needs, *((COMPRESSOR,) if published.kind == "diffusers" else ()))
    if unknown := sorted(set(given) - set(usual)):
        raise ConversionError(
            f"{folder} has no use for {', '.join(unknown)}; it takes {', '.join(usual) or 'none'}"
        )
    found = {name: _companion(published, name, given.get(name), offline)
             for name in published.needs}  # fmt: skip
    beside = {name: place for name, place in found.items() if place is not None}
    if given.get(COMPRESSOR):
        beside[COMPRESSOR] = Path(given[COMPRESSOR])
    out = kept_folder() / _key(*published.sources, *beside.values())
    if (out / CONFIG_FILE).is_file():
        return out
    say(f"converting {folder} once, into {out}", sys.stderr)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(out) as part:
            CONVERTERS[published.kind](published, beside, part)
    except OSError as error:
        if not (out / CONFIG_FILE).is_file():  # else another process was faster
            raise ConversionError(f"cannot convert {folder} into {out}: {error}") from error
    return out


def _companion(published: Published, option: str, given: Any, offline: bool) -> Path | None:
    """The folder of a network that a published one lacks; None for one it can do without."""
    known, folder = COMPANIONS[option], published.folder
    beside = folder.with_name(f"{folder.name}-{option}")
    if given and not is_name(given):
        if not Path(given).is_dir():
            raise ConversionError(f"{option}={given} is not a folder")
        return Path(given)
    if not given and beside.is_dir():
        return beside
    try:
        return download(given or known.name, offline=offline, choose=needed_files)
    except HubError as error:
        if (published.kind, option) in OPTIONAL and not given:
            say(f"{folder} is loaded without {known.what}: give {option}=FOLDER", sys.stderr)
            return None
        raise ConversionError(
            f"{folder} brings no {known.what}; give {option}=FOLDER ({known.name} of the hub; "
            f"{error})"
        ) from error


def _key(*places: Path) -> str:
    """A name that changes with any of the files."""
    files = [f for p in places for f in (sorted(p.rglob("*")) if p.is_dir() else [p])]
    seen = [(f.name, str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns)
            for f in files if f.is_file()]  # fmt: skip
    return hashlib.sha256(json.dumps([FORMAT, *seen]).encode()).hexdigest()[:24]


def _convert(weights: Path, family: str, out: Path, compressor: Any = None, **along: Path) -> Path:
    """One network's files -> a run folder, with networks taken along by their option."""
    parts = open_parts(weights, family, None, compressor)
    needs = parts.record.needs
    taken = [f"--config.{needs[option][0]}={path}" for option, path in along.items()]
    plan = engine.plan_conversion(parts, taken)
    engine.check_frozen(plan, parts.weights)
    files = engine.described(parts.files)
    stored = " and ".join(sorted({str(x.dtype) for x in plan.arrays().values()}))
    card = engine.model_card(plan, files, source=parts.source, dtype=stored, out=out.name)
    engine.write_run_folder(plan, out, card)
    config = portable(from_json((out / CONFIG_FILE).read_text()))
    write_noted(out, CONFIG_FILE, to_json(config))
    return out


def _amused(published: Published, beside: Mapping[str, Path], out: Path) -> None:
    _convert(published.folder, "amused", out)


def _paella(published: Published, beside: Mapping[str, Path], out: Path) -> None:
    files = published.files
    with tempfile.TemporaryDirectory(dir=out.parent) as parts:
        tokenizer = _convert(files["tokenizer"], "vqgan", Path(parts) / "tokenizer")
        _convert(files["paella"], "paella", out, tokenizer=tokenizer, **beside)


def _wuerstchen(published: Published, beside: Mapping[str, Path], out: Path) -> None:
    files = published.files
    with tempfile.TemporaryDirectory(dir=out.parent) as parts:
        stage_a = _convert(files["tokenizer"], "vqgan", Path(parts) / "stage_a")
        along = {"tokenizer": stage_a, "text": beside["clip"]}
        stage_b = _convert(files["stage_b"], "stage_b", Path(parts) / "stage_b", **along)
        _convert(files["stage_c"], "stage_c", out, stage_b=stage_b, text=beside["prior_text"])


def _diffusers(published: Published, beside: Mapping[str, Path], out: Path) -> None:
    """Würstchen's two pipelines, or both in one folder."""
    folder, prior = published.folder, beside.get("prior", published.folder)
    mark = "prior_" if published.combined else ""
    names = ("text_encoder", "tokenizer")
    text, prior_text = (
        [place / f"{start}{name}" for name in names]
        for place, start in ((folder, ""), (prior, mark))
    )
    network = prior / f"{mark}prior"
    needed = (folder / "vqgan", folder / "decoder", network, *text, *prior_text)
    if missing := [str(place) for place in needed if not place.is_dir()]:
        raise ConversionError(f"{', '.join(missing)} is missing; download the whole folder")
    with (
        tempfile.TemporaryDirectory(dir=out.parent) as parts,
        joined(*text) as clip,
        joined(*prior_text) as prior_clip,
    ):
        stage_a = _convert(folder / "vqgan", "vqgan", Path(parts) / "stage_a")
        stage_b = _convert(
            folder / "decoder", "stage_b", Path(parts) / "stage_b", beside.get(COMPRESSOR),
            tokenizer=stage_a, text=clip,
        )  # fmt: skip
        _convert(network, "stage_c", out, stage_b=stage_b, text=prior_clip)


CONVERTERS: dict[str, Callable[[Published, Mapping[str, Path], Path], None]] = {
    "amused": _amused,
    "paella": _paella,
    "wuerstchen": _wuerstchen,
    "diffusers": _diffusers,
}
