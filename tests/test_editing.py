"""Image tasks: the invariants of keep-masks, start levels and mixing, and their bad inputs."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from PIL import Image

import paella_jax
from paella_jax.data.sources import ShapesSource
from paella_jax.encoders.byte_tokenizer import ByteTokenizer, PromptError
from paella_jax.encoders.emphasis import text_weights
from paella_jax.images.read import read_image
from paella_jax.images.write import save_images, save_strip
from paella_jax.pipelines import editing, variations
from paella_jax.pipelines.presets import between_options, start_options
from paella_jax.pipelines.prompts import Condition
from paella_jax.reports import sweep as sweep_module
from paella_jax.reports import task_examples, task_page
from paella_jax.sampling.guidance import mix
from paella_jax.sampling.renoise import sample
from paella_jax.sampling.renoise_settings import RenoiseSettings
from paella_jax.sampling.token_loop import Known, Randomness, Start, Vocabulary

pytestmark = pytest.mark.devices(8)
RED, BLUE = "a large red circle at the top left", "a large blue circle at the bottom right"
SHAPE, CODES = (2, 4, 6), 12


def predict(tokens, t):
    table = jax.random.normal(jax.random.key(0), (CODES, CODES))
    return table[tokens] + table[jnp.roll(tokens, 1, 2)] * (1.5 - t).reshape(-1, 1, 1, 1)


def draw(settings, seed=0, trace=False, **start):
    denoise = lambda tokens, t, scale: predict(tokens, t)
    key, start = jax.random.key(seed), Start(**start)
    return sample(denoise, key, SHAPE, settings, Vocabulary(CODES), start, trace=trace)


def random_map(seed):
    return jax.random.randint(jax.random.key(seed), SHAPE, 0, CODES, jnp.int32)


@pytest.mark.parametrize("mode", ["initial", "previous", "fresh"])
def test_kept_tokens_stay_at_every_step(mode):
    tokens, generate = random_map(1), jax.random.bernoulli(jax.random.key(2), 0.5, SHAPE)
    settings = RenoiseSettings(num_steps=4, renoise_mode=mode)
    final, visited = draw(settings, known=Known(tokens, generate), trace=True)
    for step in visited:
        np.testing.assert_array_equal(step[~generate], tokens[~generate])
    free = draw(settings)
    assert (final[generate] != tokens[generate]).any()
    assert (free[~generate] != tokens[~generate]).any()


def test_a_mask_that_generates_everything_changes_nothing():
    settings = RenoiseSettings(num_steps=4)
    everywhere = Known(random_map(1), jnp.ones(SHAPE, bool))
    np.testing.assert_array_equal(draw(settings, known=everywhere), draw(settings))


def test_image_start_noises_the_right_share():
    """Exactly the positions at or below t_start hold the initial noise; the network sees that."""
    uniform = jax.random.uniform(jax.random.key(3), SHAPE)
    noise, image, seen = random_map(4), random_map(5), []
    randomness = Randomness(jnp.zeros((1, *SHAPE)), uniform, noise)

    def spy(tokens, t, scale):
        seen.append((tokens, t))
        return predict(tokens, t)

    with jax.disable_jit():
        sample(
            spy,
            jax.random.key(0),
            SHAPE,
            RenoiseSettings(num_steps=1, t_start=0.4, draw="argmax"),
            Vocabulary(CODES),
            Start(image_tokens=image, randomness=randomness),
        )
    (tokens, t), *_ = seen
    np.testing.assert_array_equal(tokens, np.where(uniform <= 0.4, noise, image))
    np.testing.assert_allclose(t, 0.4)


def test_mixing_weights():
    one, other = (lambda tokens, t, s=s: s * predict(tokens, t) for s in (1.0, -2.0))
    tokens, t = random_map(6), jnp.full(SHAPE[0], 0.5)
    weights = jnp.array([[1.0, 0.0], [0.25, 0.75]])
    mixed = mix([one, other], weights)(tokens, t)
    base = predict(tokens, t)
    np.testing.assert_array_equal(mixed[0], base[0])
    np.testing.assert_allclose(mixed[1], (0.25 - 1.5) * base[1], rtol=1e-5)
    regions = jnp.zeros((2, 2, *SHAPE[1:])).at[:, 0, :, :3].set(1.0).at[:, 1, :, 3:].set(1.0)
    mixed = mix([one, other], regions)(tokens, t)
    np.testing.assert_array_equal(mixed[:, :, :3], base[:, :, :3])
    np.testing.assert_array_equal(mixed[:, :, 3:], -2.0 * base[:, :, 3:])


def test_emphasis_finds_the_bytes_of_a_phrase():
    tokenizer, text = ByteTokenizer(64), "é red, red"
    weights = text_weights(tokenizer, text, {"red": 1.5, "é": 0.5}, 16)
    ids = np.array(tokenizer.encode(text))
    assert [tokenizer.decode([i]) for i in ids[weights[: len(ids)] == 1.5]] == list("redred")
    assert (weights == 0.5).sum() == 2  # two bytes
    assert (weights[len(ids) - 1 :] == 1.0).all()
    for wrong, words in (({"blue": 2.0}, "not in the prompt"), ({"red": -1.0}, "at least 0")):
        with pytest.raises(PromptError, match=words):
            text_weights(tokenizer, text, wrong, 16)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """An untrained run with images, labels and maps as conditions: everything real."""
    config = small.small_paella(
        sampler__num_steps=3,
        sampler__temperature="(1.5,1.5)",
        model__num_classes=2,
        model__num_segments=3,
        image_encoder__kind="joint",
        image_encoder__width=16,
        image_encoder__num_heads=2,
        image_encoder__projection=12,
    )
    return paella_jax.load(small.untrained(tmp_path_factory.mktemp("run"), config))


@pytest.fixture(scope="module")
def picture():
    return ShapesSource("tiny", "train", 8)[0]["image"]


def test_strength_zero_returns_the_image_and_one_is_text_to_image(pipe, picture):
    tokens = pipe.encode(np.asarray(picture, np.float32)[None] / 255.0)
    same = editing.image_to_image(pipe, picture, RED, strength=0.0)
    np.testing.assert_array_equal(same.tokens, tokens)
    full = editing.image_to_image(pipe, picture, RED, strength=1.0, seed=3)
    plain = pipe.generate(RED, seed=3)
    np.testing.assert_array_equal(full.tokens, plain.tokens)
    half = editing.image_to_image(pipe, picture, RED, strength=0.5, seed=3)
    assert (half.tokens != plain.tokens).any() and (half.tokens != tokens).any()


def test_inpainting_keeps_the_rest(pipe, picture):
    mask = np.zeros((32, 32), bool)
    mask[5:18, 9:20] = True  # touches token rows 1-4 and columns 2-4
    tokens = pipe.encode(np.asarray(picture, np.float32)[None] / 255.0)[0]
    result = editing.inpaint(pipe, picture, mask, RED, num_images_per_prompt=2)
    drawn = np.zeros((8, 8), bool)
    drawn[1:5, 2:5] = True
    for image in result.tokens:
        np.testing.assert_array_equal(image[~drawn], tokens[~drawn])
        assert (image[drawn] != tokens[drawn]).any()


def test_outpainting_keeps_the_image(pipe, picture):
    tokens = pipe.encode(np.asarray(picture, np.float32)[None] / 255.0)[0]
    result = editing.outpaint(pipe, picture, RED, left=16, right=16, top=8)
    assert result.images.shape == (1, 40, 64, 3)
    np.testing.assert_array_equal(result.tokens[0, 2:, 4:12], tokens)


def test_outpainting_goes_on_in_windows(pipe, picture):
    """Each window keeps what is there; only its own prompt counts in what it adds."""
    tokens = pipe.encode(np.asarray(picture, np.float32)[None] / 255.0)[0]
    draw = lambda prompt, **more: editing.outpaint(pipe, picture, prompt, seed=7, **more)
    result = draw(RED, right=32, num_images_per_prompt=2)
    assert result.images.shape == (2, 32, 64, 3)
    np.testing.assert_array_equal(result.tokens[:, :, :8], np.stack([tokens] * 2))
    assert (result.tokens[0] != result.tokens[1]).any()
    np.testing.assert_array_equal(draw(RED, right=32).tokens[0], result.tokens[0])
    other = draw([RED, BLUE], right=32).tokens[0]
    np.testing.assert_array_equal(other[:, :12], result.tokens[0, :, :12])  # the first window
    assert (other[:, 12:] != result.tokens[0, :, 12:]).any()
    whole = draw(RED, right=32, windows=False).tokens[0]
    assert (whole[:, 8:] != result.tokens[0, :, 8:]).any()
    with pytest.raises(ValueError, match=r"3 prompts for 2 windows; .* columns 16-48"):
        draw([RED] * 3, right=32)
    with pytest.raises(ValueError, match="2 prompts for a canvas that is drawn whole"):
        draw([RED] * 2, right=32, windows=False)
    trace = draw(RED, right=32, trace=True).trace
    assert trace.shape == (2 * pipe.settings().num_steps, 1, 8, 16)
    np.testing.assert_array_equal(trace[-1], result.tokens[:1])
    with pytest.raises(ValueError, match="make 28x48; both must be multiples of 8"):
        editing.outpaint(pipe, picture[:28], RED, right=16)


def test_morphing_starts_from_the_noised_image(pipe, picture):
    result = editing.morph(pipe, picture, RED, start_step=2, num_steps=5, trace=True)
    assert result.trace.shape[0] == 3
    other = editing.morph(pipe, 255 - picture, RED, start_step=2, num_steps=5)
    assert (result.tokens != other.tokens).any()


def test_interpolation_ends_equal_the_single_prompts(pipe):
    alike = {"seed": 5} | between_options(pipe)
    ends = [pipe.generate(text, **alike).tokens[0] for text in (RED, BLUE)]
    for by in ("embeddings", "predictions"):
        strip = variations.interpolate(pipe, RED, BLUE, frames=3, seed=5, by=by)
        assert strip.images.shape[0] == 3
        np.testing.assert_array_equal(strip.tokens[0], ends[0])
        np.testing.assert_array_equal(strip.tokens[-1], ends[1])
        assert all((strip.tokens[1] != end).any() for end in ends)
    labels = [Condition(RED, label=n) for n in (0, 1)]  # have no embeddings to interpolate
    strip = variations.interpolate(pipe, *labels, frames=2, seed=5)
    np.testing.assert_array_equal(strip.tokens[1], pipe.generate([labels[1]], **alike).tokens[0])
    with pytest.raises(ValueError, match="embeddings or predictions"):
        variations.interpolate(pipe, RED, BLUE, by="words")


def test_parts_follow_their_own_condition(pipe):
    """One half is drawn by one text: with the same text in both nothing changes."""
    mixed = variations.mix_parts(pipe, [RED, BLUE], seed=3)
    twice = variations.mix_parts(pipe, [RED, RED], seed=3)
    np.testing.assert_array_equal(twice.tokens, pipe.generate(RED, seed=3).tokens)
    assert (mixed.tokens != twice.tokens).any()


def test_edits_and_strengths_follow_the_run(pipe, picture):
    """What the presets give is what is drawn, and a call's own settings come first."""
    quiet = start_options(pipe.config, pipe.settings(), 0.5)["guidance_scale"]
    start = lambda **own: editing.image_to_image(pipe, picture, RED, strength=0.5, **own).tokens
    np.testing.assert_array_equal(start(), start(guidance_scale=quiet))
    assert (start() != start(guidance_scale=9.0)).any()
    call = pipe(RED, image=picture, strength=0.5)
    assert call.settings["guidance_scale"] == quiet and call.settings["strength"] == 0.5
    loud = pipe(RED, image=picture, strength=0.5, guidance_scale=9.0)
    assert loud.settings["guidance_scale"] == 9.0
    np.testing.assert_array_equal(np.asarray(loud[0]), np.asarray(
        pipe(RED, image=picture, strength=0.5, guidance_scale=9.0, seed=0)[0]))  # fmt: skip
    own = {"rounds": 3, "share": 0.3, "seed": 2}
    edit = lambda **more: editing.edit(pipe, picture, RED, **own, **more).tokens
    np.testing.assert_array_equal(edit(), edit(guidance_scale=3.0, temperature=1.5))
    assert (edit() != edit(guidance_scale=40.0)).any()
    morph = lambda **more: editing.morph(pipe, picture, RED, seed=1, **more).tokens
    np.testing.assert_array_equal(morph(), morph(start_step=1, num_steps=6))


