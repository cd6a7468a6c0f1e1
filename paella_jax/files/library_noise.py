"""Warnings of other libraries about their own details, which a user can do nothing about.

Commands show errors of these logs alone. In a notebook the logs are the user's: these lines are
left out of them, and no others.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

# By logger, how such a line begins.
ABOUT_THEMSELVES = {
    "absl": (
        "Metadata file does not exist",  # orbax, at every load of a part of a checkpoint
        "Grain multiprocess worker profiling",  # on older jaxlib; we read with threads
    ),
    "transformers": ("PyTorch was not found",),  # we take its tokenizers alone
}
LATE = "Event loop is closed"


def _is_wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(ABOUT_THEMSELVES.get(record.name, ()))


def silence() -> None:
    """Leaves these lines out of those logs; calling it again changes nothing."""
    for name in ABOUT_THEMSELVES:
        logger = logging.getLogger(name)
        if _is_wanted not in logger.filters:
            logger.addFilter(_is_wanted)


def silence_late_answers() -> None:
    """Leaves out what threads of tensorstore print whose answers come after orbax gave up a save.

    Its event loop is closed then; why the save failed is told where it is waited for. Calling it
    again changes nothing.
    """
    before = sys.unraisablehook
    if before.__module__ == __name__:
        return

    def hook(found: Any) -> None:
        if not isinstance(found.exc_value, RuntimeError) or str(found.exc_value) != LATE:
            before(found)

    sys.unraisablehook = hook
