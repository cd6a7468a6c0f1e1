"""Whether images are of the group that their captions ask for, such as a style.

Groups are a field of the data's records, or words of its captions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from paella_jax.evaluation.estimates import bootstrap
from paella_jax.evaluation.groups import FEWEST, GroupClassifier, classify_groups
from paella_jax.reports.gathered import Gathered, ScoreError
from paella_jax.reports.scores import Row


class Said(NamedTuple):
    """What is said of an image: its caption, and the group that its record names."""

    caption: str
    group: str = ""


@dataclass(frozen=True)
class Grouping:
    """How images are put into groups; nothing that is asked for groups none.

    Attributes:
      by: a field of records; empty for words.
      words: of which a caption of a group holds one.
    """

    by: str = ""
    words: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.by or self.words)

    def of(self, said: Said) -> str:
        """An image's group; empty where nothing says one, or several words do.

        Words that are part of others, as "fox" of "arctic fox", count where they stand alone.
        """
        if self.by:
            return said.group
        found = [word for word in self.words if _holds(said.caption, word)]
        inner = {a for a in found for b in found if a != b and _holds(b, a)}
        found = [word for word in found if word not in inner]
        return found[0] if len(found) == 1 else ""


def grouping(asked: str) -> Grouping:
    """From "style", a field, or "flat,photo", words (or several words each) of captions.

    Raises:
      ScoreError: one word with a comma, or one that is there twice.
    """
    parts = [part.strip() for part in asked.split(",")]
    if len(parts) == 1:
        return Grouping(by=parts[0])
    words = tuple(part.lower() for part in parts if part)
    if len(words) < 2 or len(set(words)) < len(words):
        raise ScoreError(
            f"--groups {asked!r} must be the name of a field, or two or more different words of "
            "captions with commas between them"
        )
    return Grouping(words=words)


def _holds(caption: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", caption.lower()) is not None


@dataclass(frozen=True)
class GroupMarks:
    """A classifier of groups that has seen training images, and what it found.

    Attributes:
      grouping: of all images.
      names: of the groups.
      classifier: gives a group's place among the names, or that and a multiple of their number.
      seen: what the classifier has seen, in words.
      report: for JSON: the groups, and for each set of images what was found of every group.
    """

    grouping: Grouping
    names: list[str]
    classifier: GroupClassifier
    seen: str
    report: dict[str, Any] = field(default_factory=dict)

    def mark(self, name: str, images: Gathered, said: Sequence[Said]) -> Row:
        """The share of a set's images that are of the group asked for, as a row's column.

        Args:
          name: of the set, in the report.
          images: in the order of `said`.
          said: what the images are to be.
        """
        wanted = np.array([self._place(self.grouping.of(one)) for one in said], int)
        asked = np.flatnonzero(wanted >= 0)
        right = self.classifier(images.vectors[asked]) % len(self.names) == wanted[asked]
        of_groups = {}
        for place, group in enumerate(self.names):
            own = right[wanted[asked] == place]
            share = float(own.mean()) if len(own) else None
            of_groups[group] = {"images": len(own), "right": share}
        self.report[name] = {"without_group": len(said) - len(asked), "groups": of_groups}
        return {"group_right": bootstrap(right)} if len(asked) > 1 else {}

    def _place(self, group: str) -> int:
        return self.names.index(group) if group in self.names else -1

    def note(self) -> str:
        """What a reader of the table has to know."""
        by = f"the field {self.grouping.by!r}" if self.grouping.by else "words of the captions"
        return (
            f"Group right: of the {len(self.names)} groups {', '.join(self.names)} (by {by}), the "
            "one a caption asks for is the one that a classifier on the features finds, which has "
            f"seen {self.seen}; {1 / len(self.names):.2f} by chance. Brackets: bootstrap."
        )


def learn_groups(
    grouped: Grouping,
    training: Gathered,
    said: Sequence[Said],
    wanted: Sequence[Said],
    rebuild: Callable[[], Gathered | None] = lambda: None,
) -> GroupMarks:
    """A classifier of the groups, from training images.

    A decoder leaves its marks on all that is drawn through it. A classifier that has seen true
    images alone takes them for those of a group: half of ten thousand icons, rebuilt by their own
    tokenizer, were then said to be of another style (docs/results.md 13).

    Args:
      grouped: how images are grouped.
      training: images.
      said: what is said of them, in their order.
      wanted: what images that are to be marked should show.
      rebuild: gives the training images through the decoder of the run that is scored, where it has
        an encoder; the classifier sees them beside the true ones. Asked once there is enough.

    Raises:
      ScoreError: fewer than two groups with enough images, or too little to mark.
    """
    counts = Counter(filter(None, map(grouped.of, said)))
    names = sorted(group for group, count in counts.items() if count >= FEWEST)
    flag = f"--groups {grouped.by or ','.join(grouped.words)}"
    if len(names) < 2:
        shown = ", ".join(f"{group} ({count})" for group, count in counts.most_common(9))
        raise ScoreError(
            f"{flag}: two groups with {FEWEST} training images each are needed; of {len(said)} "
            f"images there are: {shown or 'none that is of a group'}. Give another field or other "
            "words, or more --training_images"
        )
    asked = sum(grouped.of(one) in names for one in wanted)
    if asked < 2:
        raise ScoreError(
            f"{flag}: {asked} of the {len(wanted)} captions to draw ask for one of "
            f"{', '.join(names)}; give another field or other words"
        )
    groups = [grouped.of(one) for one in said]
    known = np.array([n for n, group in enumerate(groups) if group in names], int)
    places = np.array([names.index(groups[n]) for n in known], int)
    seen = "training images"
    views = [training.vectors[known]]
    if (rebuilt := rebuild()) is not None:
        views.append(rebuilt.vectors[known])
        seen += ", as they are and as the run rebuilds them"
    # A group's true images and the rebuilt ones are classes of their own: they lie apart.
    kinds = [places + len(names) * n for n in range(len(views))]
    classifier = classify_groups(np.concatenate(views), np.concatenate(kinds))
    marks = GroupMarks(grouped, names, classifier, seen)
    marks.report["by"] = grouped.by or list(grouped.words)
    marks.report["training"] = {name: counts[name] for name in names}
    return marks