def test_a_wider_canvas_needs_no_new_parameters(pipe):
    assert pipe.generate(RED, width=64).images.shape == (1, 32, 64, 3)


def test_image_conditions(pipe, picture):
    """Variations, a mix of two images, and the strip between their embeddings."""
    other = 255 - picture
    result = variations.variations(pipe, [picture], guidance_scale=9.0)
    unlike = variations.variations(pipe, [other], guidance_scale=9.0)
    assert (result.tokens != unlike.tokens).any()
    both = variations.variations(pipe, [picture, other], RED)
    assert both.images.shape == (1, 32, 32, 3)
    strip = variations.interpolate_images(pipe, picture, other, frames=3, seed=2)
    alike = {"seed": 2} | between_options(pipe)
    ends = [variations.variations(pipe, [image], **alike).tokens[0] for image in (picture, other)]
    np.testing.assert_array_equal(strip.tokens[0], ends[0])
    np.testing.assert_array_equal(strip.tokens[-1], ends[1])


def test_an_absent_image_is_the_same_as_none(pipe, picture):
    """A masked image condition equals no image: the unconditional branch needs no null token."""
    mixed = [Condition(RED), Condition(RED, images=(picture,))]
    result = pipe.generate(mixed, seed=[4, 4])
    np.testing.assert_array_equal(result.tokens[0], pipe.generate(RED, seed=4).tokens[0])


