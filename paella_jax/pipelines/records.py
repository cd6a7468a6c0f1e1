"""What each image of a call was drawn from, in words and numbers that its PNG can hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paella_jax.outside import expanded
from paella_jax.pipelines.run_digests import content_digest

# Arguments of a token pipeline's `generate` that are no settings of its sampler.
NOT_OF_THE_SAMPLER = ("weights", "image_tokens", "known", "low_tokens", "resampling")
NAMED = ("num_steps", "guidance_scale", "temperature", "strength")  # settings of every call
_PLAIN = (str, int, float, tuple)  # options that a record can hold


def records(
    pipe: Any, asked: Mapping[str, Any], options: Mapping[str, Any], drawing: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A record for each image of a call.

    Args:
      pipe: what draws.
      asked: the arguments of the call that have names, checked.
      options: the further ones.
      drawing: what `generate` is given.
    """
    embeds, count = asked["prompt_embeds"], asked["num_images_per_prompt"]
    prompts = texts_of(asked["prompt"]) if embeds is None else list(embeds.prompts)
    negatives = asked["negative_prompt"] if embeds is None else list(embeds.negative_prompts)
    each = lambda x: list(x) if isinstance(x, list | tuple | np.ndarray) else [x]
    spread = lambda x: each(x) * len(prompts) if len(each(x)) == 1 else each(x)
    told = [{}] * len(prompts) if embeds is not None else _beside_texts(asked["prompt"], options)
    rows = zip(prompts, spread(negatives or ""), spread(asked["seed"]), told, strict=True)
    shared = {"run": pipe.run_name(), "settings": _settings(pipe, asked, options, drawing)}
    return [
        {"prompt": prompt, "negative_prompt": negative or "", "seed": int(seed), "number": number}
        | own
        | shared
        for prompt, negative, seed, own in rows
        for number in range(count)
    ]


def _settings(
    pipe: Any, asked: Mapping[str, Any], options: Mapping[str, Any], drawing: Mapping[str, Any]
) -> dict[str, Any]:
    """What the images share: the settings in use, and as they were given those that were."""
    own = {name: plain(x) for name, x in pipe.drawn_with(drawing).items()}
    given = {name: x for name, x in options.items() if name not in NOT_OF_THE_SAMPLER}
    given |= {name: asked[name] for name in NAMED}
    own |= {name: plain(x) for name, x in given.items() if isinstance(plain(x), _PLAIN)}
    return own | ({} if asked["mask"] is None else {"mask": True})


def plain(value: Any) -> Any:
    """Numbers of numpy as Python's, and what holds several of them as tuples, for JSON."""
    if isinstance(value, np.generic) or (hasattr(value, "tolist") and hasattr(value, "shape")):
        value = value.tolist()
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of Python or of numpy."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def texts_of(prompt: Any) -> list[str]:
    """A call's prompts as texts: of what is mixed, all of them."""
    rows = _rows(prompt)
    return [" + ".join(map(_text, row)) for row in rows]


def _rows(prompt: Any) -> list[list[Any]]:
    """A call's prompts, each a list of what it mixes."""
    listed = prompt if isinstance(prompt, list | tuple) else [prompt]
    return [list(one) if isinstance(one, list | tuple) else [one] for one in listed]


def _text(one: Any) -> str:
    return one if isinstance(one, str) else getattr(one, "prompt", str(one))


def _beside_texts(prompt: Any, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each prompt says beside its text: conditions, and the weights of those it mixes."""
    rows, weights = _rows(prompt), options.get("weights")
    told = []
    for number, row in enumerate(rows):
        own: dict[str, Any] = _said(row[0])
        if len(row) > 1:
            own = {"mixed": [_said(one, True) for one in row]}
        if len(row) > 1 and weights is not None:
            given = np.asarray(weights)
            mine = given if given.ndim == 1 else given[number % len(given)]
            own["weights"] = plain(mine) if mine.ndim == 1 else name_of(mine)  # of regions
        told.append(own)
    return told


def _said(condition: Any, with_text: bool = False) -> dict[str, Any]:
    """What a text or a `Condition` says; of images and maps their names or digests."""
    said: dict[str, Any] = {"prompt": _text(condition)} if with_text else {}
    if isinstance(condition, str):
        return said
    if condition.label is not None:
        said["label"] = plain(condition.label)
    if condition.emphasis:
        said["emphasis"] = {phrase: plain(x) for phrase, x in condition.emphasis.items()}
    if len(condition.images):
        said["images"] = [name_of(image) for image in condition.images]
    if condition.segmentation is not None:
        said["segmentation"] = name_of(condition.segmentation)
    return said


def name_of(given: Any) -> str:
    """A file's name and a digest of its bytes, or a digest of an array's or an image's."""
    if isinstance(given, str | Path):
        file = expanded(given)
        return f"{file.name} {content_digest(file)}"
    values = np.ascontiguousarray(np.asarray(given))
    return hashlib.blake2b(values.tobytes(), digest_size=8).hexdigest()
