"""Which captioned images a run is scored on: its own, or others that are given in its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from paella_jax.config import IMPLIED, with_overrides
from paella_jax.data.places import field_at
from paella_jax.outside import parse_object
from paella_jax.reports.gathered import ScoreError
from paella_jax.runs.folder import BEFORE, DATA_FILE

PLACES = tuple(name.removeprefix("data.") for name in IMPLIED)
# What a run says of its own images alone ...
OF_THE_PLACE: dict[str, Any] = {
    **dict.fromkeys(PLACES, ""),
    "validation_folder": "",
    "validation_files": "",
    "validation_split": "",
    "training_split": "train",
    "tfds_folder": "",
    "image_field": "",
    "caption_field": "",
}
# ... and what older runs lack.
LACKING = {n.removeprefix("data."): v for n, v in BEFORE.items() if n.startswith("data.")}
LACKING |= OF_THE_PLACE | {"captions": True, "buckets": ()}
PREFIX = "--config.data."


def scored_data(
    config: ConfigDict, place: str = "", overrides: Sequence[str] = (), group_field: str = ""
) -> ConfigDict:
    """A run's data block with the images that it is scored on.

    Args:
      config: of the run.
      place: of other images; whatever `field_at` knows. Empty for the run's own.
      overrides: further settings, as "--config.data.FIELD=VALUE".
      group_field: of the records, that says what an image is of; empty for none.

    Raises:
      ScoreError: nothing of the kind is at the place, or settings that are not of the data, or
        both name images.
      ConfigError: there is no such field, or a value is of another type.
    """
    data = config.data.copy_and_resolve_references()
    named = [_place_of(override) for override in overrides]
    named = [name for name in named if name]
    if place:
        named.append(_field_at(place))
        overrides = [f"{PREFIX}{named[-1]}={place}", *overrides]
    if len(named) > 1:
        raise ScoreError(f"data is given twice, by {' and '.join(named)}; leave one out")
    with data.unlocked():
        data.update({n: value for n, value in LACKING.items() if n not in data})
        data.encoded = ""  # stored arrays are no images; those that they were made of are read
        data.group_field = group_field
        if named:
            data.update({**OF_THE_PLACE, "source": IMPLIED[f"data.{named[0]}"]})
    fields = [override.removeprefix("--config.") for override in overrides]
    return with_overrides(ConfigDict({"data": data}), fields).data


def is_own(place: str, overrides: Sequence[str]) -> bool:
    """Whether the arguments of `scored_data` leave a run its own images."""
    return not place and not any(map(_place_of, overrides))


def note_on_other_data(workdir: Path, length: int) -> str:
    """What to tell where a run's own data is not what it was trained on; empty where it is.

    Which samples are held back depends on all of them: one more image or another split, and some
    that were trained on are scored as if they were new.

    Args:
      workdir: of the run, whose `data.json` says how many samples it was trained on; one without
        that file passes.
      length: of the training samples that its data has now.
    """
    file = workdir / DATA_FILE
    try:
        before = int(parse_object(file.read_bytes())["samples"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{file} cannot be read ({error}): the held-back images may have been trained on."
    if before == length:
        return ""
    return (
        f"The run was trained on {before} samples, its data has {length} for training now: the "
        "held-back images may have been trained on. Give the data as it was, or images that the "
        "run never saw (--data PLACE)."
    )


def _place_of(override: str) -> str:
    """The field of an override, where it names images."""
    if not override.startswith(PREFIX):
        raise ScoreError(
            f"{override!r}: a run is scored as it was trained; only its data can be another, by "
            f"--data or {PREFIX}FIELD=VALUE"
        )
    name, _, value = override.removeprefix(PREFIX).partition("=")
    return name if name in PLACES and value else ""


def _field_at(place: str) -> str:
    try:
        return field_at("--data", place)
    except ValueError as error:
        raise ScoreError(str(error)) from error
