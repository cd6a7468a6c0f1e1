"""For which kind of device a program is traced: this machine's, unless a plan names another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_target: ContextVar[str] = ContextVar("target", default="")


@contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """While it traces, programs are meant for "tpu", "gpu" or "cpu", whatever traces them."""
    before = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(before)


def target_platform() -> str:
    """Of "tpu", "gpu" and "cpu"."""
    return _target.get() or jax.default_backend()
