"""Warnings of other libraries about their own details, which a user can do nothing about.

Commands show errors of these logs alone. In a notebook the logs are the user's: these lines are
left out of them, and no others.
"""

from __future__ import annotations

import logging

# By logger, how such a line begins.
ABOUT_THEMSELVES = {
    "absl": (
        "Metadata file does not exist",  # orbax, at every load of a part of a checkpoint
        "Grain multiprocess worker profiling",  # on older jaxlib; we read with threads
    ),
    "transformers": ("PyTorch was not found",),  # we take its tokenizers alone
}


def _is_wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(ABOUT_THEMSELVES.get(record.name, ()))


def silence() -> None:
    """Leaves these lines out of those logs; calling it again changes nothing."""
    for name in ABOUT_THEMSELVES:
        logger = logging.getLogger(name)
        if _is_wanted not in logger.filters:
            logger.addFilter(_is_wanted)
