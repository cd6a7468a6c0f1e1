"""Reading a compiled program's text: its collectives, what it moves and its largest arrays.

XLA's own cost analysis counts a loop's body once (docs/jax.md 1); here it counts as often as it
runs. Text is what all of XLA's compilers give, those for machines that are not there included.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16,
    "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^{}]*\})?")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations|true_computation"
                    r"|false_computation)=\{?(%?[\w.\-]+(?:, ?%?[\w.\-]+)*)\}?")  # fmt: skip
TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
CUTS = ("dynamic-slice", "slice", "gather")
UPDATE = "dynamic-update-slice"
ON_CHIP = "S(1)"  # a TPU's vector memory: no traffic of the large one
# Views, and what only points to other computations or ends what another instruction began.
MOVES_NOTHING = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "optimization-barrier", "iota",
}  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """One line: `NAME = TYPE OPCODE(ARGUMENTS), ATTRIBUTES`."""

    name: str
    type: str
    opcode: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        """Names of the results that it reads."""
        return re.findall(r"%([\w.\-]+)", self.arguments)

    @property
    def label(self) -> str:
        """Where it comes from in the Python program."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else self.name


@dataclass
class Computation:
    """Instructions by name; `runs` says how often the program runs it."""

    instructions: dict[str, Instruction] = field(default_factory=dict)
    runs: int = 0
    is_fused: bool = False


@dataclass(frozen=True)
class Collective:
    """One exchange between devices.

    Attributes:
      kind: one of KINDS.
      bytes: of the whole array.
      dtype: of most of it.
      group: how many devices exchange with each other.
      span: how far they lie apart, in the order of the devices: more than a node leaves the node.
      runs: how often.
      label: where it comes from.
    """

    kind: str
    bytes: int
    dtype: str
    group: int
    span: int
    runs: int
    label: str

    @property
    def sent(self) -> float:
        """Bytes that each device sends in all runs, on a ring."""
        share = (self.group - 1) / max(self.group, 1)
        rounds = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return rounds * self.bytes * self.runs


def read_program(text: str) -> dict[str, Computation]:
    """All computations that the program runs, with how often.

    Args:
      text: of an optimised HLO module.
    """
    computations, entry = _parse(text)
    _count_runs(computations, entry, 1, False)
    return {name: c for name, c in computations.items() if c.runs}


def _parse(text: str) -> tuple[dict[str, Computation], str]:
    computations: dict[str, Computation] = {}
    current, entry = Computation(), ""
    for line in text.splitlines():
        if header := HEADER.match(line):
            current = computations.setdefault(header[2], Computation())
            entry = header[2] if header[1] else entry
        elif found := INSTRUCTION.match(line):
            instruction = _instruction(found[1], found[2])
            if instruction is not None:
                current.instructions[instruction.name] = instruction
    return computations, entry


def _instruction(name: str, rest: str) -> Instruction | None:
    """`TYPE opcode(operands), attributes`; a type may hold brackets of every kind."""
    end = _closed(rest, 0, " ")
    opened = rest.find("(", end + 1)
    if end < 0 or opened < 0:
        return None
    closed = _closed(rest, opened + 1, ")")
    arguments = rest[opened + 1 : closed]
    return Instruction(name, rest[:end], rest[end + 1 : opened], arguments, rest[closed + 1 :])


def _closed(text: str, start: int, mark: str) -> int:
    """The first `mark` outside of all brackets that open after `start`, or -1."""
    depth = 0
    for found in re.compile(r"[(){}\[\] ]").finditer(text, start):
        character = found[0]
        if depth == 0 and character == mark:
            return found.start()
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
    return -1


def _count_runs(computations: dict[str, Computation], name: str, runs: int, is_fused: bool) -> None:
    computation = computations.get(name)
    if computation is None:
        return
    computation.runs += runs
    computation.is_fused |= is_fused
    for instruction in computation.instructions.values():
        inside = is_fused or instruction.opcode == "fusion"
        times = _trips(instruction, computations) if instruction.opcode == "while" else 1
        for found in CALLED.findall(instruction.attributes):
            for called in found.split(","):
                _count_runs(computations, called.strip().removeprefix("%"), runs * times, inside)


def _trips(loop: Instruction, computations: dict[str, Computation]) -> int:
    """How often a loop runs: what XLA noted, else the largest number its condition compares to."""
    if known := TRIPS.search(loop.attributes):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
    lines = computations.get(condition[1], Computation()) if condition else Computation()
    constants = [
        int(i.arguments)
        for i in lines.instructions.values()
        if i.opcode == "constant" and i.arguments.isdigit()
    ]
    return max([1, *constants])


def size_of(type_text: str, on_chip: bool = True) -> int:
    """Bytes of a type, of all its parts if it is a tuple.

    Args:
      type_text: such as `(f32[8,16]{1,0}, bf16[4])`.
      on_chip: False leaves out what lies in a TPU's vector memory.
    """
    arrays = ARRAY.findall(type_text)
    return sum(_bytes(d, s) for d, s, layout in arrays if on_chip or ON_CHIP not in layout)


def _bytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype.startswith("f8") else BITS.get(dtype, 0)
    return math.prod(int(side) for side in shape.split(",") if side) * bits // 8


def collectives_of(program: dict[str, Computation], devices: int) -> list[Collective]:
    """Every exchange once: fusions that overlap one with other work each repeat it, as one chain.

    Args:
      program: from `read_program`.
      devices: of the program; the group of an exchange that names none.
    """
    found: dict[tuple[str, str], Collective] = {}
    for name, computation in program.items():
        for instruction in computation.instructions.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            # A channel's number alone does not tell: a TPU's reduce-scatters all have the same.
            chain = re.search(r'channel_id=(\d+).*chain_id="(\d+)"', instruction.attributes)
            key = (kind, "/".join(chain.groups()) if chain else f"{name}/{instruction.name}")
            if key not in found:
                found[key] = _collective(name, kind, instruction, computation, devices)
    return list(found.values())


