"""Prompts after their text encoders: made once, drawn with as often as one likes."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

import jax
import numpy as np

from paella_jax.files.finite import describe_not_finite
from paella_jax.models.conditioning import Conditioning


@dataclass(frozen=True)
class PromptEmbeds:
    """What a pipeline's text encoders made of prompts and negative prompts.

    Attributes:
      prompts: the texts.
      negative_prompts: what each is steered away from.
      parts: by the name of each run that a pipeline draws with: what its network is conditioned on,
        and what guidance leads away from; numpy arrays with the prompts in front.
      made_for: by the same names, the encoders that they come from (run_digests.py).
    """

    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    parts: Mapping[str, tuple[Conditioning, Conditioning]]
    made_for: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: SupportsIndex | slice) -> PromptEmbeds:
        """Some of them; of a number the one alone."""
        if not isinstance(index, slice):
            place = range(len(self))[operator.index(index)]
            index = slice(place, place + 1)
        return PromptEmbeds(
            self.prompts[index],
            self.negative_prompts[index],
            jax.tree.map(lambda x: x[index], dict(self.parts)),
            self.made_for,
        )

    def __repr__(self) -> str:
        texts = ", ".join(repr(text) for text in self.prompts[:3])
        more = "" if len(self) <= 3 else ", ..."
        return f"PromptEmbeds of {len(self)} prompts: {texts}{more}"

    def part(self, name: str) -> PromptEmbeds:
        """Those of one run alone."""
        return replace(self, parts={"": self.parts[name]}, made_for={"": self.made_for[name]})

    def repeat(self, copies: int) -> PromptEmbeds:
        """Each of them `copies` times, one behind the other."""
        spread = lambda texts: tuple(text for text in texts for _ in range(copies))
        parts = jax.tree.map(lambda x: np.repeat(x, copies, axis=0), dict(self.parts))
        made_for = self.made_for
        return PromptEmbeds(spread(self.prompts), spread(self.negative_prompts), parts, made_for)

    def towards(self, other: PromptEmbeds, fraction: float) -> PromptEmbeds:
        """The prompts on the way to others: 0 is these, 1 the others.

        Vectors are interpolated linearly. A position that one of the two does not have, as the end
        of a longer text, is there on the whole way, with the vector of the one that has it.

        Raises:
          ValueError: others in number, length or encoder.
        """
        mine, theirs = (jax.tree.map(np.shape, dict(x.parts)) for x in (self, other))
        if self.made_for != other.made_for or mine != theirs:
            raise ValueError(
                "prompt embeddings of another number, of another padded length or of another "
                "encoder cannot be mixed"
            )

        if fraction in (0.0, 1.0):
            return other if fraction else self
        way = lambda a, b: (_between(a[0], b[0], fraction), _between(a[1], b[1], fraction))
        parts = {name: way(both, other.parts[name]) for name, both in self.parts.items()}
        told = lambda a, b: tuple(_told(x, y, fraction) for x, y in zip(a, b, strict=True))
        prompts = told(self.prompts, other.prompts)
        negatives = told(self.negative_prompts, other.negative_prompts)
        return PromptEmbeds(prompts, negatives, parts, self.made_for)

    def and_then(self, *others: PromptEmbeds) -> PromptEmbeds:
        """These and further ones of the same form, one behind the other.

        Raises:
          ValueError: others of another padded length or encoder.
        """
        every = (self, *others)
        inner = lambda one: jax.tree.map(lambda x: np.shape(x)[1:], dict(one.parts))
        if any(x.made_for != self.made_for or inner(x) != inner(self) for x in others):
            raise ValueError(
                "prompt embeddings of another padded length or of another encoder cannot be put "
                "one behind the other"
            )
        join = lambda *arrays: np.concatenate(arrays)
        return PromptEmbeds(
            tuple(text for one in every for text in one.prompts),
            tuple(text for one in every for text in one.negative_prompts),
            jax.tree.map(join, *(dict(one.parts) for one in every)),
            self.made_for,
        )


# The vectors of a condition, and which of their positions are real.
MASKS = {"text": "text_mask", "text_values": "text_mask", "image_pooled": "image_mask"}


def _between(first: Conditioning, second: Conditioning, fraction: float) -> Conditioning:
    """Two conditions of the same form as one, `fraction` of the way from one to the other."""

    def between(a: Any, b: Any) -> Any:
        if not np.issubdtype(a.dtype, np.floating):
            return a | b if a.dtype == bool else a
        return (a * (1.0 - fraction) + b * fraction).astype(a.dtype)

    mixed = jax.tree.map(between, first, second)
    own: dict[str, Any] = {}
    for name, mask in MASKS.items():
        a, b = (getattr(one, mask) for one in (first, second))
        vectors = getattr(mixed, name)
        if vectors is not None and a is not None:
            vectors = np.where((a & ~b)[..., None], getattr(first, name), vectors)
            own[name] = np.where((b & ~a)[..., None], getattr(second, name), vectors)
    return replace(mixed, **own)


def _told(first: str, second: str, fraction: float) -> str:
    """The text of a prompt on the way from one to another, for records."""
    if first == second:
        return first
    return f"{first} ({1 - fraction:.4g}) + {second} ({fraction:.4g})"


def check_embeds(embeds: PromptEmbeds, made_for: str, name: str = "") -> PromptEmbeds:
    """Raises ValueError for embeddings of another kind of run, not finite, or without a part."""
    if not len(embeds):
        raise ValueError("prompt_embeds hold no prompts; give at least one")
    if embeds.made_for.get(name) != made_for:
        raise ValueError(
            "prompt_embeds come from another run's text encoders; make them with this pipeline's "
            "embed()"
        )
    leaves = jax.tree_util.tree_leaves_with_path(embeds.parts[name])
    arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}
    if named := describe_not_finite(arrays):
        raise ValueError(f"prompt_embeds hold NaN or infinity in {named}; make them anew")
    return embeds
