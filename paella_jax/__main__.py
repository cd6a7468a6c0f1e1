"""The commands: `python -m paella_jax`, or `paella_jax COMMAND ...` once it is installed."""

from __future__ import annotations

import ast
import difflib
import runpy
import sys
from pathlib import Path

COMMANDS = (
    "train",
    "sample",
    "serve",
    "evaluate",
    "compare",
    "repeat",
    "average",
    "export",
    "convert",
    "benchmark",
    "compile",
    "encode",
    "signals",
    "verify",
)


def summary(command: str) -> str:
    """The first line of a command's docstring, read without importing it."""
    package = Path(__file__).parent
    file = package / f"{command}.py"
    file = file if file.is_file() else package / command / "__main__.py"
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    return text.split("\n\n")[0].split(":")[0].rstrip(".").replace("\n", " ")


def main() -> None:
    """Lists the commands, or runs the one named first."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        sys.argv = [f"paella_jax {name}", *sys.argv[2:]]
        runpy.run_module(f"paella_jax.{name}", run_name="__main__", alter_sys=False)
        return
    lines = [f"  {command:10} {summary(command)}" for command in COMMANDS]
    print("usage: python -m paella_jax.COMMAND ... (--help says more)\n\n" + "\n".join(lines))
    if name not in ("-h", "--help", "help"):
        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        sys.exit(f"error: no command {name!r}; choose one of {', '.join(COMMANDS)}{hint}")


if __name__ == "__main__":
    main()
