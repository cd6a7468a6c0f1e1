"""The model card of a shared run: what it is, its scores and pictures, how to use it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from paella_jax.files.atomic import CARD_FILE, write_atomically
from paella_jax.outside import parse_object
from paella_jax.runs.folder import CheckpointError

PICTURES = "pictures"  # the folder beside the card
SCORES = "scores.md"
# What `evaluate` leaves in a run's folder, and what it shows.
SHOWN = {
    "samples.png": "Images for validation captions, the second half for pairs of colour and shape "
    "that training never has; a tick or cross says what was read back",
    "scores.png": "Drawn, true and nearest training images",
    "training.png": "Loss and scores while training",
}
LARGEST = 8 * 2**20  # bytes of a picture that goes along
TITLES = {
    "tokens": "text-to-image token predictor",
    "stage_c": "Würstchen, all three stages",
    "stage_b": "Würstchen's Stage B, compressor and Stage A",
    "vqgan": "image tokenizer",
    "clip_prior": "CLIP prior",
    "direct_decoder": "direct decoder of a semantic compressor",
}
NUMBERS = ("exact", "clean", "count", "position", "color", "shape", "size", "background")


class Told(NamedTuple):
    """What a card says that the config does not.

    Attributes:
      title: of the card.
      parameters: number of trained scalars.
      dtype: what they are stored in.
      step: of training; 0 of converted weights.
      report: folder with what `evaluate` wrote.
      licence: its identifier on the hub, as "mit"; empty if it is still to be chosen.
      enlarged: whether a second run enlarges its images.
    """

    title: str
    parameters: int
    dtype: str
    step: int
    report: Path
    licence: str = ""
    enlarged: bool = False


def write_card(folder: Path, config: ConfigDict, told: Told) -> None:
    """Writes the README.md of a folder and copies the pictures that it shows.

    The scores are a file of their own too, so that a folder saved again still has them.

    Raises:
      CheckpointError: a report is there and damaged.
    """
    pictures = _copy_pictures(told.report, folder / PICTURES)
    scores = _scores(told.report)
    if scores:
        write_atomically(folder / SCORES, scores + "\n")
    blocks = [_front(config, told), _head(config, told)]
    blocks += [f"## Scores\n\n{scores}"] if scores else []
    blocks += ["\n\n".join(f"![{text}]({name})" for name, text in pictures.items())]
    blocks += [_use(config), _licence(told)]
    write_atomically(folder / CARD_FILE, "\n\n".join(block for block in blocks if block) + "\n")


def _front(config: ConfigDict, told: Told) -> str:
    """What the hub reads."""
    lines = ["---", "library_name: paella_jax"]
    if config.method in ("tokens", "stage_c"):
        lines.append("pipeline_tag: text-to-image")
    lines += [f"license: {told.licence}"] if told.licence else []
    return "\n".join([*lines, "tags: [jax, flax, paella_jax]", "---"])


def _head(config: ConfigDict, told: Told) -> str:
    kind = TITLES.get(config.method, f"run of method {config.method}")
    cell = config.get("cell")
    what = f" ({cell.network}, {cell.corruption} corruption)" if cell else ""
    preset = config.get("preset", "")
    decay = config.get("optim", {}).get("ema_decay", 0.0)
    trained = "converted, or made of other runs"
    if told.step:
        kind_of = f"moving average (decay {decay:g})" if decay else "last weights"
        trained = f"{kind_of} after {told.step:,} training steps"
    data = config.get("data", {})
    source, size = data.get("source", ""), data.get("image_size", "")
    rows = {
        "weights": trained,
        "parameters": f"{told.parameters:,}",
        "stored as": told.dtype,
        "preset": preset and f"`{preset}`",
        "images": told.enlarged and "enlarged by a second run, in `super_resolution`",
        "trained on": source and f"`{source}`, {size} pixels",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value)
    return f"# {told.title}: {kind}{what}\n\n| | |\n|---|---|\n{table}"


def _scores(report: Path) -> str:
    """The tables that `evaluate` wrote into a run's folder; empty where it did not."""
    found = []
    if (report / "report.json").is_file():
        found.append(_of_shapes(_read(report / "report.json")))
    if (report / SCORES).is_file():
        found.append((report / SCORES).read_text().strip())
    return "\n\n".join(found)


def _read(file: Path) -> dict[str, Any]:
    try:
        return parse_object(file.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged ({error}); evaluate the run again") from error


def _of_shapes(report: Mapping[str, Any]) -> str:
    """Shares of images that show what was asked for, by split."""
    scores = report.get("scores", {})
    if not scores:
        return ""
    columns = [name for name in NUMBERS if all(name in own for own in scores.values())]
    lines = [f"| split | images | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for split, own in scores.items():
        shown = " | ".join(f"{own[name]:.3f}" for name in columns)
        lines.append(f"| {split} | {own.get('images', '')} | {shown} |")
    about = "Shares of the images in which an exact reader finds what the caption says."
    return f"{about}\n\n" + "\n".join(lines)


def _copy_pictures(report: Path, folder: Path) -> dict[str, str]:
    """Copies what there is; place below the card -> what it shows."""
    own = report / PICTURES if (report / PICTURES).is_dir() else report  # of a folder shared before
    found = [(own / name, text) for name, text in SHOWN.items()]
    grids = sorted((report / "samples").glob("*.png"))
    if grids and not (report / "samples.png").is_file():
        found.insert(0, (grids[-1], "Images drawn at the end of training"))
    shown = {}
    for file, text in found:
        if file.is_file() and file.stat().st_size <= LARGEST:
            folder.mkdir(exist_ok=True)
            shutil.copyfile(file, folder / file.name)
            shown[f"{PICTURES}/{file.name}"] = text
    return shown


def _use(config: ConfigDict) -> str:
    """How to draw with it, or what else it is for."""
    lines: Sequence[str] = [
        "import paella_jax",
        "",
        'pipe = paella_jax.load("FOLDER or OWNER/NAME")',
    ]
    if config.method in ("tokens", "stage_c"):
        lines = [*lines, 'images = pipe("PROMPT", seed=0)']
    elif config.method == "stage_b":
        lines = [*lines, "images = pipe.reconstruct(IMAGES).images"]
    elif config.method == "vqgan":
        lines = ["python -m paella_jax.train --config paella:tiny --workdir RUN "
                 "--config.tokenizer=FOLDER"]  # fmt: skip
    else:
        lines = ["# a run folder: what paella_jax takes as RUN"]
    return (
        "## Use\n\n```\n" + "\n".join(lines) + "\n```\n\nTrain on with `--config.init_from=FOLDER`."
    )


def _licence(told: Told) -> str:
    text = f"`{told.licence}`." if told.licence else "To be filled in by whoever shares it."
    return f"## Licence\n\n{text}"
