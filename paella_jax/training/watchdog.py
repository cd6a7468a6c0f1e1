"""Ends a process of several whose training stands still, so that a launcher starts all again.

A process that dies is noticed at once (lifeline.py). Where all of them live and one waits for what
another never comes to, as after an error on one host alone, nothing else would end them.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time

import jax

from paella_jax.training.lifeline import CRASHED

STALL_SECONDS = float(os.environ.get("PAELLA_JAX_STALL_SECONDS", "3600"))


class Watchdog:
    """Looks on from a thread of its own; training of one process is left alone."""

    def __init__(self, seconds: float = STALL_SECONDS) -> None:
        """Begins to wait for updates.

        Args:
          seconds: how long none may be finished; 0 for ever.
        """
        self.seconds = seconds
        self._over = threading.Event()
        self._last = time.monotonic()
        if jax.process_count() > 1 and seconds > 0:
            threading.Thread(target=self._watch, daemon=True).start()

    def beat(self) -> None:
        """An update was finished."""
        self._last = time.monotonic()

    def stop(self) -> None:
        """Training is over."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(self.seconds / 4, 60.0)):
            quiet = time.monotonic() - self._last
            if quiet > self.seconds:
                sys.stdout.flush()
                print(
                    f"error on process {jax.process_index()}: no update was finished for "
                    f"{quiet:.0f} s (PAELLA_JAX_STALL_SECONDS={self.seconds:g}); where it stands:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback()
                os._exit(CRASHED)
