"""Votes -> who wins, and how sure that is.

Two intervals of 95 %: Wilson's takes every vote as independent; the other one draws prompts anew
(a bootstrap), as votes on the same two images are alike, and is the one to trust where there are
several votes per prompt. Votes for "same" are told beside and count for neither run.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from paella_jax.evaluation.estimates import SIGMAS, Estimate
from paella_jax.serving.store import Vote

RESAMPLES = 2000
LEAST_PROMPTS = 5  # fewer say nothing about other prompts
COLUMNS = (
    "prompt", "seed", "left_run", "right_run", "choice", "preferred", "visitor", "voted_at"
)  # fmt: skip


class Row(NamedTuple):
    """The votes for one prompt."""

    prompt: str
    a: int
    b: int
    same: int


class Tally(NamedTuple):
    """What the votes say.

    Attributes:
      a: votes for the first run.
      b: votes for the second.
      same: votes for neither.
      visitors: how many voted.
      win_rate: share of the first run in the votes for one of the two; None without any.
      over_prompts: the same with an interval over prompts; None where they are too few.
      left: share of the left image in them: far from a half, sides were preferred, not runs.
      rows: by prompt, in alphabetical order.
    """

    a: int
    b: int
    same: int
    visitors: int
    win_rate: Estimate | None
    over_prompts: Estimate | None
    left: Estimate | None
    rows: list[Row]


def tally(votes: Sequence[Vote]) -> Tally:
    """Counts the votes of one study."""
    rows = []
    for prompt in sorted({vote.shown.prompt for vote in votes}):
        own = [vote.preferred for vote in votes if vote.shown.prompt == prompt]
        rows.append(Row(prompt, own.count("a"), own.count("b"), own.count("same")))
    a, b, same = sum(r.a for r in rows), sum(r.b for r in rows), sum(r.same for r in rows)
    left = sum(vote.choice == "left" for vote in votes)
    return Tally(
        a=a,
        b=b,
        same=same,
        visitors=len({vote.visitor for vote in votes}),
        win_rate=wilson(a, a + b),
        over_prompts=over_prompts(rows),
        left=wilson(left, a + b),
        rows=rows,
    )


def wilson(wins: int, count: int) -> Estimate | None:
    """A share with Wilson's interval, which holds for few votes and near 0 and 1; None of none."""
    if not count:
        return None
    share, z = wins / count, SIGMAS**2 / count
    middle = (share + z / 2) / (1 + z)
    half = np.sqrt(z * share * (1 - share) + z**2 / 4) / (1 + z)
    return Estimate(share, max(0.0, float(middle - half)), min(1.0, float(middle + half)))


def over_prompts(rows: Sequence[Row]) -> Estimate | None:
    """The first run's share with an interval over prompts; None where too few were voted on."""
    counts = np.asarray([(row.a, row.a + row.b) for row in rows if row.a + row.b], np.int64)
    if len(counts) < LEAST_PROMPTS:
        return None
    drawn = np.random.default_rng(0).integers(0, len(counts), (RESAMPLES, len(counts)))
    sums = counts[drawn].sum(1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], (0.025, 0.975))
    wins, count = counts.sum(0)
    return Estimate(float(wins / count), float(low), float(high))


def to_csv(votes: Sequence[Vote], names: tuple[str, str]) -> str:
    """All votes as a table with a header, a line each.

    Args:
      votes: of one study.
      names: of its first and its second run.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    runs = {"a": names[0], "b": names[1], "same": ""}
    for vote in votes:
        left, right = names if vote.shown.a_is_left else names[::-1]
        shown = (vote.shown.prompt, vote.shown.seed, left, right)
        writer.writerow((*shown, vote.choice, runs[vote.preferred], vote.visitor, vote.voted_at))
    return text.getvalue()


def in_words(found: Tally, names: tuple[str, str]) -> str:
    """The result as Markdown; `names` of the first and the second run."""
    votes = found.a + found.b + found.same
    if found.win_rate is None or found.left is None:
        return f"**{votes} votes**, none for one of the two runs so far."
    percent = lambda x: f"{100 * x.value:.1f} % [{100 * x.low:.1f}, {100 * x.high:.1f}]"
    first, second = (f"`{name}`" for name in names)
    lines = [
        f"**{first} is preferred in {percent(found.win_rate)}** of {found.a + found.b} votes for "
        f"one of the two ({found.a} for {first}, {found.b} for {second}; {found.same} for no "
        f"difference), by {found.visitors} visitor{'s' * (found.visitors > 1)}.",
        "",
        "In brackets: 95 % intervals, here Wilson's, with every vote by itself.",
    ]
    if found.over_prompts is None:
        lines.append(f"An interval over prompts needs votes for at least {LEAST_PROMPTS} of them.")
    else:
        words = "Over prompts, as votes on the same two images are alike"
        lines.append(f"{words}: {percent(found.over_prompts)}.")
    sure = found.left.low <= 0.5 <= found.left.high
    warning = "" if sure else " **Sides were preferred, not runs: look at how votes are given.**"
    return "\n".join([*lines, f"The left image was chosen in {percent(found.left)}.{warning}"])
