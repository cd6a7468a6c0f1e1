"""Which captioned images a run is scored on: its own, or others that are given in its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from paella_jax.config import IMPLIED, UserError, with_overrides
from paella_jax.data.build import make_source
from paella_jax.data.loader import Source
from paella_jax.data.places import field_at
from paella_jax.evaluation.distances import LEAST, check_counts
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
    """A run's data block with the images that it is scored on, all of them squares.

    Of images that the run never saw none has to be held back: all are scored, but where the place
    has splits of its own. A place that is the run's own keeps the run's split.

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
    named = [found for override in overrides if (found := _place_of(override))[1]]
    if place:
        named.append((_field_at(place), place))
        overrides = [f"{PREFIX}{named[-1][0]}={place}", *overrides]
    if len(named) > 1:
        twice = " and ".join(name for name, _ in named)
        raise ScoreError(f"data is given twice, by {twice}; leave one out")
    with data.unlocked():
        data.update({n: value for n, value in LACKING.items() if n not in data})
        data.encoded = ""  # stored arrays are no images; those that they were made of are read
        data.group_field = group_field
        for name, value in named:
            if not _is_same(data[name], value):
                source = IMPLIED[f"data.{name}"]
                data.update({**OF_THE_PLACE, "source": source, "split": 0.0})
    fields = [override.removeprefix("--config.") for override in overrides]
    data = with_overrides(ConfigDict({"data": data}), fields).data
    data.buckets = ()  # held-back images are squares; training images beside them have to be too
    return data


def is_own(config: ConfigDict, data: ConfigDict) -> bool:
    """Whether a data block of `scored_data` names the run's own images."""
    own = config.data
    return own.source == data.source and all(_is_same(own.get(n, ""), data[n]) for n in PLACES)


class OwnImages(NamedTuple):
    """A run's own images, where others are scored.

    Attributes:
      training: what it was trained on; None where that is not at hand.
      held: what was held back of it; likewise.
      why: why they are not at hand.
    """

    training: Source | None = None
    held: Source | None = None
    why: str = ""


def own_images(config: ConfigDict, group_field: str = "") -> OwnImages:
    """Opens a run's own images, which need not be where it was trained any more.

    Args:
      config: of the run.
      group_field: as in `scored_data`.
    """
    try:
        data = scored_data(config, group_field=group_field)
        training, held = (make_source(data, part, config.seed) for part in ("train", "validation"))
    except (OSError, ValueError, UserError) as error:
        return OwnImages(why=str(error))
    return OwnImages(training, held)


def check_enough(data: ConfigDict, held: int, wanted: int, seed: int, own: bool) -> None:
    """Raises ValueError where there are too few images for a distance.

    Args:
      data: block that was scored.
      held: images that it gives.
      wanted: images that were asked for.
      seed: of the data.
      own: whether they are the run's.
    """
    if held < LEAST <= wanted and data.split:
        whole = data.copy_and_resolve_references()
        whole.split = 0.0
        count = len(make_source(whole, "validation", seed))
        if count > held:  # else the place has splits of its own
            advice = "give images that the run never saw (--data PLACE)" if own else (
                "leave --config.data.split out, so that all are scored"
            )  # fmt: skip
            raise ScoreError(
                f"FID and KID need at least {LEAST} images, data.split {data.split:g} holds {held} "
                f"of {count} back: {advice}, or more images"
            )
    check_counts(min(wanted, held))


def note_on_other_data(workdir: Path, length: int, own: bool = True) -> str:
    """What to tell where a run's own data is not what it was trained on; empty where it is.

    Which samples are held back depends on all of them: one more image or another split, and some
    that were trained on are scored as if they were new.

    Args:
      workdir: of the run, whose `data.json` says how many samples it was trained on; one without
        that file passes.
      length: of the training samples that its data has now.
      own: whether it is scored on its own images; else copies are searched for among them.
    """
    harm = "the held-back images may have been trained on"
    if not own:
        harm = "near copies are not searched for among exactly what it was trained on"
    file = workdir / DATA_FILE
    try:
        before = int(parse_object(file.read_bytes())["samples"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{file} cannot be read ({error}): {harm}."
    if before == length:
        return ""
    return (
        f"The run was trained on {before} samples, its data has {length} for training now: {harm}. "
        "Give the data as it was" + ", or images that the run never saw (--data PLACE)." * own
    )


def _place_of(override: str) -> tuple[str, str]:
    """The field of an override and its value, where it names images; else nothing."""
    if not override.startswith(PREFIX):
        raise ScoreError(
            f"{override!r}: a run is scored as it was trained; only its data can be another, by "
            f"--data or {PREFIX}FIELD=VALUE"
        )
    name, _, value = override.removeprefix(PREFIX).partition("=")
    return (name, value) if name in PLACES else ("", "")


def _is_same(place: str, other: str) -> bool:
    """Whether two values of a field name one place, however they write it."""
    whole = lambda name: Path(name).expanduser().absolute().resolve()
    return place == other or bool(place and other and whole(place) == whole(other))


def _field_at(place: str) -> str:
    try:
        return field_at("--data", place)
    except ValueError as error:
        raise ScoreError(str(error)) from error
