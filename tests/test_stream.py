"""Many prompts into one folder: what is drawn stays, nothing is held, images say what they are."""

from __future__ import annotations

import argparse
import json
from itertools import count, islice
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import small
from ml_collections import ConfigDict
from PIL import Image

import paella_jax
from paella_jax import sample as sample_command
from paella_jax.encoders.byte_tokenizer import PromptError
from paella_jax.files.tensors import ConversionError
from paella_jax.images.png import read_png_texts, save_png, tiled
from paella_jax.pipelines import load, rows_by_flags
from paella_jax.pipelines.best_of import best
from paella_jax.pipelines.gallery import MANIFEST, RECORD, Gallery, GalleryError
from paella_jax.pipelines.prompt_file import Row
from paella_jax.pipelines.rows_by_flags import RECORDED, RECORDED_FILES, Recorder
from paella_jax.pipelines.run_digests import run_digest
from paella_jax.pipelines.stream import (
    MOST_WAITING,
    Drawing,
    batches,
    draw_rows,
)

RED, BLUE = "a large red circle at the top left", "a large blue circle at the bottom right"


CONFIG = SimpleNamespace(method="tokens")


class Painter:
    """Draws at once: an image's pixels come from its prompt, seed and number."""

    config = ConfigDict({"sampler": {"num_steps": 3, "guidance_scale": (2.0, 2.0)}})

    def __init__(self, weight: float = 1.0) -> None:
        self.weight, self.calls, self.stop_after = weight, [], 10**9

    def parts(self):
        return {"": (self.config, {"w": np.full(3, self.weight)})}

    def check_settings(self, *, height=None, **settings):
        if height not in (None, 4):
            raise ValueError("height must be 4")

    def cut_text(self, text):
        return text[:60]

    def text_lengths(self, texts):
        if max(map(len, texts)) > 60:
            raise PromptError("prompt 0 has 61 ids but the limit is 60; shorten it")
        return ()

    def generate(self, prompts, *, seed, num_images_per_prompt, **options):
        if len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append((len(prompts), options))
        drawn = [
            np.random.default_rng([len(getattr(p, "prompt", p)), s, n]).random(
                (4, 6, 3), np.float32
            )
            for p, s in zip(prompts, seed, strict=True)
            for n in range(num_images_per_prompt)
        ]
        return SimpleNamespace(images=np.stack(drawn))


def run(monkeypatch, pipe, *flags):
    """The command with a pipeline that is loaded already; returns its exit code."""
    monkeypatch.setattr(load, "load", lambda *_, **__: pipe)
    monkeypatch.setattr("paella_jax.pipelines.flag_checks.read_config", lambda _: CONFIG)
    monkeypatch.setattr(sample_command, "setup_jax", lambda: None)
    monkeypatch.setattr("sys.argv", ["sample", "--checkpoint", "RUN", *map(str, flags)])
    return sample_command.main()


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.csv"
    lines = [f"a picture of {'x' * n},{'' if n else 7}" for n in range(7)]
    file.write_text("prompt,seed\n" + "\n".join(lines) + "\n")
    return file


def manifest(folder):
    return [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]


