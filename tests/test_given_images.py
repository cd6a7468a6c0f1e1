"""Images of any size by call, by flags and on the page: how they are fitted, and what is kept."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import small
from PIL import Image

import paella_jax
from paella_jax import sample as sample_command
from paella_jax import serve as serve_command
from paella_jax.config import to_json
from paella_jax.pipelines.given_image import fit_image, read_given
from paella_jax.pipelines.tokens import TokenPipeline
from paella_jax.serving.draw import draw
from paella_jax.serving.limits import OUTPAINT, Ask

RED, BLUE = "a red circle", "a blue square"
STEPS = 3


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """A run of 32x32 pixels that knows positions; a token is 4 pixels."""
    config = small.small_paella(sampler__num_steps=STEPS)
    return paella_jax.load(small.untrained(tmp_path_factory.mktemp("run"), config))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A photo of 60x100 pixels, and a mask of its left 45 columns."""
    folder = tmp_path_factory.mktemp("files")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)
    mask = np.zeros((60, 100), np.uint8)
    mask[:, :45] = 255
    Image.fromarray(pixels).save(folder / "photo.png")
    Image.fromarray(mask).save(folder / "mask.png")
    return {"PHOTO": str(folder / "photo.png"), "MASK": str(folder / "mask.png")}


@pytest.fixture
def sizes(monkeypatch):
    """Sizes of the token maps that are drawn from here on."""
    seen, generate = [], TokenPipeline.generate

    def noting(self, prompt, **options):
        seen.append(self.sizes.grid(options.get("height"), options.get("width")))
        return generate(self, prompt, **options)

    monkeypatch.setattr(TokenPipeline, "generate", noting)
    return seen


def as_pixels(images):
    return np.stack([np.asarray(image) for image in images]).astype(int)


def beside(width=48, kept=32):
    """An image of 32 rows, and a mask of what is right of its first columns."""
    pixels = np.random.default_rng(1).integers(0, 256, (32, width, 3), np.uint8)
    marked = np.zeros((32, width), bool)
    marked[:, kept:] = True
    return pixels, marked


# --- outpainting, on the page and by call


def test_the_page_outpaints_in_windows(pipe, files, sizes):
    """A network with positions draws nothing larger than its training images."""
    told = []

    def on_step(step, total, images):
        told.append((step, total, images[0].size))
        return True

    ask = Ask(RED, OUTPAINT, image=Image.open(files["PHOTO"]), margins=(0.0, 0.0, 0.0, 0.5))
    drawn = draw(pipe, ask, on_step)
    assert sizes == [(8, 8)] and drawn.images[0].size == (48, 32)
    assert told == [(step, STEPS, (48, 32)) for step in range(1, STEPS + 1)]
    photo = fit_image(pipe.read(files["PHOTO"]), (32, 32))
    assert np.abs(as_pixels(drawn.images)[0, :, :32] - 255 * photo).max() <= 1


def test_a_call_outpaints_each_prompt_in_windows(pipe, sizes):
    """Whatever else is drawn with it, and in batches of any size."""
    pixels, marked = beside(64)
    call = lambda prompt, **more: pipe(
        prompt, image=pixels, mask=marked, height=32, width=64, **more
    )
    both = call(
        [RED, BLUE], num_images_per_prompt=2, negative_prompt=["dark", "small"], seed=[5, 6]
    )
    assert set(sizes) == {(8, 8)} and len(sizes) == 2
    alone = call(BLUE, num_images_per_prompt=2, negative_prompt="small", seed=6, batch_size=1)
    np.testing.assert_array_equal(as_pixels(both)[2:], as_pixels(alone))
    assert (as_pixels(both)[0] != as_pixels(both)[1]).any()
    assert (as_pixels(both)[:, :, :32] == pixels[:, :32]).all()
    embedded = call(None, prompt_embeds=pipe.embed(RED, "dark"), seed=5)
    np.testing.assert_array_equal(as_pixels(embedded)[0], as_pixels(both)[0])
    strip = np.asarray(alone.strip()).reshape(2, 32, 2 * STEPS, 64, 3)
    np.testing.assert_array_equal(strip[:, :, -1], as_pixels(alone))
    assert (strip[:, :, :, :32] == pixels[None, :, None, :32]).all()


