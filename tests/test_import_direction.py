"""The house's one-way imports, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import small

PACKAGE = small.ROOT / "paella_jax"
# room -> rooms it may import besides itself (and paella_jax.config, which imports nothing of ours)
ALLOWED = {
    "ops": set(),
    "noise": {"ops"},
    "models": {"ops"},
    "encoders": {"models", "ops"},
    "convert": {"models", "encoders"},
    "sampling": {"noise", "ops"},
    "objectives": {"noise", "ops", "models.conditioning"},
    "data": set(),
    "evaluation": {"data", "noise"},
    "training": {
        "data",
        "noise",
        "objectives",
        "ops",
        "convert.safetensors_file",
        "convert.tensors",
    },
}
TOP_LEVEL_USERS = {
    "convert.plan": {"families", "training"},
    "convert.frozen": {"families", "noise", "training"},
    "convert.run_folder": {"training"},
    "convert.combine": {"families", "training"},
    "convert.export": {"families", "training"},
    "convert.__main__": {"launch"},
    "evaluation.report": {"loading", "training"},
    "evaluation.classifier": {"models", "training"},
    "evaluation.comparison_report": {"training"},
    "evaluation.sweep": {"pipeline", "training"},
    "evaluation.task_examples": {"pipeline", "editing", "conditions"},
    "evaluation.stages": {"families", "training", "wuerstchen_pipeline"},
    "evaluation.sampling_speed": {"models", "sampling"},
    "evaluation.wuerstchen_speed": {"models", "sampling", "encoders"},
}
ENTRIES = {"train", "compare", "sample", "evaluate", "benchmark", "compile", "average",
           "convert.__main__"}  # fmt: skip
FORBIDDEN = ("torch", "tensorflow", "flax.nnx", "sklearn")


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


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_one_way(room):
    checked = 0
    for name, file in modules().items():
        if not name.startswith(f"{room}."):
            continue
        checked += 1
        allowed = ALLOWED[room] | {room, "config"} | TOP_LEVEL_USERS.get(name, set())
        for target in own(file):
            fits = any(target == a or target.startswith(f"{a}.") for a in allowed)
            assert fits, f"paella_jax.{name} imports paella_jax.{target}"
    assert checked


def test_no_cycles():
    graph = {name: own(file) for name, file in modules().items()}

    def visit(name, path):
        assert name not in path, f"import cycle: {' -> '.join([*path, name])}"
        for target in graph[name]:
            visit(target, [*path, name])

    for name in graph:
        visit(name, [])


def test_forbidden_packages():
    for name, file in modules().items():
        for target in imported(file):
            hit = [f for f in FORBIDDEN if target == f or target.startswith(f"{f}.")]
            assert not hit, f"paella_jax.{name} imports {target}"


def test_only_entries_read_the_command_line():
    for name, file in modules().items():
        if name not in ENTRIES:
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
    "ops": {"jax", "einops"},
    "noise": {"jax"},
    "sampling": {"jax", "numpy", "flax"},
    "convert": {"jax", "numpy", "safetensors"},
}


@pytest.mark.parametrize("room", OUTSIDE)
def test_pure_rooms_use_few_packages(room):
    for name, file in modules().items():
        if name.startswith(f"{room}.") and name not in TOP_LEVEL_USERS:
            roots = {target.split(".")[0] for target in imported(file)}
            extra = roots - OUTSIDE[room] - {"paella_jax"} - sys.stdlib_module_names
            assert not extra, f"paella_jax.{name} imports {sorted(extra)}"


def test_imports_are_absolute():
    """Relative imports would escape every test above."""
    for name, file in modules().items():
        nodes = ast.walk(ast.parse(file.read_text()))
        assert not [n for n in nodes if isinstance(n, ast.ImportFrom) and n.level], name
