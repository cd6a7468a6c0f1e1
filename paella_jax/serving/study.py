"""A blind study: which two images a visitor sees next, on which sides, and what the votes say.

For each prompt both runs draw one image with the same seed, each with its own sampler settings.
Everybody sees the same pairs, each once, those with the fewest votes first, the sides drawn anew.
"""

from __future__ import annotations

import random
import threading
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image

from paella_jax.serving.store import Showing, Store, Vote
from paella_jax.serving.tally import Tally, tally, to_csv

SEEDS = 2**32
KEPT = 64  # pairs of images that are not drawn again for the next visitor

# (run, 0 or 1; prompt; seed) -> image
DrawOne = Callable[[int, str, int], Image.Image]


class Pair(NamedTuple):
    """What a visitor sees.

    Attributes:
      showing: to be given back with the vote; says nothing of the runs.
      prompt: of both images.
      left: an image of one run.
      right: an image of the other.
      done: pairs that the visitor has voted on.
      total: pairs there are.
    """

    showing: str
    prompt: str
    left: Image.Image
    right: Image.Image
    done: int
    total: int


class Study:
    """Two runs, prompts, and votes in a file."""

    def __init__(
        self,
        store: Store,
        digests: tuple[str, str],
        prompts: Sequence[str],
        draw: DrawOne,
        *,
        seed: int = 0,
        chance: random.Random | None = None,
    ) -> None:
        """Finds the study in the file, or begins it.

        Args:
          store: the file of votes.
          digests: what tells the two runs from all others (`run_digest`, pipelines/run_digests.py).
          prompts: each at most once is enough; several are taken as one.
          draw: draws an image of a run.
          seed: another one gives other images and is another study.
          chance: draws sides and breaks ties; default the system's.

        Raises:
          ValueError: no prompts, or the same run twice.
          StudyError: of the file.
        """
        self.prompts = list(dict.fromkeys(prompt.strip() for prompt in prompts if prompt.strip()))
        if not self.prompts:
            raise ValueError("a study needs prompts: give --prompts FILE, a line each")
        if digests[0] == digests[1]:
            raise ValueError("both --checkpoint hold the same weights: a study compares two runs")
        self._store, self._draw, self._seed = store, draw, seed
        # One study whichever run is named first: votes are for "a", the smaller digest.
        self._swapped = digests[0] > digests[1]
        self._number = store.study(min(digests), max(digests), seed)
        self._chance = chance or random.SystemRandom()
        self._kept: OrderedDict[str, tuple[Image.Image, Image.Image]] = OrderedDict()
        self._lock = threading.Lock()

    def next_pair(self, visitor: str) -> Pair | None:
        """Two images that this visitor has not voted on; None once there are no more.

        Raises:
          StudyError: the file cannot be used now.
        """
        votes = self._store.votes(self._number)
        counts = Counter(vote.shown.prompt for vote in votes)
        done = {vote.shown.prompt for vote in votes if vote.visitor == visitor}
        left = [prompt for prompt in self.prompts if prompt not in done]
        if not left:
            return None
        fewest = min(counts[prompt] for prompt in left)
        prompt = self._chance.choice([p for p in left if counts[p] == fewest])
        # Of the text, so that prompts can be added and moved without changing the others' images.
        seed = (self._seed + zlib.crc32(prompt.encode())) % SEEDS
        a, b = self._images(prompt, seed)
        shown = Showing(prompt, seed, self._chance.random() < 0.5)
        showing = self._store.show(self._number, visitor, shown)
        sides = (a, b) if shown.a_is_left else (b, a)
        return Pair(showing, prompt, *sides, len(self.prompts) - len(left), len(self.prompts))

    def vote(self, showing: str, choice: str) -> bool:
        """Stores a vote ("left", "right" or "same"); whether it is new. Raises StudyError."""
        return self._store.vote(showing, choice)

    def results(self) -> Tally:
        """What all votes say; "a" is the run that was named first."""
        return tally(self._votes())

    def csv(self, names: tuple[str, str]) -> str:
        """All votes as a table; `names` of the runs as they were named."""
        return to_csv(self._votes(), names)

    def _votes(self) -> list[Vote]:
        votes = self._store.votes(self._number)
        if not self._swapped:
            return votes
        turned = [vote.shown._replace(a_is_left=not vote.shown.a_is_left) for vote in votes]
        return [vote._replace(shown=shown) for vote, shown in zip(votes, turned, strict=True)]

    def _images(self, prompt: str, seed: int) -> tuple[Image.Image, Image.Image]:
        """Both runs' images, "a" first; the newest pairs are kept."""
        with self._lock:
            if prompt not in self._kept:
                first, second = (self._draw(run, prompt, seed) for run in (0, 1))
                self._kept[prompt] = (second, first) if self._swapped else (first, second)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            return self._kept[prompt]
