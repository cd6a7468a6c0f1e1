"""Kinds of config fields, and what is wrong with a value of one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

MANY = 2**20  # of widths, batches and images
LONG = 10**9  # of steps and samples
WHOLE, NUMBER, TRUTH, TEXT = "whole number", "number", "True or False", "text"
STAGES = "rows (kind, expansion, kernel, stride, inputs, outputs, repeats), or ()"
STAGE_LENGTH = 7


class Rows(NamedTuple):
    """Which rows of values a field may be.

    Attributes:
      words: after what one value may be.
      forms: the lengths from outside to inside, ANY or SOME (at least one) where they are free; the
        empty form is one value.
    """

    words: str
    forms: frozenset[tuple[int, ...]]


ANY, SOME, PAIR = 0, -1, 2
ONE = Rows("", frozenset({()}))
SEVERAL = Rows(", or several such in (...)", frozenset({(SOME,)}))
SEVERAL_OR_NONE = Rows(", or several such in (...), or ()", frozenset({(ANY,)}))
ONE_OR_SEVERAL = Rows(", or several such in (...)", frozenset({(), (SOME,)}))
ONE_OR_PAIR = Rows(", or a pair of such in (...)", frozenset({(), (PAIR,)}))
ONE_PAIR = Rows(", a pair of such in (...)", frozenset({(PAIR,)}))
PAIRS = Rows(", in pairs as ((1, 2), (3, 4)), or ()", frozenset({(ANY, PAIR)}))
ONES_OR_PAIRS = Rows(", several, or pairs, as (1, (2, 3))", frozenset({(ANY,), (ANY, PAIR)}))


class Field(NamedTuple):
    """A field of a config.

    Attributes:
      kind: WHOLE, NUMBER, TRUTH, TEXT, or STAGES of models/compressor.py.
      meaning: with its unit.
      least: smallest number, itself allowed unless `above`.
      most: largest number.
      above: whether a number must be more than `least`.
      below: whether a number must be less than `most`.
      choices: all texts that are allowed; empty for any.
      rows: whether it is one such value, or which rows of them.
      none: what None means; empty where only presets that leave a field open may hold it.
      is_path: whether a text is a file or folder, where `~` is the home folder.
      is_pattern: whether a text is a regular expression.
    """

    kind: str
    meaning: str
    least: float = 0
    most: float = math.inf
    above: bool = False
    below: bool = False
    choices: tuple[str, ...] = ()
    rows: Rows = ONE
    none: str = ""
    is_path: bool = False
    is_pattern: bool = False

    @property
    def range(self) -> str:
        """What its values may be, in words."""
        if self.kind in (TRUTH, STAGES):
            words = self.kind
        elif self.kind == TEXT:
            words = f"one of {', '.join(self.choices)}" if self.choices else self._text
        else:
            low = "above" if self.above else "at least"
            high = "below" if self.below else "at most"
            words = f"{low} {_shown(self.least)} and {high} {_shown(self.most)}"
            words = f"a whole number, {words}" if self.kind == WHOLE else words
        return words + self.rows.words + (f", or None ({self.none})" if self.none else "")

    @property
    def _text(self) -> str:
        known = ((self.is_path, "a path"), (self.is_pattern, "a regular expression"))
        return next((words for is_so, words in known if is_so), "a text")


def wrong(field: Field, value: Any) -> bool:
    """Whether a value is none of the field's. None is for the caller to judge."""
    if field.kind == STAGES:
        return not (isinstance(value, tuple | list) and all(map(_is_stage, value)))
    return not _fits(field, value, field.rows.forms)


def _is_stage(row: Any) -> bool:
    if not isinstance(row, tuple | list) or len(row) != STAGE_LENGTH:
        return False
    kind, *sizes = row
    return isinstance(kind, str) and not any(wrong(whole(1, ""), size) for size in sizes)


def _fits(field: Field, value: Any, forms: Iterable[tuple[int, ...]]) -> bool:
    """Whether a value, or a row of them, is of one of the forms, and each value in its range."""
    if not isinstance(value, tuple | list):
        return () in forms and not _is_wrong_value(field, value)
    inner = [form[1:] for form in forms if form and _is_length(len(value), form[0])]
    return bool(inner) and all(_fits(field, part, inner) for part in value)


def _is_length(count: int, wanted: int) -> bool:
    return wanted in (ANY, count) or (wanted == SOME and count > 0)


def _is_wrong_value(field: Field, value: Any) -> bool:
    if field.kind == TRUTH:
        return not isinstance(value, bool)
    if field.kind == TEXT:
        return not isinstance(value, str) or _is_wrong_text(field, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    if field.kind == WHOLE and not isinstance(value, int):
        return True
    low = value > field.least if field.above else value >= field.least
    high = value < field.most if field.below else value <= field.most
    return not (low and high)  # NaN is neither


def _is_wrong_text(field: Field, value: str) -> bool:
    if field.choices and value not in field.choices:
        return True
    if field.is_pattern:
        try:
            re.compile(value)
        except (re.error, RecursionError, OverflowError):
            return True
    return "\0" in value


def _shown(number: float) -> str:
    return f"{number:,}".replace(",", " ") if isinstance(number, int) else f"{number:g}"


# --- makers of fields, as the tables read


def whole(least: int, meaning: str, most: int = MANY, **more: Any) -> Field:
    """A whole number from `least` on."""
    return Field(WHOLE, meaning, least, most, **more)


def number(least: float, meaning: str, most: float = 1e6, **more: Any) -> Field:
    """A finite number from `least` on."""
    return Field(NUMBER, meaning, least, most, **more)


def share(meaning: str, **more: Any) -> Field:
    """A number from 0 to 1."""
    return Field(NUMBER, meaning, 0, 1, **more)


def fraction(meaning: str, **more: Any) -> Field:
    """A number from 0 on, below 1."""
    return Field(NUMBER, meaning, 0, 1, below=True, **more)


def truth(meaning: str, **more: Any) -> Field:
    """True or False."""
    return Field(TRUTH, meaning, **more)


def text(meaning: str, choices: Iterable[str] = (), **more: Any) -> Field:
    """A text, or one of a few."""
    return Field(TEXT, meaning, choices=tuple(choices), **more)


def path(meaning: str) -> Field:
    """A file or folder; empty for none."""
    return Field(TEXT, meaning, is_path=True)


def pattern(meaning: str) -> Field:
    """A regular expression."""
    return Field(TEXT, meaning, is_pattern=True)
