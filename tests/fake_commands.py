"""Commands that stand in for a cluster's, in a folder that goes first on PATH."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import small

# What must arrive at paella_jax.train unchanged, however it is started.
ARGUMENTS = ["--config", "paella:tiny", "--workdir", "/runs/with space", "--config.tokenizer=",
             "--config.model.widths=(32, 64)", "--config.data.caption=it's \"red\""]  # fmt: skip

# Notes its arguments; ends with the next of the codes in `codes`, else with 0.
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$FAKE/arguments"
env >"$FAKE/environment"
echo "training, $# arguments"
[ -s "$FAKE/codes" ] || exit 0
code="$(head -n 1 "$FAKE/codes")"
sed -i 1d "$FAKE/codes"
[ "$code" != 143 ] || [ ! -f "$FAKE/preempted" ] || mv "$FAKE/preempted" "$FAKE/state"
exit "$code"
"""


class Fakes:
    """A folder of fake commands; `$FAKE` is where they keep their notes."""

    def __init__(self, folder: Path, **scripts: str):
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        for name, text in {"python": PYTHON, **scripts}.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)

    def run(self, *command: object, cwd: Path | None = None, timeout: int = 60, **environment: str):
        """Runs a command that finds the fakes before the real ones."""
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("SLURM_", "JAX_", "XLA_", "LIBTPU_", "PAELLA_", "TPU_"))
        }
        paths = {"PATH": f"{self.bin}:{os.environ['PATH']}", "FAKE": str(self.folder)}
        return subprocess.run(
            [str(word) for word in command],
            cwd=cwd or self.folder,
            env=kept | paths | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def note(self, name: str) -> list[str]:
        """Lines that a fake command wrote down, none if it was not called."""
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []

    def trained_with(self) -> list[str]:
        """The arguments that paella_jax.train was started with the last time."""
        module, *arguments = self.note("arguments")[1:]
        assert module == "paella_jax.train"
        return arguments


def small_checkout(folder: Path) -> Path:
    """launch/ and pyproject.toml without the rest, which a fake python does not miss."""
    shutil.copytree(small.ROOT / "launch", folder / "launch")
    shutil.copy(small.ROOT / "pyproject.toml", folder)
    return folder
