"""What every command-line entry shares: compilation cache, short error messages."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from paella_jax.config import UserError

# Mostly mistakes of the user too; PAELLA_JAX_TRACEBACK=1 shows where they come from.
LIKELY_USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError)
TERMINATED = 143  # exit code after a save on SIGTERM, so that a launcher knows to start again


def setup_jax() -> None:
    """Turns on the persistent compilation cache."""
    import jax

    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "paella_jax" / "xla"
    jax.config.update(
        "jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(default))
    )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _keep_freed_memory() -> None:
    """Lets glibc reuse freed memory instead of returning it to the kernel after every step.

    XLA:CPU allocates its temporaries anew in each step; getting the pages back from the kernel cost
    a quarter of the small Paella's step. Must come before any thread gets an arena of its own.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # not glibc: nothing to do
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
    for option, value in (
        (trim_threshold, 2**31 - 1),
        (top_pad, 2**28),
        (mmap_max, 0),
        (arena_max, 1),
    ):
        mallopt(option, value)


@contextmanager
def helped_by(command: Sequence[str], count: int) -> Iterator[None]:
    """Runs a command in `count` more processes, which end with the block however it ends."""
    others = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.terminate()
            other.wait()


def run(main: Callable[[], int]) -> None:
    """Runs an entry point; a user's mistake ends in one clear line and exit code 2."""
    _keep_freed_memory()
    from absl import logging

    logging.set_verbosity(logging.ERROR)  # orbax warns about its own details
    logging.use_absl_handler()
    try:
        sys.exit(main())
    except (UserError, *LIKELY_USER_ERRORS) as error:
        if not isinstance(error, UserError) and os.environ.get("PAELLA_JAX_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
