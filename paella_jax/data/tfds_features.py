"""What a prepared data set's `features.json` names: TFDS imports it, so it is looked at before.

TFDS makes every feature of the class whose module and name the file gives, and imports the module
for it. A folder could so run code of its own; only TFDS's features are let through.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paella_jax.outside import parse_json, parse_object, shortened

FILE = "features.json"
OWN = "tensorflow_datasets.core.features."
# As protocol buffers in JSON have it, in both of their ways, and as TFDS wrote it before version 4.
KEYS = ("pythonClassName", "python_class_name", "type")
LARGEST = 2**24  # bytes; those of TFDS have some thousand


def check_features(folder: Path) -> None:
    """Looks at the `features.json` of a data set, of its versions, and of those of its kinds.

    Raises:
      ValueError: one is damaged, or names a class that is none of TFDS's features.
    """
    for file in (f for below in ("", "*/", "*/*/") for f in sorted(folder.glob(below + FILE))):
        try:
            if not file.is_file():
                raise ValueError("it is no file")
            if file.stat().st_size > LARGEST:
                raise ValueError(f"it has more than {LARGEST} bytes")
            named = list(_classes(parse_object(file.read_bytes())))
        except (ValueError, OSError) as error:
            raise ValueError(f"{file} cannot be read: {error}; prepare the data anew") from error
        other = next((name for name in named if not name.startswith(OWN)), None)
        if other is not None:
            raise ValueError(
                f"{file} names the class {shortened(other)!r}, whose module would be run; only "
                f"features of TFDS ({OWN}*) are read: prepare the data with those"
            )


def _classes(value: Any) -> Iterator[str]:
    """The names of all classes in a JSON value, also in JSON that is a text in it."""
    rest = [value]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            yield from (v for k in KEYS if isinstance(v := value.get(k), str))
            rest += value.values()
        elif isinstance(value, list):
            rest += value
        elif isinstance(value, str) and value.lstrip().startswith(("{", "[", '"')):
            rest.append(_parsed(value))  # features of JSON and of TFDS before 4 hold others so


def _parsed(text: str) -> Any:
    """The value of a JSON text; None for a text that is none."""
    try:
        return parse_json(text)
    except json.JSONDecodeError:
        return None
