"""Checkpoints that a loss of power does not take: on the disk before older ones are removed."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import orbax.checkpoint as ocp

from paella_jax.config import ConfigError
from paella_jax.files.atomic import sync, sync_tree
from paella_jax.files.disk import is_outage

# What file systems say that have no such operation; EMFILE is Cloud Storage FUSE's.
CANNOT = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV, errno.EMFILE)


def check_renames(directory: Path) -> None:
    """Tries what a checkpoint needs of a file system: a folder with one inside that is renamed.

    Raises:
      ConfigError: it cannot, as a mounted bucket without folders of its own.
    """
    before, after = (directory / f".renamed_{word}" for word in ("before", "after"))

    def remove() -> None:
        for left in (before, after):
            shutil.rmtree(left, ignore_errors=True)

    remove()  # what a kill left
    try:
        (before / "inside").mkdir(parents=True)
        before.rename(after)
    except OSError as error:
        if is_outage(error) and error.errno not in CANNOT:
            raise
        raise ConfigError(
            f"the file system of {directory} cannot rename folders ({error.strerror}), which makes "
            "checkpoints whole: choose a --workdir on another, or a bucket with a hierarchical "
            "namespace"
        ) from error
    finally:
        remove()


class DurablePath(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """The folder of a checkpoint that is being written.

    tensorstore waits for the disk with the arrays; orbax writes the rest without.
    """

    async def finalize(self) -> None:
        """Gives the folder its name, and waits until that, and all in it, is on the disk."""
        sync_tree(Path(self.get()))
        await super().finalize()
        final = Path(self.get_final())
        for late in final.glob("*"):  # orbax's marks, written just now
            if late.is_file():
                sync(late)
        sync(final)
        sync(final.parent)
