"""The folder of compiled programs: what was compiled once is read by every later process.

It is on wherever the package loads or trains something, unless the user has chosen one for JAX.
"""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

VARIABLE = "PAELLA_JAX_CACHE"  # a folder, or one of OFF
OFF = ("off", "0", "no", "false")
SHORTEST = 0.2  # seconds; what compiles faster is not worth a file


def keep_programs() -> Path | None:
    """Turns JAX's persistent cache on, in a folder of our own; does nothing where it is on.

    The folder is `~/.cache/paella_jax/programs/VERSION`, of jax and of this kind of processor,
    which XLA compiles for: a home on several machines has one for each. `PAELLA_JAX_CACHE=off`
    turns it off, `PAELLA_JAX_CACHE=FOLDER` moves it; jax's own `JAX_COMPILATION_CACHE_DIR` and
    setting come first.

    Returns:
      The folder; None where it is off, cannot be written, or is the user's own.
    """
    asked = os.environ.get(VARIABLE, "")
    config: Any = jax.config
    if asked.lower() in OFF or config.jax_compilation_cache_dir is not None:
        return None
    folder = _root(asked) / f"jax-{jax.__version__}-{_processor()}"
    try:
        # Whoever can write there can have this process run what they like.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)
    return folder


def _root(asked: str) -> Path:
    if asked:
        return Path(asked).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "paella_jax/programs"


def _processor() -> str:
    """A short name of what this machine's processor understands."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    known = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    text = "\n".join(sorted(set(known or lines[:1])))
    return f"{platform.machine()}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