def images(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.png"))}


def test_a_folder_says_what_each_image_is(monkeypatch, tmp_path, prompts):
    out = tmp_path / "new" / "folder"
    run(monkeypatch, Painter(), "--prompts", prompts, "--out", out, "--batch_size", 3, "--seed", 5,
        "--negative_prompt", "grün ☂", "--guidance_scale", 4)  # fmt: skip
    lines = manifest(out)
    assert [line["file"] for line in lines] == [f"{n:05d}.png" for n in range(7)]
    assert [line["seed"] for line in lines] == [7, 6, 7, 8, 9, 10, 11]
    assert lines[2]["prompt"] == "a picture of xx" and lines[2]["negative_prompt"] == "grün ☂"
    assert lines[2]["settings"] == {"num_steps": 3, "guidance_scale": [4.0, 4.0]}
    texts = read_png_texts(out / "00002.png")
    assert texts["prompt"] == "a picture of xx" and texts["seed"] == "7"
    assert texts["negative_prompt"] == "grün ☂" and json.loads(texts[RECORD]) == lines[2]
    with Image.open(out / "00002.png") as image:
        assert image.size == (6, 4)


def test_an_image_is_of_what_is_in_the_files_that_were_given(tmp_path):
    maps, judge = tmp_path / "map.npy", tmp_path / "judge"
    judge.mkdir()
    (judge / "notes.txt").write_text("no weights")
    weights = judge / "model.safetensors"
    weights.write_bytes(bytes(100_000))
    np.save(maps, np.zeros((4, 6), np.uint8))
    flags = argparse.Namespace(**dict.fromkeys((*RECORDED, *RECORDED_FILES)),
                               num_images_per_prompt=1)  # fmt: skip
    flags.segmentation, flags.score_with = maps, judge
    record = lambda: Recorder(Painter(), flags).of(Row("", "a", "", 0, "a.png", ()))["settings"]
    first = record()
    assert first["segmentation"].startswith("map.npy ") and "prior" not in first
    (judge / "notes.txt").write_text("another note")
    assert record() == first
    np.save(maps, np.ones((4, 6), np.uint8))
    other = record()
    assert other["segmentation"] != first["segmentation"]
    assert other["score_with"] == first["score_with"]
    weights.write_bytes(bytes(99_999) + b"x")
    assert record()["score_with"] != first["score_with"]


def test_zero_is_a_flag_that_was_given():
    given = [0, 0.0, "red", ["a"], True, False, None, "", []]
    assert [x for x in given if sample_command._is_given(x)] == [0, 0.0, "red", ["a"], True]


def test_a_stopped_call_goes_on(monkeypatch, tmp_path, prompts, capsys):
    """What was drawn stays as it is; a line cut in two costs nothing, a lost image is redrawn."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    flags = ("--prompts", prompts, "--batch_size", 2, "--num_images_per_prompt", 2, "--out")
    run(monkeypatch, Painter(), *flags, whole)
    stopped = Painter()
    stopped.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, stopped, *flags, out)
    assert len(images(out)) == 6
    (out / "00000_1.png").unlink()
    text = (out / MANIFEST).read_bytes()
    (out / MANIFEST).write_bytes(text[:-20])  # of 00002_1.png
    before = (out / "00002_1.png").stat().st_mtime_ns
    other = Painter()
    run(monkeypatch, other, *flags, out)
    assert images(out) == images(whole)
    assert len(other.calls) == 1 + 4 and (out / "00002_1.png").stat().st_mtime_ns == before
    assert "2 of 7 prompts are drawn already" in capsys.readouterr().err
    assert {line["file"] for line in manifest(out)} == set(images(out))
    again = Painter()
    run(monkeypatch, again, *flags, out)
    assert not again.calls


@pytest.mark.parametrize(
    "weight, flags, message",
    [
        (2.0, (), "holds images of another run"),
        (1.0, ("--guidance_scale", 3), r"00000\.png was drawn with guidance_scale \[2"),
        (1.0, ("--negative_prompt", "b"), r"00000\.png was drawn with negative_prompt ''"),
        (1.0, ("--seed", 1), r"00001\.png was drawn with seed 1, this call asks for 2"),
    ],
)
def test_a_folder_of_something_else_is_refused(
    monkeypatch, tmp_path, prompts, weight, flags, message
):
    out = tmp_path / "out"
    run(monkeypatch, Painter(), "--prompts", prompts, "--out", out)
    before, pipe = images(out), Painter(weight)
    with pytest.raises(GalleryError, match=message):
        run(monkeypatch, pipe, "--prompts", prompts, "--out", out, *flags)
    assert images(out) == before and not pipe.calls
    run(monkeypatch, pipe := Painter(), "--prompts", prompts, "--out", out, "--guidance_scale", 2)
    assert not pipe.calls  # the run's own guidance, said aloud


def test_images_of_others_are_left_alone(monkeypatch, tmp_path, prompts):
    out = tmp_path / "out"
    out.mkdir()
    save_png(out / "00003.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(GalleryError, match=r"00003\.png is there already and no image of such"):
        run(monkeypatch, Painter(), "--prompts", prompts, "--out", out)


def test_one_process_draws_into_a_folder(tmp_path):
    with (
        Gallery(tmp_path, "run"),
        pytest.raises(GalleryError, match="another process draws into"),
    ):
        Gallery(tmp_path, "run")
    (tmp_path / MANIFEST).write_text("no json\n")
    with pytest.raises(GalleryError, match="line 1 is damaged"):
        Gallery(tmp_path, "run")


def test_a_full_disk_is_told(monkeypatch, tmp_path, prompts):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("paella_jax.pipelines.gallery.save_png", full)
    with pytest.raises(GalleryError, match=r"cannot write .*00000\.png: No space left on device"):
        run(monkeypatch, Painter(), "--prompts", prompts, "--out", tmp_path / "out")


def row(number, **settings):
    return Row(f"row {number}", f"p{number}", "", number, f"{number}.png", tuple(settings.items()))


def test_rows_are_taken_as_they_are_drawn():
    """An endless file is no trouble: a batch is drawn before the next rows are looked at."""
    taken = []
    rows = (taken.append(n) or row(n) for n in count())
    drawn = draw_rows(Painter(), rows, Drawing(batch_size=4))
    assert [image.row.seed for image in islice(drawn, 9)] == list(range(9))
    assert len(taken) == 12
    held = []
    kinds = (held.append(n) or row(n, num_steps=n) for n in count())
    next(draw_rows(Painter(), kinds, Drawing(batch_size=4)))
    assert len(held) <= 4 * MOST_WAITING


def test_rows_of_equal_settings_are_drawn_together():
    rows = [row(n, num_steps=n % 2) for n in range(7)]
    found = [[r.seed for r in batch] for batch in batches(rows, 2, lambda r: r.settings)]
    assert found == [[0, 2], [1, 3], [4, 6], [5]]
    pipe = Painter()
    list(draw_rows(pipe, rows, Drawing(batch_size=4, copies=2)))
    assert [size for size, _ in pipe.calls] == [2] * 4  # the last batch is filled up
    assert [options["num_steps"] for _, options in pipe.calls] == [0, 1, 0, 1]


def test_a_size_the_run_cannot_draw_is_told_before_drawing(monkeypatch, tmp_path):
    file, pipe = tmp_path / "p.csv", Painter()
    file.write_text("prompt,height\na,4\nb,\nc,5\n")
    with pytest.raises(PromptError, match="row 3: height must be 4"):
        run(monkeypatch, pipe, "--prompts", file, "--out", tmp_path / "out", "--batch_size", 1)
    assert not pipe.calls


def test_too_long_prompts_are_told_before_drawing(monkeypatch, tmp_path, capsys):
    file, pipe = tmp_path / "p.txt", Painter()
    file.write_text("short\n" + "x" * 61 + "\n" + "y" * 80 + "\n")
    flags = ("--prompts", file, "--out", tmp_path / "out")
    with pytest.raises(
        PromptError, match=r"line 2: prompt has 61 ids .* \(and 1 more\), or give --cut"
    ):
        run(monkeypatch, pipe, *flags)
    assert not pipe.calls
    run(monkeypatch, pipe, *flags, "--cut_long_prompts")
    assert "2 prompts are longer than this run reads and were cut" in capsys.readouterr().err
    assert [line["prompt"] for line in manifest(tmp_path / "out")] == ["short", "x" * 60, "y" * 60]


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--prompt a --out file", "is a file; give a folder"),
        ("--prompt a --out folder.png", "is a folder; give a file name"),
        ("--prompt a --out file/a.png", "cannot write .*file is a file"),
        ("--prompt a --out /proc/none/a.png", "cannot write /proc/none"),
        ("--prompt a --out a.jpg", r"must be a \.png"),
        ("--prompt a --out new --captions", r"--captions needs a \.png"),
        ("--prompt= --out a.png", "prompt 0 is empty"),
        ("--negative_prompt a", "nothing to draw"),
        ("--prompts none --out o", "is not a file"),
        ("--prompts p.txt --to b", "does not go with --to"),
        ("--prompts p.txt --prompt a", "not both"),
        ("--prompts many.txt --out a.png", "cannot hold 1025 images"),
        ("--prompt a --image file", "is not a readable image"),
        ("--prompt a --best_of 4", "needs --score_with"),
        ("--prompt a --best_of 4 --score_with .", "no folder with a config.json"),
        ("--prompt a --num_steps 0", "--num_steps must be from 1"),
        ("--prompt a --guidance_scale nan", "--guidance_scale must be a finite"),
        ("--prompt a --emphasis red=1,2", "must be PHRASE=FACTOR"),
        ("--prompt a --stepper ddim", "belongs to Würstchen"),
    ],
)
def test_mistakes_are_told_before_loading(monkeypatch, tmp_path, flags, message):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "p.txt").write_text("a\n")
    (tmp_path / "many.txt").write_text("a\n" * 1025)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, ConversionError), match=message):
        run(monkeypatch, None, *flags.split())  # None: what comes to drawing ends in another error
    assert sorted(tmp_path.rglob("*")) == before


def test_one_file_holds_the_image_itself(monkeypatch, tmp_path):
    """One image is written as it is, several side by side; captions frame and enlarge them."""
    out = tmp_path / "cat.png"

    def drawn(*flags):
        run(monkeypatch, Painter(), "--prompt", "a cat", "--seed", 9, "--out", out, *flags)
        with Image.open(out) as image:
            return np.asarray(image), read_png_texts(out)

    pixels, texts = drawn()
    assert pixels.shape == (4, 6, 3) and (texts["prompt"], texts["seed"]) == ("a cat", "9")
    assert json.loads(texts[RECORD])["settings"]["num_steps"] == 3
    several, texts = drawn("--num_images_per_prompt", 3)
    assert several.shape == (8, 12, 3) and (several[4:, 6:] == 255).all()
    np.testing.assert_array_equal(several[:4, :6], pixels)
    assert [image["number"] for image in json.loads(texts[RECORD])["images"]] == [0, 1, 2]
    framed, texts = drawn("--captions")
    assert framed.shape[0] > 96 and texts["prompt"] == "a cat"
    with pytest.raises(ValueError, match="images of one size"):
        tiled([np.zeros((2, 2, 3), np.uint8), np.zeros((2, 4, 3), np.uint8)])


def test_the_best_of_several_is_kept(monkeypatch, tmp_path):
    score = lambda images, prompts: images.mean((1, 2, 3))
    judge = SimpleNamespace(score=score)
    monkeypatch.setattr(rows_by_flags, "load_clip_judge", lambda folder: judge)
    (tmp_path / "config.json").touch()
    flags = ("--prompt", "a cat", "--best_of", 5, "--score_with", tmp_path, "--out")
    run(monkeypatch, Painter(), *flags, tmp_path / "out")
    (line,) = manifest(tmp_path / "out")
    every = Painter().generate(["a cat"], seed=[0], num_images_per_prompt=5).images
    brightest = int(every.mean((1, 2, 3)).argmax())
    assert line["number"] == brightest and line["settings"]["best_of"] == 5
    assert line["score"] == pytest.approx(every[brightest].mean() * 255, abs=0.5)
    with Image.open(tmp_path / "out" / line["file"]) as image:
        np.testing.assert_allclose(np.asarray(image) / 255.0, every[brightest], atol=1 / 255)
    run(monkeypatch, pipe := Painter(), *flags, tmp_path / "out")
    assert not pipe.calls
    with pytest.raises(ValueError, match="one finite number each"):
        best(lambda *_: np.array([np.nan]), every[:1], ["a"])


@pytest.fixture(scope="module")
def pipeline(shared_runs):
    return paella_jax.load(str(shared_runs.trained(small.brief_paella())))


@pytest.mark.slow
def test_an_image_depends_on_its_row_alone(pipeline):
    """The same bits in batches of one and of three, beside a prompt of another padded length."""
    long = f"{RED} and {BLUE} and {RED} and {BLUE}"
    lengths = {pipeline.text_lengths([text, ""]) for text in (RED, BLUE, long)}
    assert len(lengths) == 2
    rows = [
        Row("", text, "", seed, f"{seed}.png") for seed, text in enumerate((RED, long, BLUE, RED))
    ]
    drawn = lambda size, order: {
        image.row.seed: image.image
        for image in draw_rows(pipeline, rows[::order], Drawing(batch_size=size))
    }
    alone, together = drawn(1, 1), drawn(3, -1)
    for seed in range(4):
        np.testing.assert_array_equal(alone[seed], together[seed])
    assert (alone[0] != alone[3]).any()


def test_settings_are_checked_as_in_drawing(pipeline):
    pipeline.check_settings(height=16, width=48, num_steps=2, guidance_scale=1.0)
    for wrong in ({"height": 17}, {"temperature": -1.0}):
        messages = set()
        for call in (pipeline.check_settings, lambda **x: pipeline.generate(RED, **x)):
            with pytest.raises(ValueError) as error:
                call(**wrong)
            messages.add(str(error.value))
        assert len(messages) == 1


def test_a_run_is_known_by_its_weights(pipeline, monkeypatch):
    digest = run_digest(pipeline.parts())
    assert digest == run_digest(pipeline.parts())
    params, name = pipeline.params, sorted(pipeline.params)[0]
    change = lambda x: x.at[(0,) * x.ndim].add(1.0)
    other = dict(params) | {name: jax.tree.map(change, params[name])}
    monkeypatch.setattr(pipeline, "params", other)
    assert run_digest(pipeline.parts()) != digest


class TwoPainters(Painter):
    """Draws as two runs do: the part without a name enlarges what the base drew."""

    defaults = {"num_steps": 12, "guidance_scale": (2.0, 2.0), "super_resolution_steps": 3}

    def parts(self):
        base = ConfigDict({"sampler": {"num_steps": 12, "guidance_scale": (2.0, 2.0)}})
        return super().parts() | {"base": (base, {"w": np.zeros(2)})}


def test_of_two_runs_a_record_says_whose_steps_a_flag_set(monkeypatch, tmp_path):
    out = tmp_path / "out"
    flags = ("--prompt", "a cat", "--out", out, "--num_steps", 5)
    run(monkeypatch, TwoPainters(), *flags)
    settings = {"num_steps": 5, "guidance_scale": [2.0, 2.0], "super_resolution_steps": 3}
    assert manifest(out)[0]["settings"] == settings
    run(monkeypatch, pipe := TwoPainters(), *flags)
    assert not pipe.calls
    # Before, the base's steps were recorded as the enlarger's: nobody can tell what was asked for.
    line = manifest(out)[0]
    line["settings"] = {"num_steps": 5, "base.num_steps": 12, "guidance_scale": [2.0, 2.0]}
    (out / MANIFEST).write_text(json.dumps(line) + "\n")
    with pytest.raises(GalleryError, match="drawn by two runs with an older paella_jax"):
        run(monkeypatch, pipe, *flags)
    assert not pipe.calls
