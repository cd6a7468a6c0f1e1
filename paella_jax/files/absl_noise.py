"""Warnings of orbax and grain about their own details, which a user can do nothing about.

Commands show errors of absl's log alone. In a notebook the log is the user's: these lines are left
out of it, and no others.
"""

from __future__ import annotations

import logging

ABOUT_THEMSELVES = (
    "Metadata file does not exist",  # orbax, at every load of a part of a checkpoint
    "Grain multiprocess worker profiling",  # on older jaxlib; we read with threads
)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(ABOUT_THEMSELVES)


def silence() -> None:
    """Leaves these lines out of absl's log; calling it again changes nothing."""
    logger = logging.getLogger("absl")
    if _is_wanted not in logger.filters:
        logger.addFilter(_is_wanted)
