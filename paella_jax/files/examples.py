"""Serialized `tf.train.Example` messages, read and written without TensorFlow.

An Example is a map from names to lists of bytes, of floats or of whole numbers. Only bytes are
read and written here: encoded images and texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

# Protocol buffers' kinds of fields.
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5
LAST_SHIFT = 63  # of a number's last byte: they have 64 bits at most, in sevens
Value = bytes | str | Sequence[bytes | str]


def encode_example(fields: Mapping[str, Value]) -> bytes:
    """A message of fields of bytes or texts, or of several of them."""
    entries = b""
    for name, value in sorted(fields.items()):
        values = [value] if isinstance(value, bytes | str) else value
        raw = [v.encode() if isinstance(v, str) else v for v in values]
        bytes_list = b"".join(_field(1, v) for v in raw)
        entries += _field(1, _field(1, name.encode()) + _field(2, _field(1, bytes_list)))
    return _field(1, entries)


def decode_example(message: bytes) -> dict[str, list[bytes] | None]:
    """Every field's values; None for those that hold numbers.

    Raises:
      ValueError: it is no Example, or a damaged one.
    """
    found: dict[str, list[bytes] | None] = {}
    try:
        for _, features in _fields(message, 1):
            for _, entry in _fields(features, 1):
                parts = dict(_fields(entry, 1, 2))
                found[parts[1].decode()] = _bytes_of(parts.get(2, b""))
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"no tf.train.Example, or a damaged one ({error})") from error
    if not found:
        raise ValueError("no tf.train.Example: it has no fields")
    return found


def _bytes_of(feature: bytes) -> list[bytes] | None:
    lists = dict(_fields(feature, 1, 2, 3))
    return [value for _, value in _fields(lists[1], 1)] if 1 in lists else None


def _fields(message: bytes, *wanted: int) -> Iterator[tuple[int, bytes]]:
    """The parts of a message with these numbers; raises IndexError where it is damaged."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            _, place = _varint(message, place)
            continue
        if kind not in (BYTES, EIGHT_BYTES, FOUR_BYTES):
            raise IndexError(f"field of kind {kind}")
        size = {EIGHT_BYTES: 8, FOUR_BYTES: 4}.get(kind, 0)
        if kind == BYTES:
            size, place = _varint(message, place)
        if place + size > len(message):
            raise IndexError("it ends too early")
        if kind == BYTES and number in wanted:
            yield number, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if shift > LAST_SHIFT:
            raise IndexError("a number of too many bytes")
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def _field(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | BYTES) + _encoded(len(content)) + content


def _encoded(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _encoded(rest) if rest else bytes([low])
