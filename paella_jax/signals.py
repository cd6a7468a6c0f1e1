"""Show how loud the signals are that a network adds to each other, before any training:

    python -m paella_jax.signals --config configs/paella.py:shapes --config configs/muse.py:shapes
    python -m paella_jax.signals --config configs/muse.py:632m --first 20

A row per sum, in the order of the program: the root mean square of the stream and of what is added,
how many times as loud the second is, and which part of the result, behind a norm, differs between
positions. "beside" is a concatenation, which the matrix behind it adds up. Rows marked ! add
signals more than 30 times apart: where a norm follows, the quiet one is lost (docs/signals.md). A
summary of all networks ends the page. No file is read; `--first` makes only the parameters that a
deep network's first sums need, as they are in the whole one. `--config.FIELD=VALUE` changes every
preset given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paella_jax.cli import Parser, run, setup_jax
from paella_jax.config import ConfigError, load_config
from paella_jax.outside import escaped_lines, say

if TYPE_CHECKING:
    from paella_jax.evaluation.signals import Sum

HEAD = ("", "where", "", "line", "stream", "added", "ratio", "differs")
SUMMARY = ("network", "reads", "sums", "ratios", "differs, first to last", "far apart")
LONGEST = 70  # characters of a line of code


def rows(sums: Sequence[Sum]) -> list[tuple[str, ...]]:
    """The cells of a table, a row per sum."""
    cut = lambda code: code if len(code) <= LONGEST else code[: LONGEST - 3] + "..."
    return [
        (
            "!" if one.far_apart else "",
            one.place or "(itself)",
            "beside" if one.joins else "+",
            f"`{cut(one.code)}`",
            *(f"{number:.3g}" for number in (one.before, one.added, one.ratio)),
            "" if one.share is None else f"{one.share:.3f}",
        )
        for one in sums
    ]


def summary(name: str, reads: str, sums: Sequence[Sum]) -> tuple[str, ...]:
    """One row of `SUMMARY`. Branches that start from zero have no ratio."""
    ratios = [one.ratio for one in sums if min(one.before, one.added) > 0]
    shares = [one.share for one in sums if one.share is not None and not one.joins]
    return (
        name,
        reads,
        str(len(sums)),
        f"{min(ratios):.2g} to {max(ratios):.2g}" if ratios else "",
        f"{shares[0]:.3f} to {shares[-1]:.3f}" if shares else "",
        str(sum(one.far_apart for one in sums)),
    )


def table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *cells))


def main() -> int:
    """Prints the tables of every network of every config."""
    parser = Parser(
        "python -m paella_jax.signals",
        description=__doc__,
        overrides=True,
    )
    parser.add_argument("--config", action="append", help="configs/NAME.py:preset; may be repeated")
    parser.add_argument("--first", type=int, help="only so many sums of each network")
    parser.add_argument("--far", action="store_true", help="only the rows marked !")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters")
    arguments, overrides = parser.parse_known_args()
    if arguments.first is not None and arguments.first < 1:
        raise ConfigError(f"--first must be at least 1, got {arguments.first}")
    names = arguments.config or ["paella:shapes"]
    configs = [load_config(name, overrides) for name in names]
    setup_jax()

    import jax

    from paella_jax.evaluation.signals import sums_at_start
    from paella_jax.families.at_start import networks_at_start

    every = [(name, net) for name, config in zip(names, configs, strict=True)
             for net in networks_at_start(config)]  # fmt: skip
    key, summaries = jax.random.key(arguments.seed), []
    for name, net in every:
        found = sums_at_start(net.init, net.apply, net.inputs, key, arguments.first)
        shown = [one for one in found if one.far_apart or not arguments.far]
        if shown:
            say(f"{name}, {net.name}")
            print(escaped_lines(f"\n{table(HEAD, rows(shown))}\n"), flush=True)
        summaries.append(summary(f"{name}, {net.name}", net.reads, found))
    print(escaped_lines(table(SUMMARY, summaries)))
    return 0


if __name__ == "__main__":
    run(main)
