"""What is done to images that are not plain, told once."""

from __future__ import annotations

from paella_jax.outside import say


class Notes:
    """Tells the first image of each kind that needed a decision, such as transparency.

    Attributes:
      owner: what the images belong to, as in "data.folder photos"; empty for single images.
    """

    def __init__(self, owner: str = "") -> None:
        self.owner = owner
        self._first: dict[str, object] = {}

    def add(self, name: object, what: str) -> None:
        """Prints what was done to the image `name`, unless it was done to another one before."""
        mine = object()
        # One operation, so that of several reading threads one prints.
        if self._first.setdefault(what, mine) is not mine:
            return
        others = f" ({self.owner}: others like it are not told)" if self.owner else ""
        say(f"{name} {what}{others}")


SINGLE = Notes()  # of images that users give one by one