def test_labels_maps_and_emphasis_steer(pipe, picture):
    strong = {"seed": 6, "guidance_scale": 9.0}
    tokens = lambda condition: pipe.generate([condition], **strong).tokens
    base = tokens(Condition(RED))
    assert (tokens(Condition(RED, label=0)) != tokens(Condition(RED, label=1))).any()
    ones = np.ones((32, 32), np.int32)
    assert (tokens(Condition(RED, segmentation=ones)) != base).any()
    assert (tokens(Condition(RED, emphasis={"red": 4.0})) != base).any()
    np.testing.assert_array_equal(tokens(Condition(RED, emphasis={"red": 1.0})), base)
    open_map = np.full((8, 8), -1)
    np.testing.assert_array_equal(tokens(Condition(RED, segmentation=open_map)), base)


def test_bytes_and_floats_are_the_same_image(pipe, picture):
    np.testing.assert_array_equal(pipe.encode(picture[None]), pipe.encode(picture[None] / 255.0))
    as_floats = pipe.embed_images(picture[None].astype(np.float32) / 255.0)
    np.testing.assert_array_equal(pipe.embed_images(picture[None]), as_floats)


def test_a_photo_is_turned_as_its_camera_says(tmp_path):
    image = Image.fromarray(np.arange(12 * 8 * 3, dtype=np.uint8).reshape(12, 8, 3))
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png").shape == (8, 12, 3)


