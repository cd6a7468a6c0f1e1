"""Which files of a published folder hold its weights: whole or in shards, of which precision.

Names as the hub has them: `model.safetensors`, `model.fp16.safetensors`,
`diffusion_pytorch_model-00001-of-00002.safetensors` and the same with a variant before or behind
the number, with an index `model.safetensors.index.json` or `....index.fp16.json` beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from paella_jax.files.tensors import ConversionError
from paella_jax.outside import listed

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")  # the preferred first
# Names of the usual weights, which other files may lie beside; transformers has one for each form.
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
PRECISIONS = ("", "fp32", "bf16", "fp16")  # variants of the same weights, the preferred first
LONGEST_NAME = 255  # bytes of a file's name
_SUFFIX = "|".join(re.escape(suffix) for suffix in SUFFIXES)
_NAME = r"(?P<stem>.+?)(?:\.(?P<variant>[A-Za-z0-9_]+))?"
_NUMBER = r"-(?P<number>\d+)-of-(?P<count>\d+)"
WHOLE = re.compile(rf"{_NAME}(?P<suffix>{_SUFFIX})")
SHARD = re.compile(rf"{_NAME}{_NUMBER}(?:\.(?P<behind>[A-Za-z0-9_]+))?(?P<suffix>{_SUFFIX})")
INDEX = re.compile(rf"{_NAME}(?P<suffix>{_SUFFIX})\.index(?:\.(?P<behind>[A-Za-z0-9_]+))?\.json")


@dataclass
class Layout:
    """One form in which a folder has weights.

    Attributes:
      stem: the name without variant, number and suffix.
      variant: as "fp16"; empty for none.
      suffix: of the files.
      shards: of how many files; 0 where it is whole.
      files: their names, by number.
      index: the name of its index; empty for none.
      numbers: of the files that are shards.
    """

    stem: str
    variant: str
    suffix: str
    shards: int = 0
    files: list[str] = field(default_factory=list)
    index: str = ""
    numbers: list[int] = field(default_factory=list)

    @property
    def is_usable(self) -> bool:
        """Whether it is told which files belong to it, and that these are all."""
        if self.index or not self.shards:
            return bool(self.index) or len(self.files) == 1
        is_full = len(self.numbers) == self.shards
        return is_full and sorted(self.numbers) == list(range(1, self.shards + 1))

    @property
    def form(self) -> tuple[str, str, str]:
        """What several sets of shards can have in common."""
        return self.stem, self.variant, self.suffix

    @property
    def shown(self) -> str:
        """Its name in messages."""
        return self.index or self.files[0]

    @property
    def network(self) -> str:
        """The stem; transformers has two for one network."""
        return STEMS[1] if self.stem == STEMS[2] else self.stem

    def rank(self) -> tuple[int, int, int, int]:
        """What orders layouts, the preferred first."""
        known = STEMS.index(self.stem) if self.stem in STEMS else len(STEMS)
        known = min(known, STEMS.index(STEMS[1])) if self.network == STEMS[1] else known
        precise = self.variant in PRECISIONS
        variant = PRECISIONS.index(self.variant) if precise else len(PRECISIONS)
        return known, variant, SUFFIXES.index(self.suffix), bool(self.shards or self.index)


def layouts_of(names: Iterable[str]) -> list[Layout]:
    """All forms of weights among the files of a folder, the preferred first."""
    found: dict[tuple[str, str, str, str | int], Layout] = {}

    def of(match: re.Match[str], kind: str | int) -> Layout:
        parts = match.groupdict()
        variant = parts["variant"] or parts.get("behind") or ""
        key = (parts["stem"], variant, parts["suffix"], kind)
        return found.setdefault(key, Layout(*key[:3]))

    for name in sorted(names):
        if index := INDEX.fullmatch(name):
            of(index, "index").index = name
        elif shard := SHARD.fullmatch(name):
            layout = of(shard, int(shard["count"]))  # shards of another count are another set
            layout.shards = int(shard["count"])
            layout.files.append(name)
            layout.numbers.append(int(shard["number"]))
        elif whole := WHOLE.fullmatch(name):
            of(whole, "whole").files.append(name)
    indexed = {layout.form: layout for layout in found.values() if layout.index}
    apart = [x for x in found.values() if not x.numbers or x.form not in indexed]
    for layout in found.values():
        if layout.numbers and layout.form in indexed:  # the index tells which of them are read
            indexed[layout.form].files += layout.files
            indexed[layout.form].shards = max(indexed[layout.form].shards, layout.shards)
    return sorted(apart, key=Layout.rank)


def choose(
    names: Iterable[str], stems: Sequence[str] = (), known: Iterable[str] = ()
) -> tuple[Layout, str] | None:
    """The form to read, and in words what else there was; None where there are no weights.

    Full precision comes before other variants, safetensors before torch's files, one file before
    several.

    Args:
      names: of the files in a folder.
      stems: only layouts of these; default all.
      known: files that an index there names, and which are no weights of their own.

    Raises:
      ConversionError: several networks, or variants that are none of a precision.
    """
    listing, taken = list(names), set(known)
    found = [layout for layout in layouts_of(listing) if not stems or layout.stem in stems]
    found = [layout for layout in found if layout.index or not taken.issuperset(layout.files)]
    usable = [layout for layout in found if layout.is_usable]
    if not usable:
        if found:
            raise ConversionError(
                f"has {len(found[0].numbers)} of {found[0].shards} shards, as "
                f"{listed(found[0].files, 2)}, and no index; download them all again"
            )
        return None
    first, alike = usable[0], [x for x in usable if x.network == usable[0].network]
    if sets := [x.files[0] for x in alike if x.shards and x.form == first.form][1:]:
        raise ConversionError(
            f"has shards of several sets, as {first.files[0]} and {sets[0]}; delete those of one"
        )
    others = [x for x in usable if x.network != first.network]
    unknown = [x for x in alike if x.variant not in PRECISIONS and x.variant != first.variant]
    if (others and first.stem not in STEMS) or (unknown and first.variant not in PRECISIONS):
        shown = listed(layout.shown for layout in usable)
        raise ConversionError(f"must hold one weights file, found: {shown}; give the file itself")
    return first, _told(first, [x for x in alike if x is not first])


def _told(chosen: Layout, others: Sequence[Layout]) -> str:
    variant = f", variant {chosen.variant}" if chosen.variant else ""
    left = f" (not read: {listed(x.shown for x in others)})" if others else ""
    return variant + left


def is_plain_name(name: object) -> bool:
    """Whether an index names a file of its own folder."""
    if not isinstance(name, str) or "\0" in name or "\\" in name:
        return False
    is_short = len(name.encode("utf-8", "surrogatepass")) <= LONGEST_NAME
    return is_short and name not in ("", ".", "..") and PurePosixPath(name).name == name