def test_previews_show_the_canvas_of_their_own_batch(pipe):
    pixels, marked = beside(64)
    shown = []
    options = {"image": pixels, "mask": marked, "height": 32, "width": 64, "batch_size": 1}
    look = lambda step, total, images: shown.append((step, total, np.asarray(images[0])))
    drawn = pipe(RED, num_images_per_prompt=2, callback=look, callback_every=STEPS, **options)
    assert [x[:2] for x in shown] == [(STEPS * n, 4 * STEPS) for n in (1, 2, 3, 4)]
    for number in (0, 1):  # the second window's previews hold what the first one drew there
        last = shown[2 + number][2]
        whole = pipe.decode(drawn.generation.tokens)
        near = [np.abs(last - 255 * image).mean() for image in whole]
        assert near[number] < near[1 - number]


def test_a_stopped_outpainting_is_of_the_canvas(pipe):
    pixels, marked = beside(64)
    options = {"image": pixels, "mask": marked, "height": 32, "width": 64}
    drawn = pipe(RED, callback=lambda step, *_: step < 2, **options)
    assert drawn.stopped and drawn[0].size == (64, 32)
    assert (as_pixels(drawn)[0, :, :32] == pixels[:, :32]).all()


def test_a_hole_in_a_large_image_is_drawn_whole(pipe, sizes):
    pixels, marked = beside(64)
    marked[:, 48:] = False
    pipe(RED, image=pixels, mask=marked, height=32, width=64)
    assert sizes == [(8, 16)]


# --- by flags, as by call


def by_flags(monkeypatch, pipe, files, *flags):
    given = [files.get(flag, flag) for flag in flags]
    return small.sample_by_flags(monkeypatch, pipe, "--prompt", RED, *given)[0].images


@pytest.mark.parametrize(
    "flags, options",
    [
        (("--strength", "0.3"), {"strength": 0.3}),
        (("--mask", "MASK"), {"mask": "MASK"}),
        (("--mask", "MASK", "--height", "16", "--width", "32"),
         {"mask": "MASK", "height": 16, "width": 32}),
    ],
)  # fmt: skip
def test_flags_fit_and_keep_as_a_call_does(monkeypatch, pipe, files, flags, options):
    drawn = by_flags(monkeypatch, pipe, files, "--image", "PHOTO", *flags)
    options = {name: files.get(value, value) for name, value in options.items()}
    called = pipe(RED, image=files["PHOTO"], output_type="np", **options)
    np.testing.assert_array_equal(drawn, called)


def test_other_tasks_fit_and_keep_as_well(monkeypatch, pipe, files):
    given = read_given(pipe, files["PHOTO"], files["MASK"], (32, 32))
    edit = ("--edit", "2", "--share", "0.5")
    edited = by_flags(monkeypatch, pipe, files, "--image", "PHOTO", "--mask", "MASK", *edit)
    assert (edited[0][~given.marked] == given.pixels[~given.marked]).all()
    assert (edited[0][given.marked] != given.pixels[given.marked]).any()
    around = by_flags(monkeypatch, pipe, files, "--image", "PHOTO", "--outpaint", "0,0,8,24")
    assert around.shape == (1, 32, 64, 3) and (around[0, :, 8:40] == given.pixels).all()
    flags = ("--image", "PHOTO", "--outpaint", "4,4,0,0", "--height", "24", "--width", "32")
    part = by_flags(monkeypatch, pipe, files, *flags)
    expected = fit_image(pipe.read(files["PHOTO"]), (24, 32))
    assert part.shape == (1, 32, 32, 3) and (part[0, 4:28] == expected).all()
    morphed = by_flags(monkeypatch, pipe, files, "--image", "PHOTO", "--morph", "1")
    assert morphed.shape == (1, 32, 32, 3)


