"""Names from files, tables, folders and the hub control no terminal, wherever they are shown."""

from __future__ import annotations

import ast
import sys
from types import SimpleNamespace

import small

from paella_jax.outside import escaped_lines, say
from paella_jax.pipelines.prompt_file import SETTINGS
from paella_jax.pipelines.rows_by_flags import check_rows
from paella_jax.training.metrics import report

PACKAGE = small.ROOT / "paella_jax"
SAFE = {"escaped", "escaped_lines"}  # what a printed text goes through
# What else prints: no names but its own, JSON (which escapes them), or pages of reports/.
OTHERS = {"outside.py", "__main__.py", "benchmark.py", "evaluate.py", "compile/__main__.py",
          "speed/run.py", "training/watchdog.py", "training/pulse.py"}  # fmt: skip
RED = "a\033[31mred\u202e"


def is_plain(argument):
    """A text that is in the program itself, or one that went through `escaped`."""
    if isinstance(argument, ast.JoinedStr):
        return all(is_plain(part) for part in argument.values)
    if isinstance(argument, ast.FormattedValue):
        return is_plain(argument.value)
    name = getattr(argument, "func", None)
    return isinstance(argument, ast.Constant) or getattr(name, "id", "") in SAFE


def bare_prints(file):
    """Lines of a file that print what may be a name, as it is."""
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    return [
        f"{file.relative_to(PACKAGE)}:{call.lineno}"
        for call in calls
        if getattr(call.func, "id", "") == "print" and not all(map(is_plain, call.args))
    ]


def test_what_shows_names_escapes_them():
    """`say` does, and `escaped_lines` of a text that has lines of its own."""
    inside = {file.relative_to(PACKAGE).as_posix(): file for file in PACKAGE.rglob("*.py")}
    files = [file for name, file in inside.items()
             if name not in OTHERS]  # fmt: skip
    found = [line for file in files for line in bare_prints(file)]
    assert found == []


def test_columns_without_effect_are_told(tmp_path, capsys):
    table = tmp_path / "prompts.csv"
    table.write_text(f"prompt,{RED}\na circle,1\n")
    flags = {"prompts": str(table), "prompt": [], "out": "x", "strip": False, "seed": 0,
             "negative_prompt": "", "num_images_per_prompt": 1}  # fmt: skip
    assert check_rows(SimpleNamespace(**dict.fromkeys(SETTINGS), **flags)) == 1
    told = capsys.readouterr().err
    assert told == f"{table}: columns without effect: a\\x1b[31mred\\u202e\n"


def test_lines_on_a_run_and_on_a_folder(capsys):
    report(f"resuming {RED}\nand more")
    say(f"loading {RED}\nmore", sys.stderr)
    shown = capsys.readouterr()
    assert shown.out == "resuming a\\x1b[31mred\\u202e\nand more\n"
    assert shown.err == "loading a\\x1b[31mred\\u202e\\nmore\n"
    assert escaped_lines(f"{RED}\n| b |") == "a\\x1b[31mred\\u202e\n| b |"
