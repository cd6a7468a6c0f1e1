"""What a pickle would cost, told from its opcodes before any of it is done.

A pickle can hold a tuple that holds another one twice, and so on: a few bytes for a key whose hash
is never computed. The opcodes are gone through once, with the sizes of what they would make.
"""

from __future__ import annotations

import pickletools
from typing import Any

from paella_jax.files.tensors import ConversionError

LARGEST_KEY = 64  # parts of a tuple that is a key, those of its parts counted as often as they come
HUGE = 2**63  # whole numbers from here on can be made to collide in a table
MOST_HUGE = 8
TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE")  # the last as it may give one


def check_pickle(data: bytes) -> int:
    """How long the pickle at the start of `data` is.

    Raises:
      ConversionError: it asks for more work or memory than its bytes are worth.
      Exception: nearly any, where it is damaged.
    """
    stack, length, huge = _Stack(), 0, 0
    for opcode, argument, position in pickletools.genops(data):
        # The memo is a table as long as its largest index: a huge one would eat the memory.
        if opcode.name.endswith("PUT") and argument is not None and int(argument) > len(data):
            raise ConversionError(f"the pickle asks for {argument} memo entries; refused")
        huge += isinstance(argument, int) and abs(argument) >= HUGE
        if huge > MOST_HUGE:
            raise ConversionError("the pickle holds many numbers beyond 64 bits; refused")
        stack.run(opcode, argument)
        length = (position or 0) + 1
    return length


class _Stack:
    """The unpickler's stack with the size of each object in its place; None is a mark."""

    def __init__(self) -> None:
        self.sizes: list[int | None] = []
        self.memo: dict[int, int] = {}

    def run(self, opcode: Any, argument: Any) -> None:
        name: str = opcode.name
        if name == "MARK":
            self.sizes.append(None)
        elif name.endswith("PUT"):
            self.memo[int(argument)] = self._top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self._top()
        elif name.endswith("GET"):
            self.sizes.append(self.memo.get(int(argument), 1))
        elif name == "DUP":
            self.sizes.append(self._top())
        else:
            before = opcode.stack_before
            marked = pickletools.markobject in before
            count = before.index(pickletools.markobject) if marked else len(before)
            above = self._take_marked() if marked else []
            taken = self._take(count) + above
            _check_keys(name, taken, count)
            size = 1 + sum(taken) if name in TUPLES else 1
            self.sizes += [size] * len(opcode.stack_after)

    def _top(self) -> int:
        return (self.sizes[-1] if self.sizes else 1) or 1

    def _take(self, count: int) -> list[int]:
        taken = self.sizes[len(self.sizes) - count :] if count else []
        del self.sizes[len(self.sizes) - count :]
        return [size or 1 for size in taken]

    def _take_marked(self) -> list[int]:
        taken: list[int] = []
        while self.sizes and (size := self.sizes.pop()) is not None:
            taken.append(size)
        return taken[::-1]


def _check_keys(name: str, taken: list[int], count: int) -> None:
    """Refuses keys of dicts and members of sets that take long to hash."""
    keys = {"SETITEM": taken[1:2], "SETITEMS": taken[count::2], "DICT": taken[::2],
            "ADDITEMS": taken[count:], "FROZENSET": taken}.get(name, [])  # fmt: skip
    if any(key > LARGEST_KEY for key in keys):
        raise ConversionError("the pickle has a key of very many parts; refused")
