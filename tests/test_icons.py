"""The icon benchmark: its data from packages, and the whole of it on a few made-up icons."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import tarfile
from hashlib import sha256

import numpy as np
import pytest
import small
from fake_commands import Fakes
from PIL import Image

from paella_jax.config import load_config
from paella_jax.data.build import make_source

TONE = "1F3FD"
NPM = """#!/usr/bin/env bash
cp "$FAKE"/packages/*.tgz .
"""
# Notes what it trains and scores; is stopped, as by Ctrl-C, while it trains what $STOPPED names.
STOPPABLE = """#!/usr/bin/env bash
for word; do case "$word" in --workdir | --checkpoint) next=1 ;; *)
  [ -z "${next:-}" ] || echo "$2 ${word##*/}" >>"$FAKE/calls"
  next= ;;
esac; done
case "$*" in *"train --config stage_b:"*) sleep 0.5 ;; esac
case "$*" in
  *"train --config $STOPPED:"*) exit 130 ;;
  *"train --config paella:"*) trap 'echo ended >>"$FAKE/calls"; exit 143' TERM; sleep 9 & wait ;;
esac
"""


@pytest.fixture(scope="module")
def icon_shards():
    spec = importlib.util.spec_from_file_location("x", small.ROOT / "launch" / "icon_shards.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def picture(form, seed, size=(8, 8)):
    """A transparent icon with one coloured block."""
    pixels = np.zeros((*size, 4), np.uint8)
    pixels[2:6, 2:6] = [*np.random.default_rng(seed).integers(0, 200, 3), 255]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, lossless=True)
    return file.getvalue()


def write_packages(folder, things):
    """The three packages: every thing in one skin tone too, number 1 not in the third style."""
    folder.mkdir(parents=True)
    code = lambda n: f"{0x1F600 + n:X}-FE0F"
    toned = lambda n: f"{code(n)}-{TONE}"
    entries = [
        {"name": f"THING: no. {n}", "unified": code(n), "category": "Things",
         "skin_variations": {TONE: {"unified": toned(n)}}}
        for n in range(things)
    ]  # fmt: skip
    names = [spelling for n in range(things) for spelling in (code(n), toned(n))]
    files = {"package/emoji.json": json.dumps(entries).encode(), "package/other.txt": b"no icon"}
    google = {
        f"package/img/google/64/{x.lower()}.png": picture("PNG", i) for i, x in enumerate(names)
    }
    twitter = {k.replace("google", "twitter"): v for k, v in google.items()}
    # The third leaves the variation selector out of its names, and its icons are not square.
    fluent = {
        f"package/assets/{x.lower().replace('-fe0f', '')}.webp": picture("WEBP", i, (8, 16))
        for i, x in enumerate(names)
        if code(1) not in x
    }
    for name, inside in (
        ("emoji-datasource-google-16.0.0", files | google),
        ("emoji-datasource-twitter-16.0.0", twitter),
        ("lobehub-fluent-emoji-3d-1.1.0", fluent),
    ):
        with tarfile.open(folder / f"{name}.tgz", "w:gz") as package:
            for path, content in inside.items():
                member = tarfile.TarInfo(path)
                member.size = len(content)
                package.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def shards(icon_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("icons")
    write_packages(folder / "packages", 24)
    icon_shards.main(folder / "packages", folder / "shards")
    return folder / "shards"


def captions(shards, split):
    data = load_config("paella:folder32", [f"data.shards={shards}"]).data
    source = make_source(data, split, 0)
    return [source[n]["caption"] for n in range(len(source))]


def test_every_icon_is_there_once(shards):
    found = [*captions(shards, "train"), *captions(shards, "validation")]
    assert len(found) == len(set(found)) == 24 * 2 * 3 - 2
    assert "google style thing no 1" in found
    assert "fluent style thing no 1" not in found
    assert "fluent style thing no 2 with medium skin" in found


def test_held_back_icons_are_known_things_in_known_styles(shards):
    training, held = (captions(shards, split) for split in ("train", "validation"))
    below = lambda key, n: int(sha256(key.encode()).hexdigest(), 16) % n
    base = [f"{0x1F600 + n:X}-FE0F" for n in range(24)]
    chosen = [n for n in range(24) if n != 1 and below(base[n], 8) == 0]
    toned = [n for n in range(24) if below(base[n] + TONE, 8) == 0]
    assert chosen and toned, "the test's things are such that both happen"
    style = lambda n: ("fluent", "google", "twitter")[below(f"{base[n]}style", 3)]
    expected = {f"{style(n)} style thing no {n}" for n in chosen}
    expected |= {
        f"{s} style thing no {n} with medium skin"
        for n in toned
        for s in ("fluent", "google", "twitter")
        if (n, s) != (1, "fluent")
    }
    assert set(held) == expected
    for n in chosen:
        assert sum(f"style thing no {n}" == text.split(" ", 1)[1] for text in training) == 2


def test_icons_are_square_on_white(icon_shards):
    """The padding is shared out over both sides, above and below or left and right."""
    shown = lambda *size: Image.open(io.BytesIO(icon_shards.on_white(picture("WEBP", 3, size))))
    wide, tall = np.asarray(shown(8, 16)), np.asarray(shown(16, 8))
    assert wide.shape == tall.shape == (64, 64, 3)
    for pixels in (wide, tall.swapaxes(0, 1)):
        assert (pixels[:14] == 255).all() and (pixels[:, -20:] == 255).all()  # and no paint
        assert (pixels[34, 16] < 210).all()


def test_a_missing_package_is_named(icon_shards, tmp_path):
    with pytest.raises(SystemExit, match="emoji-datasource-google"):
        icon_shards.main(tmp_path, tmp_path / "out")


def test_shards_that_are_none_are_refused(tmp_path):
    (tmp_path / "train-0.tar").touch()
    command = [small.ROOT / "launch" / "icons.sh", tmp_path / "out"]
    done = subprocess.run(
        command, env=os.environ | {"SHARDS": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 2 and "holds no heldout*.tar" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stopped", ["vqgan", "stage_b", "stage_c", "paella"])
def test_nothing_is_made_of_a_training_that_was_stopped(tmp_path, stopped):
    """Else Stage C would keep what Stage B was when it was stopped. The other lane ends too."""
    for part in ("train", "heldout"):
        (tmp_path / f"{part}-0.tar").touch()
    fakes = Fakes(tmp_path / "venv", python=STOPPABLE)
    pyproject = (small.ROOT / "pyproject.toml").read_bytes()
    checksum = subprocess.run(["cksum"], input=pyproject, capture_output=True).stdout.decode()
    (tmp_path / "venv" / ".installed").write_text(f"{checksum.strip()} \n")
    done = fakes.run(small.ROOT / "launch" / "icons.sh", tmp_path / "out", STOPPED=stopped,
                     SHARDS=str(tmp_path), PAELLA_VENV=str(tmp_path / "venv"),
                     PAELLA_EXTRA="")  # fmt: skip
    calls = fakes.note("calls")  # the script has waited for what it stopped
    assert done.returncode and f"paella_jax.train {stopped}" in calls
    assert not (tmp_path / "out" / "report.json").exists()
    assert f"paella_jax.evaluate {stopped}" not in calls
    if stopped in ("vqgan", "stage_b"):
        assert "paella_jax.train stage_c" not in calls
    assert ("ended" in calls) == (stopped in ("stage_b", "stage_c"))


def test_a_report_of_runs_without_scores_names_them(tmp_path):
    spec = importlib.util.spec_from_file_location("x", small.ROOT / "launch" / "icon_report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit, match="no scores of vqgan, stage_b, paella, muse, stage_c"):
        module.main(tmp_path, {})


@pytest.mark.slow
def test_the_whole_benchmark(tmp_path):
    """From packages to a report, in a few updates; a second call repeats nothing."""
    fakes = Fakes(tmp_path / "fakes", npm=NPM)
    (fakes.bin / "python").unlink()
    write_packages(fakes.folder / "packages", 116)
    out = tmp_path / "out"
    command = [small.ROOT / "launch" / "icons.sh", out, "--config.num_steps=2",
               "--config.checkpoint.every=2"]  # fmt: skip
    # Most of the time goes into features, which programs without any optimisation take twice as
    # long for; with all of it, small trainings compile for as long again.
    flags = "--xla_backend_optimization_level=1"
    run = lambda: fakes.run(*command, timeout=900, PRESET="tiny", XLA_FLAGS=flags)
    done = run()
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((out / "report.json").read_text())
    assert set(report["runs"]) == {"vqgan", "stage_b", "paella", "muse", "stage_c"}
    for name in ("paella", "muse", "stage_c"):
        assert (out / name / "scores.png").is_file()
        row = report["runs"][name]["rows"][0]
        assert {"retrieval_five", "group_right", "blank", "kid"} <= set(row)
    assert {"fetch", "vqgan", "paella", "muse", "stage_b", "stage_c"} <= set(report["seconds"])
    table = (out / "report.md").read_text()
    assert "R@5 of 64" in table and "stage_c" in table
    assert "already done" in run().stdout
