"""Checkpoints that a loss of power does not take: on the disk before older ones are removed."""

from __future__ import annotations

from pathlib import Path

import orbax.checkpoint as ocp

from paella_jax.files.atomic import sync, sync_tree


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
