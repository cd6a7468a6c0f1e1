"""The house's one-way imports, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import small

PACKAGE = small.ROOT / "paella_jax"
# Each room imports only from rooms before it.
ORDER = ("outside", "fields", "config", "typing", "files", "images", "ops", "noise", "models",
         "data", "sampling", "objectives", "encoders", "runs", "sharing", "training", "families",
         "pipelines", "convert", "evaluation", "reports", "registry", "compile", "speed",
         "comparison", "seeds", "serving", "cli", "commands")  # fmt: skip
# What converts weights knows nothing of what draws from them.
STRANGERS = {"convert": {"pipelines"}}
COMMANDS = {"train", "sample", "evaluate", "compare", "repeat", "average", "export", "benchmark",
            "encode", "signals", "serve", "verify", "compile.__main__", "convert.__main__",
            "__main__"}  # fmt: skip
FORBIDDEN = ("torch", "tensorflow", "flax.nnx", "sklearn")


@cache
def modules() -> dict[str, Path]:
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(p for p in parts if p != "__init__") or "__init__"] = file
    return found


def imported(file: Path, top_only: bool = False) -> set[str]:
    """Full names of everything a file imports, also inside functions."""
    names: set[str] = set()
    tree = ast.parse(file.read_text())
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def own(file: Path, **kwargs) -> set[str]:
    """Our modules among them, without the package's name."""
    known = modules()
    names = {n.removeprefix("paella_jax.") for n in imported(file, **kwargs) if "paella_jax." in n}
    return {n for n in names if n in known and known[n].name != "__init__.py"}


def room_of(name: str) -> str:
    """The room of a module, the command line's entries being one."""
    return "commands" if name in COMMANDS else name.split(".")[0]


def test_every_module_has_a_room():
    rooms = {room_of(name) for name in modules()} - {"__init__"}
    assert rooms == set(ORDER)


@pytest.mark.parametrize("room", ORDER)
def test_rooms_import_one_way(room):
    before = set(ORDER[: ORDER.index(room)]) - STRANGERS.get(room, set())
    allowed = before if room == "commands" else before | {room}
    for name, file in modules().items():
        if room_of(name) == room:
            for target in own(file):
                assert room_of(target) in allowed, f"paella_jax.{name} imports paella_jax.{target}"


def test_the_library_imports_no_configs():
    for name, file in modules().items():
        roots = {target.split(".")[0] for target in imported(file)}
        assert "configs" not in roots, name


def test_no_cycles():
    graph = {name: own(file) for name, file in modules().items()}
    done = set()

    def visit(name, path):
        assert name not in path, f"import cycle: {' -> '.join([*path, name])}"
        if name in done:
            return
        for target in graph[name]:
            visit(target, [*path, name])
        done.add(name)

    for name in graph:
        visit(name, [])


def test_forbidden_packages():
    for name, file in modules().items():
        for target in imported(file):
            hit = [f for f in FORBIDDEN if target == f or target.startswith(f"{f}.")]
            assert not hit, f"paella_jax.{name} imports {target}"


def test_only_entries_read_the_command_line():
    for name, file in modules().items():
        if name not in {*COMMANDS, "cli"}:
            assert "argparse" not in imported(file), name
            assert "absl.app" not in imported(file), name


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, paella_jax; "
        "print([m for m in ('jax', 'flax', 'numpy', 'matplotlib', 'PIL') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=small.ROOT)
    assert result.stdout.strip() == "[]"


# room -> the packages outside the standard library it may use
OUTSIDE = {
    "ops": {"jax", "numpy", "einops"},
    "noise": {"jax"},
    "sampling": {"jax", "numpy", "flax"},
    "convert": {"jax", "numpy", "flax", "ml_collections", "safetensors", "tqdm"},
    "files": {"jax", "numpy", "flax", "safetensors"},
}


@pytest.mark.parametrize("room", OUTSIDE)
def test_pure_rooms_use_few_packages(room):
    for name, file in modules().items():
        if name.startswith(f"{room}."):
            roots = {target.split(".")[0] for target in imported(file)}
            extra = roots - OUTSIDE[room] - {"paella_jax"} - sys.stdlib_module_names
            assert not extra, f"paella_jax.{name} imports {sorted(extra)}"


def test_imports_are_absolute():
    """Relative imports would escape every test above."""
    for name, file in modules().items():
        nodes = ast.walk(ast.parse(file.read_text()))
        assert not [n for n in nodes if isinstance(n, ast.ImportFrom) and n.level], name
