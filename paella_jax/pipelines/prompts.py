"""What to draw, as a user says it, and its way to the arrays the networks take."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from paella_jax.encoders.byte_tokenizer import (
    ByteTokenizer,
    PromptError,
    bucket_length,
    check_prompts,
)
from paella_jax.encoders.text import refusing
from paella_jax.families.token_networks import TokenNetworks
from paella_jax.files.finite import is_finite
from paella_jax.images.read import ImageLike, read_image
from paella_jax.models.conditioning import ConditionInputs
from paella_jax.pipelines.base import background_of
from paella_jax.pipelines.records import is_whole

EmbedImages = Callable[[np.ndarray], np.ndarray]
EmbedImage = Callable[[ImageLike], np.ndarray]


@dataclass(frozen=True)
class Condition:
    """One thing to draw. At least one field says something.

    Attributes:
      prompt: text.
      images: images whose content to vary (files, PIL images, arrays [height, width, 3]), or image
        embeddings [width] (e.g. of the CLIP prior). Several are mixed.
      label: class, for runs trained with labels.
      segmentation: int [height, width] in pixels or [h, w] in tokens, for runs trained with maps;
        -1 leaves a position open.
      emphasis: phrase of the prompt -> factor of the attention it gets.
    """

    prompt: str = ""
    images: Sequence[ImageLike] = ()
    label: int | None = None
    segmentation: np.ndarray | None = None
    emphasis: Mapping[str, float] = field(default_factory=dict)

    @property
    def has_text_only(self) -> bool:
        """Whether nothing but the prompt is given."""
        return not len(self.images) and self.label is None and self.segmentation is None


def as_conditions(prompt: Any, max_length: int) -> list[list[Condition]]:
    """Whatever a caller gives as prompt -> one list of mixed conditions per image.

    A text or a `Condition` is one image, a list of them several; a list inside the list mixes its
    conditions in one image. Every image mixes the same number.

    Raises:
      PromptError: an empty or over-long text, another type, or unequal numbers to mix.
    """
    asked = [prompt] if isinstance(prompt, str | Condition) else prompt
    if not isinstance(asked, list | tuple):
        raise PromptError(
            f"prompt 0 is of type {type(prompt).__name__}; give a text, a Condition or a list"
        )
    if not asked:
        raise PromptError("there are no prompts; give at least one")
    rows: list[list[Condition]] = []
    for number, mixed in enumerate(asked):
        parts = mixed if isinstance(mixed, list | tuple) else [mixed]
        rows.append([_checked(part, number, max_length) for part in parts])
    counts = {len(row) for row in rows}
    if len(counts) > 1 or 0 in counts:
        raise PromptError(f"each picture must mix the same number of conditions, got {counts}")
    return rows


def _checked(part: Any, number: int, max_length: int) -> Condition:
    condition = part if isinstance(part, Condition) else Condition(prompt=part)
    _check_types(condition)
    try:
        check_prompts([condition.prompt], max_length, allow_empty=not condition.has_text_only)
    except PromptError as error:
        raise PromptError(str(error).replace("prompt 0", f"prompt {number}")) from None
    return condition


def _check_types(condition: Condition) -> None:
    """Raises PromptError for fields of other types than a `Condition` has."""
    images, label, emphasis = condition.images, condition.label, condition.emphasis
    kind = type(images).__name__
    one = isinstance(images, np.ndarray) and images.ndim not in (2, 4)  # a vector, or one image
    if one or not isinstance(images, list | tuple | np.ndarray):
        raise PromptError(f"images of a Condition are of type {kind}; give a list of images")
    if label is not None and not is_whole(label):
        raise PromptError(f"label {label!r} must be a whole number, or None")
    if not isinstance(emphasis, Mapping):
        kind = type(emphasis).__name__
        raise PromptError(f"emphasis is of type {kind}; give a mapping, {{'red circle': 1.5}}")


def build_inputs(
    networks: TokenNetworks,
    config: ConfigDict,
    conditions: Sequence[Condition],
    grid: tuple[int, int],
    embed_images: EmbedImages,
) -> ConditionInputs:
    """One condition per image -> numpy arrays.

    Raises:
      PromptError, ValueError: a condition that the run was not trained with, or of a wrong shape.
    """
    ids, mask = tokenize(networks, config, [c.prompt for c in conditions])
    weights = None
    if any(c.emphasis for c in conditions):
        takes_weights = "text_weights" in networks.takes
        if networks.text_tokenizer is None or ids is None or not takes_weights:
            raise ValueError("emphasis needs cell.network=unet with a T5; this run has another")
        # Imported here, as no other prompt needs it.
        from paella_jax.encoders.emphasis import text_weights

        each = [
            text_weights(networks.text_tokenizer, c.prompt, c.emphasis, ids.shape[1])
            for c in conditions
        ]
        weights = np.stack(each)
    read_and_embed = lambda image: embed_images(read_image(image, background_of(config))[None])[0]
    image_pooled, image_mask = _images(networks, conditions, read_and_embed)
    return ConditionInputs(
        text_ids=ids,
        text_mask=mask,
        text_weights=weights,
        clip_ids=clip_ids(networks, [c.prompt for c in conditions]),
        image_pooled=image_pooled,
        image_mask=image_mask,
        labels=_labels(networks, conditions),
        segmentation=_segmentation(networks, conditions, grid),
    )


def tokenize(
    networks: TokenNetworks, config: ConfigDict, texts: Sequence[str]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Ids and mask, padded to the training length where they fit, so that one shape serves.

    None where CLIP's is the only text encoder.
    """
    tokenizer = networks.text_tokenizer
    if tokenizer is None:
        return None, None
    _, mask = tokenizer(texts)
    longest = int(mask.sum(1).max())
    usual = min(config.text.pad_to, tokenizer.max_length)
    pad_to = usual if longest <= usual else bucket_length(longest, tokenizer.max_length)
    return tokenizer(texts, pad_to)


