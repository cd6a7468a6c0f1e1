"""What comes from outside: JSON of any depth, paths, and texts as a terminal may show them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

# Control characters (of the terminal too), half surrogate pairs, line and paragraph separators, and
# those that turn the direction of reading. A message's own further lines begin with two blanks.
HIDDEN = re.compile(
    "\n(?!  )|[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
SHOWN = 8  # names of a long list


def escaped(text: object) -> str:
    """A text that changes nothing of a terminal but what it shows; shown twice it is the same."""
    return HIDDEN.sub(_escape, str(text))


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return SHORT.get(found[0]) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def escaped_lines(text: object) -> str:
    """As `escaped`, of a text that has lines of its own."""
    return "\n".join(map(escaped, str(text).split("\n")))


def say(text: object, to: TextIO | None = None) -> None:
    """Prints one line at once, with names from outside in it; to stdout unless said."""
    print(escaped(text), file=to, flush=True)


def expanded(path: str | Path) -> Path:
    """A path that a caller gives: `~` is the home folder, as a shell would have it."""
    return Path(os.path.expanduser(path))


def listed(names: Iterable[object], most: int = SHOWN) -> str:
    """Some names of a list, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shortened(name) for name in names[:most]) + more


def shortened(text: object, most: int = 100) -> str:
    """The beginning of a text in one line."""
    text = escaped(text).replace("\n", "\\n")
    return text if len(text) <= most else f"{text[:most]}..."


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
      ValueError: it is none, is nested too deeply, or has a number of too many digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: {error.reason} at byte {error.start}") from None


def parse_object(text: str | bytes) -> dict[str, Any]:
    """As `parse_json`; ValueError too where the value is no object."""
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value
