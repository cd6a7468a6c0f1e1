"""The notebooks of colab/: stored without outputs, and run from the first cell to the last."""

from __future__ import annotations

import ast
import json
import os

import pytest
import small
import small_clip
from small_amused import write_amused

# In this order: the first one trains what the others load.
PICTURES = {
    "quickstart": 3,
    "image_tasks": 9,
    "finetune_your_images": 2,
    "wuerstchen": 2,
    "muse_vs_paella": 1,
    "released_weights": 2,
    "tpu_training": 1,
}
FOLDER = small.ROOT / "colab"
UNWANTED = ("warning", "error", "traceback", "deprecat")


def cells_of(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]


def test_every_notebook_is_known():
    assert {file.stem for file in FOLDER.glob("*.ipynb")} == set(PICTURES)


@pytest.mark.parametrize("name", PICTURES)
def test_a_notebook_is_stored_clean(name):
    cells = cells_of(name)
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    assert all(cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")
    assert code[:2] == ["".join(cell["source"]) for cell in cells_of("quickstart")[1:3]]
    for text in code[1:]:
        ast.parse(text)  # no shell and no magic after the install cell: JAX warns of forks


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "clip").mkdir()
    write_amused(folder / "amused", small_clip.write_clip_folder(folder / "clip"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_a_notebook_runs(name, home, monkeypatch):
    """Every cell, as a user would see it: no error, no warning, and its pictures."""
    client = pytest.importorskip("nbclient", reason="needs pip install 'paella_jax[notebooks]'")
    import nbformat

    cache = {"JAX_COMPILATION_CACHE_DIR": str(home / "programs"), "JAX_PLATFORMS": "cpu"}
    shown = {"PAELLA_TINY": "1", "PAELLA_RUNS": "runs", "PAELLA_RELEASED": "amused"}
    shown["XDG_CACHE_HOME"] = str(home / "cache")
    for key, value in (small.COMPILE_CHEAPLY | cache | shown).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("PYTHONPATH", f"{small.ROOT}:{os.environ.get('PYTHONPATH', '')}")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    place = {"metadata": {"path": str(home)}}
    client.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    told = "".join(out.get("text", "") for out in outputs)
    assert not [line for line in told.splitlines() if any(w in line.lower() for w in UNWANTED)]
    pictures = [out for out in outputs if _has_picture(out.get("data", {}))]
    assert len(pictures) >= PICTURES[name]


def _has_picture(data):
    return "image/png" in data or "<img" in data.get("text/html", "")
