"""What is looked at before a run's first step: the data's length, its captions', its tokenizer.

`data.json` of a run folder says how many samples the run began with: the order of a shuffle is that
of so many, and a resumed run must see what it would have seen.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from paella_jax.config import ConfigError
from paella_jax.data.encoded import EncodedSource
from paella_jax.data.encoded_format import TOLD
from paella_jax.outside import parse_object
from paella_jax.runs.digests import check_noted, write_noted
from paella_jax.runs.folder import DATA_FILE
from paella_jax.training.method import Method

REBUILT = 16  # images that a tokenizer is tried on
ENOUGH = 22.0  # dB
NAMED = 16  # samples whose names are compared between hosts
LONGEST = 4096  # ids that are counted of a caption


def check_length(workdir: Path, length: int, resumed: bool) -> None:
    """Compares the number of training samples with that of a resumed run; notes a new run's.

    Args:
      workdir: the run's folder; process 0 alone writes to it.
      length: of the training source.
      resumed: whether there is a checkpoint.

    Raises:
      ConfigError: the run was begun on another number of samples.
    """
    file = workdir / DATA_FILE
    if resumed:
        check_noted(workdir, lambda name: name == DATA_FILE and file.is_file())
    before = _noted(file) if resumed else None
    if before is None:  # runs older than the note begin it
        if jax.process_index() == 0:
            write_noted(workdir, DATA_FILE, json.dumps({"samples": length}))
    elif before != length:
        raise ConfigError(
            f"{workdir} was begun on {before} training samples, the data has {length} now, so that "
            "steps would not see what they would have seen. Give the data as it was; or start "
            f"another run from its weights (--config.init_from={workdir}); or delete {file} to go "
            "on with other data"
        )


def _noted(file: Path) -> int | None:
    try:
        return int(parse_object(file.read_bytes())["samples"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); delete it to go on") from error


def marks_of_data(source: Any) -> dict[str, Any]:
    """What tells one training source from another: how many samples, and the names of some."""
    told: dict[str, Any] = {"samples": len(source)}
    name = getattr(getattr(source, "records", None), "name", None)
    if callable(name) and len(source):
        places = np.linspace(0, len(source) - 1, NAMED).round().astype(int).tolist()
        names = [Path(name(place)).name for place in places]
        told["names"] = hashlib.blake2b(json.dumps(names).encode(), digest_size=8).hexdigest()
    return told


def told_of_data(method: Method) -> list[str]:
    """The lines below; of data that was encoded, those that `encode` kept in its manifest."""
    if isinstance(method.source, EncodedSource):
        told = method.source.manifest.data.get(TOLD, ())
        return [f"when it was encoded: {line}" for line in told]
    return [*describe_cut(method), *describe_rebuilt(method)]


def describe_cut(method: Method) -> list[str]:
    """A line for each tokenizer of a run that cuts captions of its data; none if nothing is cut.

    Only data that was looked at before training says (`some_captions` of its source).
    """
    captions = getattr(method.source, "some_captions", ())
    return _cut(captions, method.tokenizers) if captions else []


def describe_rebuilt(method: Method) -> list[str]:
    """A line on how well a frozen tokenizer gives a user's images back; none where there is none.

    It is the mean of the images' PSNRs, as in a table of scores: that of their mean error is lower.
    The embedded data, and arrays that were made beforehand, are not looked at.
    """
    if method.rebuild is None or not hasattr(method.source, "some_captions"):
        return []
    count = min(REBUILT, len(method.source))
    places = np.linspace(0, len(method.source) - 1, count).round().astype(int).tolist()
    images = [method.source[place]["image"] for place in places]
    size = images[0].shape  # with buckets, those of the first one's
    batch = np.stack([image for image in images if image.shape == size]).astype(np.float32) / 255.0
    rebuilt = np.asarray(jax.jit(method.rebuild)(method.frozen, batch), np.float32)
    errors = np.square(np.clip(rebuilt, 0.0, 1.0) - batch).mean((1, 2, 3), dtype=np.float64)
    psnr = float(np.mean(-10.0 * np.log10(np.maximum(errors, 1e-10))))
    line = (
        f"the frozen tokenizer gives {len(batch)} of these images back at {psnr:.1f} dB (the mean "
        "of their PSNRs)"
    )
    if psnr >= ENOUGH:
        return [line]
    return [
        f"{line}: nothing that is drawn can be sharper. Below {ENOUGH:g} dB train it further on "
        "them (--config.init_from of its own preset), or a new one (vqgan:folder32, vqgan:folder64)"
    ]


def _cut(captions: Sequence[str], tokenizers: Mapping[str, Any]) -> list[str]:
    lines = []
    for limits, tokenizer in tokenizers.items():
        whole = copy.copy(tokenizer)
        whole.max_length, whole.truncate = LONGEST, True
        lengths = [int(whole([caption])[1].sum()) for caption in captions]
        longer = sum(length > tokenizer.max_length for length in lengths)
        if longer:
            longest = max(lengths)
            more = " or more" if longest >= LONGEST else ""
            lines.append(
                f"captions: {longer} of {len(lengths)} looked at are longer than the "
                f"{tokenizer.max_length} ids that are read ({limits}) and are cut; the longest has "
                f"{longest}{more}"
            )
    return lines
