"""`python -m paella_jax.serve` before it serves: what it says of wrong flags, files and runs."""

from __future__ import annotations

import socket
import warnings

import pytest
import small
from PIL import Image

from paella_jax import serve
from paella_jax.config import UserError, to_json


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder that looks like a run, and the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(to_json(small.small_paella()))
    monkeypatch.setattr(serve, "has_gradio", lambda: True)
    monkeypatch.setattr(serve, "setup_jax", lambda: None)
    return tmp_path


def call(monkeypatch, flags):
    monkeypatch.setattr("sys.argv", ["serve", *flags.split()])
    return serve.main()


def test_gradio_is_named_where_it_is_missing(run, monkeypatch):
    monkeypatch.setattr(serve, "has_gradio", lambda: False)
    with pytest.raises((UserError, ValueError), match=r"pip install 'paella_jax\[demo\]'"):
        call(monkeypatch, "--checkpoint first")


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--checkpoint first " * 3, "one --checkpoint or two"),
        ("--checkpoint first --super_resolution a --super_resolution b", "no more enlargers"),
        ("--checkpoint absent", "absent"),
        ("--checkpoint first --port 70000", "--port must be from 0 to 65535"),
        ("--checkpoint first --most_images 0", "--most_images must be from 1 to 256, got 0"),
        ("--checkpoint first --seed -1", "--seed must be from 0"),
        ("--checkpoint first --prompts file", "give --checkpoint twice"),
        ("--checkpoint first --checkpoint second --prompts file --port 0", "file"),
    ],
)
def test_wrong_flags(run, monkeypatch, flags, message):
    with pytest.raises((UserError, ValueError), match=message):
        call(monkeypatch, flags)


def test_a_taken_port_is_told_before_a_run_is_loaded(run, monkeypatch):
    """The run has no weights: loading it would be the other error."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises((UserError, ValueError), match=f"port {port} is taken"):
            call(monkeypatch, f"--checkpoint first --port {port}")


def test_a_study_s_file_is_checked_before_a_run_is_loaded(run, monkeypatch):
    (run / "prompts.txt").write_text("a cat\n")
    (run / "votes.sqlite").write_text("no database at all\n" * 100)
    two = "--checkpoint first --checkpoint second --prompts prompts.txt --port 0"
    with pytest.raises((UserError, ValueError), match="no study, or a damaged one"):
        call(monkeypatch, f"{two} --study votes.sqlite")


def test_images_are_bounded_before_a_page_is_built(run, monkeypatch):
    """The page's library decodes what visitors send before any check of ours."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back afterwards

    def load_runs(_):
        raise UserError(f"loading with {Image.MAX_IMAGE_PIXELS}")

    monkeypatch.setattr(serve, "load_runs", load_runs)
    with warnings.catch_warnings(), pytest.raises(UserError, match=f"with {4096 * 4096 // 2}"):
        call(monkeypatch, "--checkpoint first --port 0")