def test_strength_zero_makes_as_many_copies(pipe, picture):
    result = editing.image_to_image(pipe, picture, RED, strength=0.0, num_images_per_prompt=3)
    assert result.images.shape == (3, 32, 32, 3)


@pytest.mark.slow
def test_sweep_and_tasks(pipe, tmp_path, monkeypatch):
    """Small versions of what `evaluate --sweep` and `--tasks` draw."""
    for name, value in (
        ("STEPS", (1, 2)),
        ("GUIDANCE", (1.0, 2.0)),
        ("TEMPERATURES", ((1.0, 1.0),)),
    ):
        monkeypatch.setattr(sweep_module, name, value)
    rows = sweep_module.sweep(pipe, tmp_path / "sweep", 4)
    assert [len(rows[name]) for name in ("steps_guidance", "temperature", "sampler")] == [4, 1, 4]
    assert (tmp_path / "sweep" / "sweep.png").is_file()
    assert "sampler" in sweep_module.show_sweep(rows)
    page = task_page.write_tasks(pipe, tmp_path / "tasks", count=2)
    assert sorted(f.stem for f in (tmp_path / "tasks").glob("*.png")) == sorted(
        [*task_examples.TASKS, "sheet"]
    )
    rows = json.loads((tmp_path / "tasks" / "tasks.json").read_text())["rows"]
    assert {row["task"] for row in rows} == {
        "image to image", "inpainting", "outpainting", "mask-free editing", "mixing",
        "interpolation", "class label", "morphing", "variations",
    }  # fmt: skip
    assert (tmp_path / "tasks" / "tasks.md").read_text() == page
    kept = {row["task"]: row["kept"] for row in rows if "kept" in row}
    assert kept["inpainting"] == 1.0  # to the pixel, whatever the network draws


