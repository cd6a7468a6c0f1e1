"""What a disk says that takes no more, in a line for people."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from paella_jax.config import WriteError

# By error, what to do: not the command's fault, and another try may go well.
DISK = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), ("write", "make room on its disk")),
    **dict.fromkeys((errno.EACCES, errno.EPERM), ("open", "let this user read and write there")),
    **dict.fromkeys((errno.EIO, errno.ESTALE), ("use", "look at its disk")),
    **dict.fromkeys((errno.ETIMEDOUT, errno.ENOTCONN), ("use", "look at its disk's network")),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), ("open", "allow more open files (ulimit -n)")),
    errno.EROFS: ("write", "let this user write there"),
}

# Numbers of errors that a given path brings about, or a damaged file (none at all).
OF_A_PATH = {
    None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM,
    errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EROFS,
}  # fmt: skip
PATIENCE = (0.1, 1.0, 5.0)  # seconds before another try

Read = TypeVar("Read")


def is_outage(error: BaseException | None) -> bool:
    """Whether an error came of a disk or network that fails: another try may go well."""
    while error is not None:
        if isinstance(error, OSError) and error.errno not in OF_A_PATH:
            return True
        error = error.__cause__
    return False


def as_outage(error: Exception, file: str | Path) -> OSError | None:
    """The error of a disk or network that a library tells in words alone; None for another."""
    told = str(error)
    for number in DISK:
        words = os.strerror(number)
        if number not in OF_A_PATH and words in told:
            return OSError(number, words, str(file))
    return None


def patiently(read: Callable[[], Read]) -> Read:
    """What a function reads, tried again some times where a disk or network fails."""
    for seconds in PATIENCE:
        try:
            return read()
        except OSError as error:
            if not is_outage(error):
                raise
        time.sleep(seconds)
    return read()


def describe_disk(error: BaseException) -> str:
    """One line on an error of a disk: which file, why, and what to do; empty for other errors."""
    if isinstance(error, WriteError):
        return str(error)
    if not isinstance(error, OSError) or error.errno not in DISK:
        return ""
    verb, advice = DISK[error.errno]
    return (
        f"cannot {verb} {error.filename or 'a file'}: {error.strerror}; {advice}, then run the "
        "same command again: it goes on from what is stored"
    )
