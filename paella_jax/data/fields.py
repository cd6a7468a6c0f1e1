"""Which of a record's fields holds the image, and which its captions.

Fields are named values as other formats store them: bytes, texts, lists of them, or what a column
of images holds (`bytes` and `path`). A field in another one is named with a slash: captions/text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from paella_jax.data.captions import CAPTION_COLUMNS
from paella_jax.images.decode import Encoded
from paella_jax.outside import listed

MOST_SHOWN = 40  # fields in a message
IMAGE_FIELDS = ("image", "jpg", "jpeg", "png", "webp", "img", "image/encoded", "image_bytes")
CAPTION_FIELDS = (*CAPTION_COLUMNS, "captions/text", "txt", "prompt")


@dataclass(frozen=True)
class Wanted:
    """What is to be read of records.

    Attributes:
      image: the name of the image's field; empty for the first usual one.
      caption: that of the captions'.
      captions: whether there are any to read; else each is empty.
      lines: every line of a text is a caption of its own.
      group: the name of a field that says what an image is of; empty for none.
    """

    image: str = ""
    caption: str = ""
    captions: bool = True
    lines: bool = False
    group: str = ""


ALL = Wanted()


@dataclass(frozen=True)
class Fields:
    """How a record's fields are read.

    Attributes:
      image: the name of the field of the encoded image.
      captions: that of its captions; empty where none are read.
      lines: every line of a text is a caption.
      group: that of what it is of; empty where none is read.
    """

    image: str
    captions: str
    lines: bool = False
    group: str = ""

    @property
    def names(self) -> list[str]:
        """The fields that are read."""
        return [name for name in (self.image, self.captions, self.group) if name]

    def image_of(self, record: Mapping[str, Any], name: str) -> Encoded:
        """The record's image. Raises ValueError where there are no bytes."""
        value = find(record, self.image)
        if isinstance(value, Mapping):  # a column of images
            value = value.get("bytes")
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        if not isinstance(value, bytes | bytearray | memoryview) or not len(value):
            raise ValueError(f"no image: field {self.image!r} holds {_kind(value)}")
        return Encoded(name, bytes(value))

    def captions_of(self, record: Mapping[str, Any]) -> list[str]:
        """The record's captions, one empty one where none are read.

        Raises:
          ValueError: there are none.
        """
        if not self.captions:
            return [""]
        texts = texts_of(find(record, self.captions), self.lines)
        if not texts:
            raise ValueError(f"no caption: field {self.captions!r} is empty")
        return texts

    def group_of(self, record: Mapping[str, Any]) -> str:
        """What the record's image is of; empty where nothing is said or asked for."""
        return group_of(find(record, self.group)) if self.group else ""


def choose_fields(owner: str, names: Iterable[str], wanted: Wanted) -> Fields:
    """The fields to read, of those that records have.

    Args:
      owner: whose fields, for errors.
      names: those of a record, with inner ones.
      wanted: the names to choose, where they are given.

    Raises:
      ValueError: a wanted field is not there, or none of the usual ones.
    """
    known = list(names)
    advice = " (a tokenizer needs no captions: --config.data.captions=False)"

    def pick(setting: str, given: str, usual: tuple[str, ...]) -> str:
        found = [name for name in ((given,) if given else usual) if name in known]
        if found:
            return found[0]
        looked = repr(given) if given else f"none of {', '.join(usual)}"
        raise ValueError(
            f"{owner} has the fields {listed(known, MOST_SHOWN)}: {looked} is not among them; give "
            f"--config.data.{setting}=NAME" + advice * (setting == "caption_field")
        )

    image = pick("image_field", wanted.image, IMAGE_FIELDS)
    caption = pick("caption_field", wanted.caption, CAPTION_FIELDS) if wanted.captions else ""
    if wanted.group and wanted.group not in known:
        raise ValueError(
            f"{owner} has the fields {listed(known, MOST_SHOWN)}: {wanted.group!r}, which should "
            "say what images are of, is not among them"
        )
    return Fields(image, caption, wanted.lines, wanted.group)


def names_of(record: Mapping[str, Any]) -> list[str]:
    """The names of a record's fields, and of those inside of them."""
    found: list[str] = []
    for name, value in record.items():
        found.append(name)
        if isinstance(value, list | tuple) and value:
            value = value[0]
        if isinstance(value, Mapping):
            found += [f"{name}/{inner}" for inner in names_of(value)]
    return found


def find(record: Mapping[str, Any], name: str) -> Any:
    """A field's value, or None; "a/b" is a field of that name, or b of a, whose names may be so."""
    if name in record:
        return record[name]
    ends = (place for place, letter in enumerate(name) if letter == "/" and name[:place] in record)
    end = next(ends, len(name))
    value, inner = record.get(name[:end]), name[end + 1 :]
    if isinstance(value, list | tuple):
        return [find(part, inner) for part in value if isinstance(part, Mapping)]
    return find(value, inner) if isinstance(value, Mapping) else None


def texts_of(value: Any, lines: bool = False) -> list[str]:
    """The texts that a field holds, stripped; blank ones are left out.

    Raises:
      ValueError: bytes that are not UTF-8.
    """
    values = value if isinstance(value, list | tuple | np.ndarray) else [value]
    texts = []
    for text in values:
        if isinstance(text, bytes):
            try:
                text = text.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise ValueError(f"a caption is not UTF-8: {error.reason}") from None
        if isinstance(text, str):
            texts += text.splitlines() if lines else [text]
    return [text.strip() for text in texts if text.strip()]


def group_of(value: Any) -> str:
    """A field's single value as text, stripped; empty for none and for several."""
    if isinstance(value, list | tuple | np.ndarray):
        value = value[0] if np.size(value) == 1 else None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return "" if value is None else str(value).strip()


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bytes | bytearray | memoryview):
        return "no bytes"
    return f"{type(value).__name__}, not the bytes of an image file"