def test_task_examples_are_what_a_run_can_do(pipe, tmp_path, monkeypatch):
    """A masked run has no morphing, one of texts alone no labels; other runs are refused."""
    names = lambda networks: [
        name for name, _ in task_examples.tasks_of(SimpleNamespace(networks=networks))
    ]
    networks = pipe.networks
    assert names(networks) == list(task_examples.TASKS)
    predictor = networks.predictor.clone(mask_row=True)
    assert "morphing" not in names(replace(networks, predictor=predictor))
    predictor = networks.predictor.clone(num_classes=0, num_segments=0)
    texts = names(replace(networks, predictor=predictor, image_encoder=None))
    assert set(names(networks)) - set(texts) == {
        "morphing", "variations", "image_interpolation", "class_labels", "segmentation_map",
    }  # fmt: skip
    chosen = {name: task_examples.TASKS[name] for name in ("outpainting", "interpolation")}
    monkeypatch.setattr(task_examples, "TASKS", chosen)
    files = task_examples.draw_task_examples(pipe, tmp_path)
    assert [file.stem for file in files] == list(chosen) and all(f.is_file() for f in files)
    assert (tmp_path / "sheet.png").is_file() and (tmp_path / "interpolation.gif").is_file()
    own = SimpleNamespace(config=small.small_paella(data__source="folder"), networks=networks)
    with pytest.raises(ValueError, match="embedded data"):
        task_examples.draw_task_examples(own, tmp_path)


def test_slerp():
    a, b = np.array([2.0, 0.0], np.float32), np.array([0.0, 4.0], np.float32)
    np.testing.assert_allclose(variations.slerp(a, b, 0.5), 3.0 * np.sqrt([0.5, 0.5]), rtol=1e-6)
    assert variations.slerp(a, b, 0.0) is a and variations.slerp(a, b, 1.0) is b
    np.testing.assert_allclose(variations.slerp(a, 3 * a, 0.5), 2 * a)


