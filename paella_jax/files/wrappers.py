"""What other programs put before tensors' names: wrappers of modules, in any order.

DataParallel and compiled modules, sharded and checkpointed ones, Lightning's attribute, averages
and flattened dicts: `module.`, `_orig_mod.`, `model.`, `state_dict.`, `ema.` and what a user called
them. A prefix is told by the known names that are left without it, never by its own words alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import TypeVar

from paella_jax.files.tensors import ConversionError
from paella_jax.outside import listed, shortened

# Put before any module in a network, not only around the whole.
MODULE = "module."  # of distributed training
INNER = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
# Usual names of the whole, beside what `is_averaged` takes; others count where most tensors are
# behind them.
USUAL = frozenset(
    {"module", "model", "state_dict", "model_state_dict", "net", "network", "params", "weights",
     "averaged_model", "generator", "shadow", "checkpoint"}
)  # fmt: skip
DEEPEST = 16  # dots of a name that a prefix may end at; a name may have as many as it has letters
Value = TypeVar("Value")


def unwrapped(tensors: Mapping[str, Value], known: Collection[str]) -> tuple[dict[str, Value], str]:
    """Tensors by the names that they have without wrappers, and in words what was taken off.

    Args:
      tensors: by their names in a file.
      known: names that a network of this kind has, or some of them; a few are enough.

    Returns:
      The tensors whose names began with the prefix, without it; all, where there is none. Of a
      network that is there twice, the averaged one.

    Raises:
      ConversionError: two tensors would have one name, or two networks are equally likely.
    """
    plain, inner = without_marks(tensors)
    known = set(known)
    found = _prefixes(plain, known)
    if not known.isdisjoint(plain):  # a network without a prefix, and perhaps its average
        found = [prefix for prefix in found if is_averaged(prefix)]
    if not found:
        return plain, inner
    prefix, others = _choose(found)
    kept = {n.removeprefix(prefix): x for n, x in plain.items() if n.startswith(prefix)}
    left = [name for name in plain if not name.startswith(prefix)]
    told = f"{inner}, names without {shortened(prefix)!r}"
    told += f" (not those of {listed(map(repr, others))})" if others else ""
    return kept, told + (f", without {len(left)} others as {shortened(left[0])}" if left else "")


def without_marks(tensors: Mapping[str, Value]) -> tuple[dict[str, Value], str]:
    """Tensors without what distributed and compiled modules put before every name, told too.

    Raises:
      ConversionError: two tensors would have one name.
    """
    plain = _without_inner(tensors)
    told = "" if plain.keys() == tensors.keys() else ", names without the marks of compiled modules"
    while plain and all(name.startswith(MODULE) for name in plain):
        plain = {name.removeprefix(MODULE): tensor for name, tensor in plain.items()}
        told = told.removesuffix(f", names without {MODULE!r}") + f", names without {MODULE!r}"
    return plain, told


def _without_inner(tensors: Mapping[str, Value]) -> dict[str, Value]:
    plain: dict[str, Value] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        own = ".".join(part for part in parts if part not in INNER) if len(parts) > 1 else name
        if own in plain:
            raise ConversionError(
                f"{own} is there twice, as {name} too; save one of the two models alone"
            )
        plain[own] = tensor
    return plain


def _prefixes(names: Collection[str], known: Collection[str]) -> list[str]:
    """Beginnings of names that known names follow; most of all names, or with usual words."""
    found: Counter[str] = Counter()
    begun: Counter[str] = Counter()  # names by each of their beginnings
    for name in names:
        place = name.find(".")
        for _ in range(DEEPEST):
            if place < 0:
                break
            begun[name[: place + 1]] += 1
            if name[place + 1 :] in known:
                found[name[: place + 1]] += 1
            place = name.find(".", place + 1)
    most = [p for p in found if _is_usual(p) or 2 * begun[p] > len(names)]
    return sorted(most, key=lambda prefix: (-found[prefix], len(prefix), prefix))


def is_averaged(path: str) -> bool:
    """Whether parts of a path, with dots between, say that averaged weights lie there."""
    return any("ema" in part.split("_") for part in path.split("."))


def _is_usual(prefix: str) -> bool:
    return all(part in USUAL or is_averaged(part) for part in prefix[:-1].split("."))


def _choose(found: list[str]) -> tuple[str, list[str]]:
    """The averaged network's prefix, else the only one; and the others."""
    averaged = [prefix for prefix in found if is_averaged(prefix)]
    usable = averaged or found
    if len(usable) > 1:
        raise ConversionError(
            f"holds several such networks, behind {listed(map(repr, usable))}; save one alone"
        )
    return usable[0], [prefix for prefix in found if prefix != usable[0]]
