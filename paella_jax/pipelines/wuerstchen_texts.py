"""The texts of a Würstchen: what its stages' encoders would cut is refused, as other runs do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paella_jax.encoders.byte_tokenizer import PromptError, check_prompts
from paella_jax.families.text_side import TextSide
from paella_jax.pipelines.base import Job

LONGEST_TEXT = 10_000  # bytes; encoders count their own units


def checked_texts(
    sides: Mapping[str, TextSide], texts: Any, allow_empty: bool = False
) -> list[str]:
    """One text or several -> a list of them.

    Args:
      sides: what reads the texts, by its name in messages.
      texts: as a user gave them.
      allow_empty: whether "" is one.

    Raises:
      PromptError: what is no text, or longer than an encoder reads.
    """
    if not isinstance(texts, str | list | tuple):
        raise PromptError(
            f"prompt 0 is of type {type(texts).__name__}; give a text or a list of texts"
        )
    found = check_prompts(texts, LONGEST_TEXT, allow_empty=allow_empty)
    for name, side in sides.items():
        try:
            side.check(found)
        except PromptError as error:
            raise PromptError(f"{error} ({name})") from None
    return found


def negative_texts(sides: Mapping[str, TextSide], job: Job, count: int) -> list[str]:
    """A negative prompt for each of `count` prompts. Raises PromptError, ValueError likewise."""
    texts = job.negatives(count, LONGEST_TEXT)
    try:
        return checked_texts(sides, texts, allow_empty=True)
    except PromptError as error:
        raise PromptError(f"negative_prompt: {error}") from None


def cut_text(sides: Mapping[str, TextSide], text: str) -> str:
    """The part of a text that all of them read."""
    for side in sides.values():
        text = side.cut(text)
    return text