def test_images_and_masks_that_cannot_be_used(pipe, picture, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("not an image")
    cut = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    empty, mask = np.zeros((32, 32), bool), np.eye(32, dtype=bool)
    cells = np.zeros((32, 32), bool)
    cells[::4, ::4] = True  # a pixel of each token
    cases = [
        (lambda: editing.image_to_image(pipe, text, RED), "not a readable image"),
        (lambda: editing.image_to_image(pipe, cut, RED), "not a readable image"),
        (lambda: editing.image_to_image(pipe, tmp_path / "no.png", RED), "there is no image"),
        (lambda: editing.image_to_image(pipe, picture[:30], RED), "resize or crop it to 32x32"),
        (lambda: editing.image_to_image(pipe, picture[..., 0], RED), "shape"),
        (lambda: editing.image_to_image(pipe, picture * 2.0, RED), "values from"),
        (lambda: editing.image_to_image(pipe, picture, RED, strength=1.5), "strength"),
        (lambda: editing.inpaint(pipe, picture, mask[:16], RED), "make them equal"),
        (lambda: editing.inpaint(pipe, picture, empty, RED), "marks nothing"),
        (lambda: editing.inpaint(pipe, picture, ~empty, RED), "touches every cell"),
        (lambda: editing.inpaint(pipe, picture, cells, RED), "touches every cell"),
        (lambda: editing.outpaint(pipe, picture, RED), "at least one of"),
        (lambda: editing.outpaint(pipe, picture, RED, left=3), "multiple of 4"),
        (lambda: editing.morph(pipe, picture, RED, start_step=24), "start_step 24"),
        (
            lambda: editing.image_to_image(
                pipe, picture, RED, strength=0.0, num_images_per_prompt=0
            ),
            "num_images_per_prompt must be at least 1",
        ),
        (lambda: variations.interpolate(pipe, RED, BLUE, frames=1), "at least 2 frames"),
        (lambda: pipe.generate([[RED, BLUE]], weights=[1.0]), "2 conditions in 1 pictures"),
        (lambda: pipe.generate([[RED, BLUE]], weights=[0.0, 0.0]), "positive sum"),
        (lambda: pipe.generate([[RED, BLUE], [RED]]), "same number of conditions"),
        (lambda: pipe.generate(RED, t_start=0.5), "give image_tokens"),
        (lambda: pipe.generate([Condition(RED, label=2)]), "labels are 0 to 1"),
        (lambda: pipe.generate([Condition(RED, segmentation=mask[:8] * 1)]), "resize the map"),
        (lambda: pipe.generate([Condition(RED, segmentation=mask * 7)]), "classes are 0 to 2"),
        (lambda: pipe.generate([Condition(RED, segmentation=mask * (2**32 + 1))]), "classes are"),
        (lambda: pipe.generate([Condition(RED, images=(picture[0],))]), "an image array has shape"),
        (lambda: pipe.generate([Condition(RED, images=(np.zeros(5),))]), "this run needs \\[12\\]"),
        (lambda: pipe.encode(picture[None] * 2.0), "values from"),
        (lambda: pipe.generate(RED, seed=2**32), "must be a whole number"),
        (lambda: pipe.generate(RED, seed=-1), "must be a whole number"),
        (lambda: pipe.generate(RED, batch_size=0), "batch_size must be at least 1"),
        (lambda: pipe.generate([Condition()]), "prompt 0 is empty"),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words):
            call()


def test_conditions_the_run_was_not_trained_with(tmp_path, picture):
    plain = paella_jax.load(small.untrained(tmp_path, small.small_paella()))
    for condition, words in (
        (Condition(RED, label=0), "not trained with labels"),
        (Condition(RED, images=(picture,)), "not trained with image conditions"),
        (Condition(RED, segmentation=np.zeros((8, 8))), "not trained with segmentation"),
    ):
        with pytest.raises(ValueError, match=words):
            plain.generate([condition])


FILES = {"IMAGE": "picture.png", "OTHER": "other.png", "MASK": "mask.png", "MAP": "map.npy"}
COMMANDS = {
    "image to image": (["--image", "IMAGE", "--strength", "0.5"], (1, 32, 32, 3)),
    "inpainting": (["--image", "IMAGE", "--mask", "MASK"], (1, 32, 32, 3)),
    "outpainting": (["--image", "IMAGE", "--outpaint", "0,32,0,32"], (1, 64, 64, 3)),
    "mixing by columns": (["--mix", "a blue square", "--weights", "columns"], (1, 32, 32, 3)),
    "morphing": (["--image", "IMAGE", "--morph", "2", "--num_steps", "4"], (1, 32, 32, 3)),
    "variations": (["--like", "IMAGE", "--num_images_per_prompt", "2"], (2, 32, 32, 3)),
    "mixing": (["--mix", "a blue square", "--weights", "0.3,0.7"], (1, 32, 32, 3)),
    "mask-free editing": (
        ["--image", "IMAGE", "--edit", "3", "--mask", "MASK", "--share", "0.2", "--top_k", "5"],
        (1, 32, 32, 3),
    ),
    "confidence": (["--sampler", "confidence"], (1, 32, 32, 3)),
    "strip": (["--to", "a blue square", "--frames", "3"], (3, 32, 32, 3)),
    "image strip": (["--between", "IMAGE", "--between", "OTHER", "--frames", "3"], (3, 32, 32, 3)),
    "label and map": (["--label", "1", "--segmentation", "MAP"], (1, 32, 32, 3)),
    "emphasis": (["--emphasis", "red circle=2", "--width", "64"], (1, 32, 64, 3)),
}
WRONG_COMMANDS = {
    "need --image FILE": ["--mask", "MASK"],
    "give one of --image, --like, not several": ["--image", "IMAGE", "--like", "IMAGE"],
    "--weights belongs to --mix": ["--weights", "1"],
    "--width has no effect with --between": [
        "--between",
        "IMAGE",
        "--between",
        "OTHER",
        "--width",
        "64",
    ],
    "--strength and --edit need --image": ["--strength", "0.5"],
    "give one of --mask, --outpaint, not several": [
        "--image",
        "IMAGE",
        "--mask",
        "MASK",
        "--outpaint",
        "4,4,4,4",
    ],
    "--share belongs to --edit": ["--image", "IMAGE", "--share", "0.5"],
    "--top_k belongs to --edit": ["--top_k", "5"],
    "mask-free editing runs no sampler: num_steps": [
        "--image",
        "IMAGE",
        "--edit",
        "3",
        "--num_steps",
        "3",
    ],
    "needs TOP,BOTTOM,LEFT,RIGHT": ["--image", "IMAGE", "--outpaint", "1,2"],
    "is not a list of numbers with commas, and none of columns, rows": [
        "--mix",
        "a",
        "--weights",
        "0.3;0.7",
    ],
    "must be PHRASE=FACTOR": ["--emphasis", "red"],
    "--between needs two images": ["--between", "IMAGE"],
    "takes one --prompt": ["--image", "IMAGE", "--prompt", "another"],
    "weights have shape": ["--mix", "a blue square", "--weights", "0.3,0.3,0.4"],
}


@pytest.fixture(scope="module")
def files(picture, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    pixels = picture
    mask = np.zeros((32, 32), np.uint8)
    mask[:16] = 255
    Image.fromarray(pixels).save(folder / FILES["IMAGE"])
    Image.fromarray(255 - pixels).save(folder / FILES["OTHER"])
    Image.fromarray(mask).save(folder / FILES["MASK"])
    np.save(folder / FILES["MAP"], np.ones((32, 32), np.int32))
    return {name: str(folder / file) for name, file in FILES.items()}


def command_line(monkeypatch, pipe, files, flags):
    flags = ["--prompt", RED, *(files.get(f, f) for f in flags)]
    return small.sample_by_flags(monkeypatch, pipe, *flags)


@pytest.mark.parametrize("task", COMMANDS)
def test_every_task_from_the_command_line(pipe, files, monkeypatch, tmp_path, task):
    flags, shape = COMMANDS[task]
    result, titles = command_line(monkeypatch, pipe, files, flags)
    assert result.images.shape == shape and len(titles) == shape[0]
    for name in ("grid.png", "movie.gif", "folder"):
        save_images(tmp_path / name, result.images, titles)
        assert (tmp_path / name).exists()


@pytest.mark.parametrize("words", WRONG_COMMANDS)
def test_commands_that_make_no_sense(pipe, files, monkeypatch, words):
    with pytest.raises(ValueError, match=words):
        command_line(monkeypatch, pipe, files, WRONG_COMMANDS[words])


STRIPS = {
    "text-to-image": (["--num_images_per_prompt", "2"], 3),
    "mask-free editing": (["--image", "IMAGE", "--edit", "4", "--frames", "2"], 2),
}


@pytest.mark.parametrize("task", STRIPS)
def test_strips_of_the_steps(pipe, files, monkeypatch, tmp_path, task):
    """The last step is the picture; a grid has a row per picture, a movie a frame per step."""
    flags, steps = STRIPS[task]
    result, titles = command_line(monkeypatch, pipe, files, [*flags, "--strip"])
    strip = pipe.strip(result)
    count = len(titles)
    assert strip.shape == (steps, count, 32, 32, 3)
    np.testing.assert_allclose(strip[-1], result.images, atol=1e-5)
    assert (strip[0] != strip[-1]).any()
    for name in ("grid.png", "movie.gif", "folder"):
        save_strip(tmp_path / name, strip, titles)
    with Image.open(tmp_path / "grid.png") as grid, Image.open(tmp_path / "movie.gif") as movie:
        assert (grid.width > grid.height) == (steps > count)
        assert movie.size == (96 * count, 96) and movie.n_frames == 2 * (steps - 1)
    assert len(list((tmp_path / "folder").glob("*.png"))) == steps * count


def test_outpainting_takes_any_image_that_fills_the_canvas(pipe, picture):
    """Only the canvas must divide by what the network needs; the image by a token."""
    part = picture[:20, :28]
    result = editing.outpaint(pipe, part, RED, bottom=4, left=4)
    assert result.images.shape == (1, 24, 32, 3)
    np.testing.assert_array_equal(result.tokens[0, :5, 1:], pipe.encode(part[None])[0])
    with pytest.raises(ValueError, match=r"image of 20x28 pixels .* make 24x28; both must be .* 8"):
        editing.outpaint(pipe, part, RED, bottom=4)
    with pytest.raises(ValueError, match="make 22x32; both must be multiples of 8"):
        editing.outpaint(pipe, picture[:18], RED, bottom=4)


def test_mask_free_editing(pipe, picture):
    """The same seed gives the same image in any batch; the prompt and guidance have a say."""
    edit = lambda prompt=RED, **options: editing.edit(
        pipe, picture, prompt, **({"rounds": 6, "share": 0.2, "seed": 4} | options)
    )
    both = edit(num_images_per_prompt=2)
    np.testing.assert_array_equal(edit().tokens, both.tokens[:1])
    cut = edit(num_images_per_prompt=2, batch_size=1)
    np.testing.assert_array_equal(cut.tokens, both.tokens)
    assert both.trace is None and (both.tokens[0] != both.tokens[1]).any()
    for change in ({"prompt": BLUE}, {"guidance_scale": 30.0}, {"seed": 5},
                   {"negative_prompt": RED}, {"temperature": (5.0, 5.0)}):  # fmt: skip
        assert (edit(**change).tokens != both.tokens[:1]).any(), change