def _collective(
    name: str, kind: str, instruction: Instruction, computation: Computation, devices: int
) -> Collective:
    types = [computation.instructions[o].type for o in instruction.operands
             if o in computation.instructions]  # fmt: skip
    group = group_size(instruction.attributes, devices)
    size = sum(map(size_of, types)) * (group if kind == "all-gather" else 1)
    if kind == "all-reduce" and "reduce-scatter" in name:  # as a TPU's compiler writes it
        kind = "reduce-scatter"
    weights: Counter[str] = Counter()
    for dtype, shape, _ in ARRAY.findall(" ".join(types)):
        weights[dtype] += _bytes(dtype, shape)
    dtype = weights.most_common(1)[0][0] if weights else ""
    span = group_span(instruction.attributes, devices)
    return Collective(kind, size, dtype, group, span, computation.runs, instruction.label)


def group_size(attributes: str, devices: int) -> int:
    """How many devices exchange with each other, in any of XLA's three notations."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(iota[2])
    if mesh := re.search(r"replica_groups=(?:@\w+|mesh)\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        return math.prod(sizes.get(axis, 1) for axis in re.findall(r"'(\w+)'", mesh[2]))
    return devices


def group_span(attributes: str, devices: int) -> int:
    """Devices from a group's first to its last, as `group_size` reads them."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        members = [int(member) for member in listed[1].split(",") if member]
        return max(members, default=0) - min(members, default=0) + 1
    if mesh := re.search(r"replica_groups=(?:@\w+|mesh)\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        axes = re.findall(r"'(\w+)'=(\d+)", mesh[1])
        used = re.findall(r"'(\w+)'", mesh[2])
        first = min((n for n, (axis, size) in enumerate(axes) if axis in used and int(size) > 1),
                    default=len(axes))  # fmt: skip
        return math.prod(int(size) for _, size in axes[first:])
    transposed = re.search(r"replica_groups=\[\d+,\d+\]<=\[[\d,]*\]T", attributes)
    return devices if transposed else group_size(attributes, devices)


def bytes_moved(program: dict[str, Computation]) -> int:
    """Bytes read from and written to a device's memory, loops counted as often as they run."""
    total = 0
    for computation in program.values():
        if not computation.is_fused:
            moved = sum(_moved(i, computation, program) for i in computation.instructions.values())
            total += computation.runs * moved
    return total


def _moved(
    instruction: Instruction, computation: Computation, program: dict[str, Computation]
) -> int:
    opcode = instruction.opcode
    if opcode in MOVES_NOTHING or opcode.endswith("-done"):
        return 0
    written = size_of(instruction.type, on_chip=False)
    if opcode in CUTS:
        return 2 * written
    if opcode == UPDATE:
        return 2 * _size_of_operand(instruction, 1, computation)
    called = re.search(r"calls=%?([\w.\-]+)", instruction.attributes)
    inner = program.get(called[1]) if called and opcode == "fusion" else None
    if inner is not None:
        written = min(written, _written_inside(inner))
    read = 0
    for number in range(len(instruction.operands)):
        whole = _size_of_operand(instruction, number, computation)
        read += int(min(whole, _read_inside(inner, number))) if inner else whole
    return read + written


def _size_of_operand(instruction: Instruction, number: int, computation: Computation) -> int:
    source = computation.instructions.get(instruction.operands[number])
    return size_of(source.type, on_chip=False) if source else 0


def _written_inside(fused: Computation) -> int:
    """Bytes that a fusion writes: of an array that it changes in place only the piece."""
    lines = fused.instructions
    root = list(lines.values())[-1]  # what is printed last
    results = [lines[o] for o in root.operands if o in lines] if root.opcode == "tuple" else [root]
    piece = lambda i: _size_of_operand(i, 1, fused) if i.opcode == UPDATE else size_of(i.type)
    return sum(piece(result) for result in results)


def _read_inside(fused: Computation, number: int) -> float:
    """Bytes that a fusion reads of one operand where it only cuts or changes pieces, else inf."""
    lines = fused.instructions.values()
    is_it = lambda i: i.opcode == "parameter" and i.arguments == str(number)
    name = next((i.name for i in lines if is_it(i)), None)
    users = [i for i in lines if name in i.operands]
    changed = lambda i: i.opcode == UPDATE and i.operands[0] == name and name not in i.operands[1:]
    if not users or any(i.opcode not in CUTS and not changed(i) for i in users):
        return math.inf
    return sum(0 if changed(i) else size_of(i.type) for i in users)


def largest_arrays(program: dict[str, Computation], count: int) -> Iterator[tuple[str, int, str]]:
    """(type, bytes, where it comes from) of the largest results, one of each type and origin."""
    seen: dict[tuple[str, str], int] = {}
    for computation in program.values():
        if computation.is_fused:
            continue
        for instruction in computation.instructions.values():
            if instruction.opcode in MOVES_NOTHING or instruction.opcode.endswith("-done"):
                continue
            for dtype, shape, _ in ARRAY.findall(instruction.type):
                label = re.sub(r"\d+", "N", instruction.label)
                seen[f"{dtype}[{shape}]", label] = _bytes(dtype, shape)
    for (kind, label), size in sorted(seen.items(), key=lambda item: -item[1])[:count]:
        yield kind, size, label
