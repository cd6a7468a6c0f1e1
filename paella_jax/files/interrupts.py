"""Ctrl-C before a training has its own handler: in imports, while data and weights are read.

Libraries print pages about a `KeyboardInterrupt` that comes in the middle of an import, make
another error of it, or lose it. Here it waits for the import, comes again where it was lost, and is
remembered, so that it ends the command in one line.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

INTERRUPTED = 130
AGAIN = 0.1  # seconds until an interrupt comes again
IMPORT = "<frozen importlib._bootstrap>"  # the file of Python's own importing functions
_came = threading.Event()


def is_command() -> bool:
    """Whether this process is one of our commands, and no program that imports the package."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    is_module = spec is not None and spec.name.split(".")[0] == "paella_jax"
    return is_module or "".join(sys.argv[:1]).startswith("paella_jax ")  # the installed script


def end_while_importing() -> None:
    """Lets Ctrl-C end this process in one line, as nothing is begun that could be left half done.

    For a command's own imports, until `remembered` takes over.
    """
    _install(_end)


@contextmanager
def remembered() -> Iterator[None]:
    """Within it Ctrl-C is a `KeyboardInterrupt` that no library loses."""
    before, hook = _install(_raise), sys.unraisablehook
    sys.unraisablehook = lambda found: _report(found, hook)
    try:
        yield
    finally:
        _came.clear()
        sys.unraisablehook = hook
        if before is not None:
            signal.signal(signal.SIGINT, before)


def raise_what_came() -> None:
    """Raises KeyboardInterrupt if one came since the command began, and was lost."""
    if _came.is_set():
        raise KeyboardInterrupt


def forget_signal() -> None:
    """Lets the process end with its exit code.

    Python ends by the signal itself, whatever the code, once an interrupt came through a text that
    is executed, as dataclasses do it; the next such text makes it forget that.
    """
    exec("")


def _install(handler: Callable[[int, FrameType | None], None]) -> Any:
    """Puts a handler in Python's place; returns what there was, None where it is left as it is."""
    before = signal.getsignal(signal.SIGINT)
    if before not in (signal.default_int_handler, _end):  # ignored behind nohup, or another's
        return None
    try:
        return signal.signal(signal.SIGINT, handler)
    except ValueError:  # not in the main thread
        return None


def _end(_: int, __: FrameType | None) -> None:
    with suppress(OSError):  # nobody listens
        os.write(2, b"stopped\n")
    os._exit(INTERRUPTED)


def _raise(_: int, frame: FrameType | None) -> None:
    _came.set()
    if _is_import(frame):
        _come_again()
    else:
        raise KeyboardInterrupt


def _is_import(frame: FrameType | None) -> bool:
    """Whether what runs is an import, or was called by one."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORT:
            return True
        frame = frame.f_back
    return False


def _report(found: Any, hook: Callable[[Any], object]) -> None:
    """Python's report of an error that nobody can be told; an interrupt comes again instead."""
    if isinstance(found.exc_value, KeyboardInterrupt):
        _come_again()
    else:
        hook(found)


def _come_again() -> None:
    """Interrupts the main thread a moment later."""
    later = threading.Timer(AGAIN, _interrupt)
    later.daemon = True  # or the process would wait for it at its end
    later.start()


def _interrupt() -> None:
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, signal.SIGINT)  # also where it waits for something
    else:  # Windows
        _thread.interrupt_main()
