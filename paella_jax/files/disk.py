"""What a disk says that takes no more, in a line for people."""

from __future__ import annotations

import errno

from paella_jax.config import WriteError

# By error, what to do: not the command's fault, and another try may go well.
DISK = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), ("write", "make room on its disk")),
    **dict.fromkeys((errno.EACCES, errno.EPERM), ("open", "let this user read and write there")),
    **dict.fromkeys((errno.EIO, errno.ESTALE), ("use", "look at its disk")),
    errno.EROFS: ("write", "let this user write there"),
}


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