def padded_lengths(
    networks: TokenNetworks, config: ConfigDict, texts: Sequence[str]
) -> tuple[int, ...]:
    """The lengths that texts, each alone, are padded to; 0 of CLIP's alone.

    Raises:
      PromptError: a text is too long.
    """
    check_prompts(texts, text_limit(networks), allow_empty=True)
    clip_ids(networks, texts)
    ids = [tokenize(networks, config, [text])[0] for text in texts]
    return tuple(0 if x is None else x.shape[1] for x in ids)


def text_limit(networks: TokenNetworks) -> int:
    """Bytes of the longest prompt. Other tokenizers count their own units, when they are called."""
    tokenizer = networks.text_tokenizer
    return tokenizer.max_length if isinstance(tokenizer, ByteTokenizer) else sys.maxsize


def clip_ids(networks: TokenNetworks, texts: Sequence[str]) -> np.ndarray | None:
    """CLIP's ids [count, 77] where the run has a CLIP text tower.

    Beside another encoder, which reads all of a text, CLIP's is cut.

    Raises:
      PromptError: a text is too long, where CLIP alone reads it.
    """
    tokenizer = networks.clip_tokenizer
    if tokenizer is None:
        return None
    alone = networks.text_tokenizer is None
    return (refusing(tokenizer) if alone else tokenizer.truncating())(texts, 77)[0]


def _images(
    networks: TokenNetworks, conditions: Sequence[Condition], embed: EmbedImage
) -> tuple[np.ndarray | None, np.ndarray | None]:
    most = max(len(c.images) for c in conditions)
    if most == 0:
        return None, None
    if networks.image_encoder is None:
        raise ValueError(
            "this run was not trained with image conditions (image_encoder.kind is none)"
        )
    width = networks.image_encoder.width
    pooled = np.zeros((len(conditions), most, width), np.float32)
    mask = np.zeros((len(conditions), most), bool)
    for row, condition in enumerate(conditions):
        for column, image in enumerate(condition.images):
            pooled[row, column] = _embedding(image, width, embed)
            mask[row, column] = True
    return pooled, mask


def _embedding(image: ImageLike, width: int, embed: EmbedImage) -> np.ndarray:
    if isinstance(image, np.ndarray) and image.ndim == 1:
        if image.shape != (width,):
            raise ValueError(
                f"an image embedding has shape {image.shape}, this run needs [{width}]"
            )
        if not is_finite(image):
            raise ValueError("an image embedding holds NaN or infinity; make it anew")
        return image.astype(np.float32)
    return embed(image)


def _labels(networks: TokenNetworks, conditions: Sequence[Condition]) -> np.ndarray | None:
    if all(c.label is None for c in conditions):
        return None
    count = networks.num_classes
    for label in (c.label for c in conditions if c.label is not None):
        if not 0 <= label < count:
            known = f"0 to {count - 1}" if count else "none: this run was not trained with labels"
            raise ValueError(f"label {label} does not exist; labels are {known}")
    return np.array([-1 if c.label is None else c.label for c in conditions], np.int32)


def _segmentation(
    networks: TokenNetworks, conditions: Sequence[Condition], grid: tuple[int, int]
) -> np.ndarray | None:
    if all(c.segmentation is None for c in conditions):
        return None
    count = networks.num_segments
    pixels = networks.vqgan.downsampling
    if not count:
        raise ValueError("this run was not trained with segmentation maps (model.num_segments=0)")
    # Imported here: it comes with the embedded data, which no other condition needs.
    from paella_jax.data.shapes_maps import at_tokens

    maps = np.full((len(conditions), *grid), -1, np.int32)
    for row, condition in enumerate(conditions):
        if condition.segmentation is None:
            continue
        given = np.asarray(condition.segmentation)
        full = (grid[0] * pixels, grid[1] * pixels)
        if given.shape not in (grid, full):
            raise ValueError(
                f"a segmentation map has shape {given.shape}, the picture {full} pixels or {grid} "
                "tokens; resize the map"
            )
        if given.dtype.kind == "f" and (given != np.floor(given)).any():
            raise ValueError("a segmentation map holds fractions; classes are whole numbers")
        if given.min() < -1 or given.max() >= count:  # before numbers of 64 bits are cut to 32
            raise ValueError(
                f"a segmentation map holds {given.min()} to {given.max()}; classes are 0 to "
                f"{count - 1}, and -1 for open"
            )
        maps[row] = given if given.shape == grid else at_tokens(given, pixels)
    return maps
