"""`~` is the home folder in every path that a caller gives, as it is in flags and configs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import small
from PIL import Image

import paella_jax
from paella_jax.config import CheckpointError
from paella_jax.images.plots import save_curves
from paella_jax.images.png import read_png_texts, save_png
from paella_jax.images.read import read_classes, read_image, read_mask, read_rgb
from paella_jax.images.write import save_gif, save_grid
from paella_jax.outside import expanded
from paella_jax.pipelines.drawn_images import Images
from paella_jax.pipelines.records import name_of
from paella_jax.sharing.hub import HubError, push_to_hub


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with an image and a map in it, seen from a folder that has nothing."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2] = 255
    Image.fromarray(pixels).save(home / "a.png")
    np.save(home / "map.npy", np.ones((4, 4), np.int32))
    yield home
    assert not list(elsewhere.iterdir()), "a folder named ~ was made"


def test_what_is_read(home):
    assert read_rgb("~/a.png").size == (4, 4)
    assert read_image(Path("~/a.png")).shape == (4, 4, 3)
    assert read_mask("~/a.png").sum() == 8
    assert read_classes("~/map.npy").sum() == 16
    assert name_of("~/a.png") == name_of(home / "a.png")
    with pytest.raises(HubError, match=f"{home}/shared is no shared folder"):
        push_to_hub("~/shared", "me/mine")


def test_what_is_written(home):
    pixels = np.zeros((1, 4, 4, 3), np.float32)
    record = {"prompt": "a", "negative_prompt": "", "seed": 0, "number": 0, "settings": {}}
    Images([Image.new("RGB", (4, 4))], [record]).save("~/circles")
    save_png("~/own.png", np.zeros((4, 4, 3), np.uint8), {"prompt": "a"})
    save_grid("~/grid.png", pixels)
    save_gif("~/movie.gif", np.zeros((2, 4, 4, 3), np.float32))
    save_curves("~/curves.png", {"a": {"b": ([1, 2], [1, 2])}})
    assert read_png_texts("~/own.png") == {"prompt": "a"}
    made = {file.name for file in home.iterdir()}
    assert made >= {"circles", "own.png", "grid.png", "movie.gif", "curves.png"}
    assert [file.name for file in (home / "circles").iterdir()] == ["00000.png"]


def test_runs_are_loaded_and_saved(home):
    """Options that name runs too."""
    small.untrained(home / "run", small.small_paella())
    pipe = paella_jax.load("~/run")
    pipe.save("~/shared")
    with pytest.raises(CheckpointError, match=f"{home}/none"):
        paella_jax.load("~/run", decoder="~/none")
    assert (home / "shared" / "config.json").is_file()
    assert type(paella_jax.load("~/shared")) is type(pipe)


def test_names_that_only_begin_with_a_tilde_stay(home):
    assert expanded("~nobody_of_this_name.png").name == "~nobody_of_this_name.png"
    assert str(expanded("a/~/b")) == os.path.join("a", "~", "b")