def test_a_strip_keeps_the_image_in_every_step(monkeypatch, pipe, files, tmp_path):
    strips = []
    monkeypatch.setattr("paella_jax.images.write.save_strip", lambda _, x, *__: strips.append(x))
    monkeypatch.setattr("sys.argv", [
        "sample", "--checkpoint", "RUN", "--prompt", RED, "--image", files["PHOTO"],
        "--mask", files["MASK"], "--strip", "--out", str(tmp_path / "strip.png"),
    ])  # fmt: skip
    assert sample_command.draw_task_to_files(pipe, sample_command.parse()) == 1
    given = read_given(pipe, files["PHOTO"], files["MASK"], (32, 32))
    assert strips[0].shape == (STEPS, 1, 32, 32, 3)
    assert (strips[0][:, 0, ~given.marked] == given.pixels[~given.marked]).all()


def test_a_wuerstchen_fits_by_flags_too(monkeypatch, pipe, files):
    """Where it draws over an image; without a prompt it rebuilds the image as it is."""
    given = []
    stages = SimpleNamespace(
        read=pipe.read,
        size_of=lambda height, width: (height or 24, width or 24),
        generate=lambda prompts, **options: given.append(options["image"]),
        reconstruct=lambda images, **_: given.append(images[0]),
    )
    for prompt in (["--prompt", RED], ["--prompt", RED, "--width", "48"], []):
        flags = ["--checkpoint", "RUN", "--image", files["PHOTO"], *prompt]
        monkeypatch.setattr("sys.argv", ["sample", *flags])
        sample_command.draw_wuerstchen(stages, sample_command.parse())
    assert [image.shape[:2] for image in given] == [(24, 24), (24, 48), (60, 100)]
    np.testing.assert_array_equal(given[0], fit_image(pipe.read(files["PHOTO"]), (24, 24)))


# --- what is told before a run is downloaded or converted


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--prompt", RED, "--out", "a.bmp"), "must be a .png, a .gif or a folder"),
        (("--prompt", RED, "--num_steps", "0"), "--num_steps must be from 1"),
        (("--prompt", RED, "--image", "absent.png"), "absent.png"),
        (("--prompt", RED, "--emphasis", "red"), "must be PHRASE=FACTOR"),
        (("--prompts", "rows.csv"), "rows.csv"),
        ((), "nothing to draw"),
    ],
)
def test_sample_checks_its_flags_before_it_looks_for_the_run(monkeypatch, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text(f"prompt,seed\n{RED},soon\n")
    monkeypatch.setattr(sample_command, "setup_jax", lambda: None)
    found = "paella_jax.convert.found.run_folder"
    monkeypatch.setattr(found, lambda *_: pytest.fail("the run was looked for"))
    monkeypatch.setattr("sys.argv", ["sample", "--checkpoint", "OWNER/NAME", *flags])
    with pytest.raises(ValueError, match=message):
        sample_command.main()


@pytest.mark.parametrize("wrong", ["prompts", "study"])
def test_serve_reads_its_files_before_it_looks_for_the_runs(monkeypatch, tmp_path, wrong):
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(to_json(small.small_paella()))
    if wrong == "study":
        (tmp_path / "prompts.txt").write_text("a cat\n")
    (tmp_path / "votes.sqlite").write_text("no database at all\n" * 100)
    monkeypatch.setattr(serve_command, "has_gradio", lambda: True)
    monkeypatch.setattr(serve_command, "setup_jax", lambda: None)
    monkeypatch.setattr(serve_command, "find_runs", lambda _: pytest.fail("runs were looked for"))
    monkeypatch.setattr("sys.argv", [
        "serve", "--checkpoint", "first", "--checkpoint", "second", "--port", "0",
        "--prompts", "prompts.txt", "--study", "votes.sqlite",
    ])  # fmt: skip
    with pytest.raises(ValueError, match="prompts.txt" if wrong == "prompts" else "no study"):
        serve_command.main()


# --- mistyped arguments


def test_a_mistyped_argument_is_told_with_what_was_meant(pipe):
    for wrong, meant in (
        ("num_step", "num_steps"),
        ("guidance_scal", "guidance_scale"),
        ("batchsize", "batch_size"),
        ("renoise_step", "renoise_steps"),
    ):
        with pytest.raises(ValueError, match=f"no argument '{wrong}' .did you mean '{meant}'"):
            pipe(RED, **{wrong: 3})
    with pytest.raises(ValueError, match="has no setting zzz"):
        pipe(RED, zzz=3)
