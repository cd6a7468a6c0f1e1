"""The call: looking on, stopping, images of any size, seeds, embeddings, what the result knows."""

from __future__ import annotations

import json
import pickle
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import small
from PIL import Image

import paella_jax
from paella_jax.encoders.byte_tokenizer import PromptError
from paella_jax.files import compile_cache
from paella_jax.images.png import read_png_texts
from paella_jax.images.read import ImageError
from paella_jax.pipelines.editing import image_to_image
from paella_jax.pipelines.given_image import fit_image, fit_mask, read_given
from paella_jax.pipelines.request import Request, _denoise
from paella_jax.sampling.loop import ROOM, padded
from paella_jax.sampling.parallel_decode import ParallelDecodeSettings
from paella_jax.sampling.renoise_settings import RenoiseSettings

pytestmark = pytest.mark.devices(8)
RED, BLUE = "a large red circle at the top left", "a large blue circle at the bottom right"
MASKED = {
    "cell__network": "transformer", "cell__corruption": "mask", "cell__sampler": "confidence",
    "transformer__width": 16, "transformer__depth": 1, "transformer__feed_forward_width": 32,
    "sampler__num_steps": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def pipe(shared_runs):
    return paella_jax.load(shared_runs.trained(small.brief_paella()))


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    config = small.small_paella(**MASKED)
    return paella_jax.load(small.untrained(tmp_path_factory.mktemp("masked"), config))


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8))


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


def programs(pipe):
    return pipe._advance.count


@pytest.mark.parametrize("name", ["pipe", "masked"])
def test_groups_of_steps_draw_the_same_bits(name, request):
    """However the loop is cut, and the last look is the result."""
    pipe, seen = request.getfixturevalue(name), []
    options = {"seed": [4, 5], "num_steps": 5}
    whole = pipe([RED, BLUE], **options)
    look = lambda step, total, images: seen.append((step, total, pixels(images)))
    for every in (1, 2, 3):
        seen.clear()
        cut = pipe([RED, BLUE], callback=look, callback_every=every, **options)
        np.testing.assert_array_equal(pixels(cut), pixels(whole))
        wanted = sorted({*range(every, 6, every), 5})
        assert [(step, total) for step, total, _ in seen] == [(step, 5) for step in wanted]
        np.testing.assert_array_equal(seen[-1][2], pixels(whole))
        assert len(seen[0][2]) == 2, "rows that fill up a batch are not shown"
    traced = pipe.generate([RED, BLUE], trace=True, **options)
    np.testing.assert_array_equal(traced.trace[-1], traced.tokens)
    np.testing.assert_array_equal(traced.tokens, whole.generation.tokens)


def test_one_program_serves_steps_strengths_temperatures_and_guidance(pipe, photo):
    pipe(RED)
    pipe(RED, image=photo, strength=0.5)
    before = programs(pipe)
    for change in ({"num_steps": 2}, {"num_steps": 40}, {"temperature": (1.0, 0.1)},
                   {"guidance_scale": 7.0}, {"num_images_per_prompt": 5}, {"t_end": 0.1},
                   {"renoise_steps": 1}, {"image": photo, "strength": 0.9},
                   {"image": photo, "strength": 0.2, "num_steps": 3},
                   {"callback": lambda *_: None}):  # fmt: skip
        pipe(RED, **change)
        assert programs(pipe) == before, change
    counts = {pipe._condition.count, pipe._decode.count}
    assert counts == {1}


def test_the_two_predictions_of_guidance_are_traced_once():
    """Tracing a network takes a third of the wait for a first image."""
    traced = []

    def prepare(params, tokens, cond):
        traced.append("prepare")
        return params * cond["text"].sum()

    def logits(prepared, tokens, t, cond):
        traced.append("logits")
        return jax.nn.one_hot(tokens, 4) * prepared

    conditions = {"text": np.ones((1, 3))}, {"text": np.zeros((1, 3))}
    request = Request((conditions[0],), conditions[1], None, None)
    networks, tokens = (
        SimpleNamespace(prepare=prepare, logits=logits),
        np.zeros((1, 2, 2), np.int32),
    )
    denoise = _denoise(networks, np.float32(1.0), request, tokens, joint=False)
    guided = denoise(tokens, np.ones(1), 5.0)
    assert traced == ["prepare", "logits"] and guided[0, 0, 0].tolist() == [15.0, 0.0, 0.0, 0.0]


def test_padding_and_programs_of_settings():
    """What differs in its course alone is one program; what differs in its bodies is not."""
    base = RenoiseSettings(num_steps=12, guided_steps=4)
    same = [RenoiseSettings(num_steps=n, guided_steps=g, t_start=0.5, temperature=(2.0, 1.0))
            for n, g in ((5, 1), (40, 39))]  # fmt: skip
    assert {s.program() for s in (base, *same)} == {base.program()}
    changes = ({}, {"guided_steps": 4, "quantize_from_step": 8}, {"guidance_scale": (1.0, 1.0)},
               {"renoise_mode": "fresh"})  # fmt: skip
    others = [RenoiseSettings(**change) for change in changes]
    assert len({s.program() for s in (base, *others)}) == 5
    assert RenoiseSettings(guided_steps=99).program() == RenoiseSettings().program()
    decoding = ParallelDecodeSettings(num_steps=70, schedule="linear", strength=0.5)
    assert decoding.program() == ParallelDecodeSettings().program()
    course = padded(decoding.course())
    assert len(course.t) == 2 * ROOM and course.edges.tolist() == [35, 70]
    np.testing.assert_array_equal(course.t[:70], decoding.course().t)


def test_a_callback_stops_it(pipe):
    """False, or the exception; what there is comes back; another exception goes through."""
    whole, seen = pipe([RED, BLUE], seed=3, num_steps=6, batch_size=8), []

    def stop(step, total, images):
        seen.append(pixels(images))
        return step < 2

    stopped = pipe([RED, BLUE], seed=3, num_steps=6, callback=stop)
    assert stopped.stopped and not whole.stopped and len(seen) == 2
    np.testing.assert_array_equal(pixels(stopped), seen[-1])
    assert (pixels(stopped) != pixels(whole)).any()

    def leave(step, total, images):
        raise paella_jax.StopSampling

    first = pipe([RED] * 9, num_steps=6, batch_size=8, callback=leave)
    assert first.stopped and len(first) == len(first.records()) == 8, "a batch was begun"

    def fail(step, total, images):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        pipe(RED, callback=fail)


def test_progress_counts_all_steps(pipe, capsys):
    pipe([RED] * 9, num_steps=3, batch_size=8, progress=True)
    assert "6/6" in capsys.readouterr().err


def test_seeds_are_drawn_and_recorded(pipe):
    drawn = pipe(RED, seed=None, num_images_per_prompt=2)
    assert drawn.seeds[0] == drawn.seeds[1] and 0 <= drawn.seeds[0] < 2**32
    again = pipe(RED, seed=drawn.seeds[0], num_images_per_prompt=2)
    np.testing.assert_array_equal(pixels(drawn), pixels(again))
    assert pipe(RED, seed=None).seeds != pipe(RED, seed=None).seeds


def test_other_libraries_names(pipe):
    ours = pipe(RED, num_steps=2, guidance_scale=2.0, num_images_per_prompt=2, output_type="np")
    theirs = pipe(RED, num_inference_steps=2, guidance=2.0, num_images=2, output_type="array")
    np.testing.assert_array_equal(ours, theirs)
    tokens = pipe(RED, num_steps=2, guidance_scale=2.0, output_type="tokens")
    np.testing.assert_array_equal(pipe.decode(tokens), ours[:1])


def test_embedded_prompts(pipe):
    embeds = pipe.embed([RED, BLUE], negative_prompt="a cat")
    options = {"seed": [1, 2], "guidance_scale": 5.0}
    plain = pipe([RED, BLUE], negative_prompt="a cat", **options)
    drawn = pipe(prompt_embeds=embeds, **options)
    np.testing.assert_array_equal(pixels(drawn), pixels(plain))
    assert drawn.prompts == [RED, BLUE] and drawn.negative_prompts == ["a cat"] * 2
    np.testing.assert_array_equal(pixels(pipe(prompt_embeds=embeds[1], seed=2, guidance_scale=5.0)),
                                  pixels(plain[1:]))  # fmt: skip
    half = embeds[0].towards(embeds[1], 0.5)
    assert (pixels(pipe(prompt_embeds=half, seed=1)) != pixels(plain[:1])).any()
    assert "2 prompts" in repr(embeds) and len(half) == 1
    with pytest.raises(ValueError, match="another run's text encoders"):
        other = paella_jax.PromptEmbeds(("a",), ("",), embeds.parts, {"": "else"})
        pipe(prompt_embeds=other)


def test_embeddings_of_other_encoders_are_refused_though_the_settings_are_the_same(pipe):
    embeds, (params, frozen) = pipe.embed(RED), pipe.parts()[""][1]
    moved = {name: jax.tree.map(lambda x: x + 0.5, params[name]) for name in params}
    try:
        pipe.set_params(params | {"predictor": moved["predictor"]}, frozen)
        pipe(prompt_embeds=embeds)  # the encoder is the one that they come from
        pipe.set_params(params | {"text_encoder": moved["text_encoder"]}, frozen)
        with pytest.raises(ValueError, match="another run's text encoders"):
            pipe(prompt_embeds=embeds)
    finally:
        pipe.set_params(params, frozen)
    pipe(prompt_embeds=embeds)


# --- images and masks


def test_any_image_is_scaled_to_cover_and_cut_to_its_middle():
    image = np.zeros((40, 80, 3), np.float32)
    image[:, 20:60] = 1.0  # the middle square
    assert fit_image(image, (20, 20)).min() > 0.9  # the filter sees a little of what is cut
    assert fit_image(image, (40, 80)) is image
    tall = fit_image(image, (40, 40))
    np.testing.assert_allclose(tall, image[:, 20:60], atol=1 / 255)
    mask = np.zeros((40, 80), bool)
    mask[7, 33] = True  # one pixel of 16 that become one
    assert fit_mask(mask, (10, 20)).sum() == 1 and fit_mask(mask, (10, 20))[1, 8]


@pytest.mark.parametrize("name", ["pipe", "masked"])
def test_pixels_outside_the_mask_are_kept(name, photo, request):
    """Of a photo of another size and proportions, drawn for two prompts."""
    pipe, marked = request.getfixturevalue(name), np.zeros((60, 100), np.uint8)
    marked[:, :45] = 255
    drawn = pipe([RED, BLUE], image=photo, mask=Image.fromarray(marked).resize((50, 30)), seed=1)
    given = read_given(pipe, photo, marked, (32, 32))
    kept = ~given.marked
    assert 0.4 < kept.mean() < 0.7
    expected = np.round(given.pixels * 255)
    for image in pixels(drawn):
        np.testing.assert_array_equal(image[kept], expected[kept])
    assert (pixels(drawn)[0] != pixels(drawn)[1]).any()
    tokens = pipe.encode(given.pixels[None])[0]
    same = (drawn.generation.tokens == tokens).all(0)
    assert same[:, -2:].all() and not same[:, :2].all()


def test_strength_starts_from_the_image(pipe, photo):
    """As the image task does, and in a size of its own."""
    fitted = fit_image(np.asarray(photo) / np.float32(255), (32, 32))
    task = image_to_image(pipe, fitted, RED, strength=0.3, seed=2).tokens
    draw = lambda strength: pipe(RED, image=photo, strength=strength, seed=2, output_type="tokens")
    np.testing.assert_array_equal(draw(0.3), task)
    assert (draw(0.9) != task).any()
    np.testing.assert_array_equal(draw(1.0), pipe(RED, seed=2, output_type="tokens"))
    wide = pipe(RED, image=photo, height=16, width=32)
    assert wide[0].size == (32, 16) and wide.settings["strength"] == 0.6


# --- the result


def test_the_result_says_what_it_is(pipe, tmp_path):
    images = pipe([RED, "<b>"], seed=[7, 8], num_images_per_prompt=2, temperature=0.5)
    assert isinstance(images, list) and images.prompts == [RED, RED, "<b>", "<b>"]
    assert images.seeds == [7, 7, 8, 8] and images.settings["temperature"] == 0.5
    assert images.settings["num_steps"] == 3 and images.grid().size == (64, 64)
    assert images.grid(columns=4).size == (128, 32)
    page = images._repr_html_()
    assert page.count("data:image/png;base64,") == 4 and "&lt;b&gt;" in page and "<b>" not in page
    assert "4 images of 32x32" in repr(images) and repr(images[:0]) == "no images"
    assert isinstance(images[1:3], paella_jax.Images) and images[1:3].seeds == [7, 8]
    copy = pickle.loads(pickle.dumps(images))
    assert copy.records() == images.records() and copy[0].size == (32, 32)
    files = images.save(tmp_path / "new" / "folder")
    texts = read_png_texts(files[3])
    assert texts["prompt"] == "<b>" and texts["seed"] == "8"
    record = json.loads(texts["record"])
    assert record["number"] == 1 and record["settings"]["temperature"] == 0.5
    with Image.open(files[2]) as stored:
        np.testing.assert_array_equal(np.asarray(stored), np.asarray(images[2]))
    with pytest.raises(ValueError, match=r"holds 00000\.png already"):
        images.save(tmp_path / "new" / "folder")
    images.save(tmp_path / "new" / "folder", overwrite=True)


def test_a_strip_of_chosen_steps(pipe, photo):
    images = pipe([RED, BLUE], seed=1)
    strip = np.asarray(images.strip([1, -1]))
    assert strip.shape == (64, 64, 3)
    np.testing.assert_array_equal(strip[:32, 32:], np.asarray(images[0]))
    traced = pipe([RED, BLUE], seed=1, trace=True)
    np.testing.assert_array_equal(np.asarray(traced.strip(2))[:, 32:], strip[:, 32:])
    for wrong in (0, 9, [4], []):
        with pytest.raises(ValueError, match="step"):
            images.strip(wrong)
    with pytest.raises(ValueError, match="cannot be drawn again"):
        images[:1].strip()
    mask = np.zeros((60, 100), bool)
    mask[:10] = True
    kept = pipe(RED, image=photo, mask=mask)
    np.testing.assert_array_equal(np.asarray(kept.strip())[-16:, :32], np.asarray(kept[0])[-16:])


# --- what a pipeline says of itself


def test_a_pipeline_describes_itself(pipe, masked):
    assert pipe.defaults["num_steps"] == 3 and pipe.defaults["height"] == 32
    assert "32x32 pixels" in repr(pipe) and "num_steps=5" in repr(masked)
    assert {"Condition", "Images", "StopSampling", "load"} <= set(dir(paella_jax))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        paella_jax.lode  # noqa: B018


def test_warming_up_compiles_what_a_call_needs(tmp_path):
    config = small.small_paella(model__token_width=8, model__widths="(16,)", **{
        "text__width": 16, "text__hidden_dim": 16})  # fmt: skip
    pipe = paella_jax.load(small.untrained(tmp_path, config))
    assert pipe.warm_up() > 0
    before = programs(pipe), pipe._decode.count
    assert before == (1, 1)
    pipe(RED, seed=None)
    assert (programs(pipe), pipe._decode.count) == before


def test_compiled_programs_are_kept_where_nobody_chose_a_folder(monkeypatch, tmp_path):
    set_to = {}
    monkeypatch.setattr(jax.config, "update", set_to.__setitem__)
    assert compile_cache.keep_programs() is None and not set_to, "the tests chose one"
    monkeypatch.setattr(compile_cache, "jax", FakeJax(set_to))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compile_cache.keep_programs()
    assert folder.parent == tmp_path / "paella_jax/programs" and "jax-9.9" in folder.name
    assert set_to["jax_compilation_cache_dir"] == str(folder) and folder.is_dir()
    set_to.clear()
    monkeypatch.setenv("PAELLA_JAX_CACHE", "off")
    assert compile_cache.keep_programs() is None and not set_to
    monkeypatch.setenv("PAELLA_JAX_CACHE", str(tmp_path / "mine"))
    assert compile_cache.keep_programs().parent == tmp_path / "mine"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PAELLA_JAX_CACHE", str(tmp_path / "file"))
    assert compile_cache.keep_programs() is None


class FakeJax:
    __version__ = "9.9"

    def __init__(self, set_to):
        self.config = self
        self.jax_compilation_cache_dir = None
        self.update = set_to.__setitem__


# --- what is refused


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"num_steps": 2.5}, "num_steps=2.5 must be a whole number from 1"),
        ({"num_steps": "8"}, "num_steps='8' must be"),
        ({"num_steps": 8, "num_inference_steps": 9}, "num_inference_steps and num_steps are the"),
        ({"generator": 1}, "no argument 'generator': give seed"),
        ({"num_images_per_prompt": True}, "num_images_per_prompt=True"),
        ({"num_images_per_prompt": 10**9}, "from 1 to 65536"),
        ({"guidance_scale": "high"}, "guidance_scale='high' must be one number or"),
        ({"temperature": (1.0, None)}, "temperature=.* must be one number or"),
        ({"output_type": "pt"}, "output_type must be one of pil, np, tokens, latents, got 'pt'"),
        ({"output_type": "latents"}, "draws tokens, not latents"),
        ({"mask": np.ones((4, 4))}, "mask goes with image"),
        ({"strength": 0.5}, "strength goes with image"),
        ({"callback": 3}, "callback is of type int"),
        ({"callback": print, "callback_every": 0}, "callback_every=0"),
        ({"progress": "yes"}, "progress must be True or False"),
        ({"height": 31.5}, "height=31.5"),
        ({"seed": 1.5}, "seed 1.5 must be a whole number"),
        ({"seed": "a"}, "seed 'a' must be a whole number"),
        ({"seed": -1}, "seed -1 must be"),
        ({"negative_prompt": 3}, "negative_prompt"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number from 1"),
        ({"batch_size": "8"}, "batch_size='8' must be"),
        ({"stage_b_num_steps": 3}, "no setting stage_b_num_steps"),
        ({"prompt_embeds": 3}, "one of them"),
    ],
)
def test_wrong_arguments_are_named(pipe, arguments, words):
    before = programs(pipe)
    with pytest.raises(ValueError, match=words):
        pipe(RED, **arguments)
    assert programs(pipe) == before


# What no argument below takes; of each argument what else it refuses.
NOTHING = (object(), {}, b"x", np.zeros(3), float("nan"), (1, 2, 3))
NUMBERS = (*NOTHING, "12", float("inf"), [])
WHOLE = (*NUMBERS, 1.5, -1, (1, 2), True)
OTHERS = {
    "pipe": {
        "prompt": (*NOTHING, 3, True, [], ["a", 3]),
        "prompt_embeds": (*NOTHING, 3, "a", []),
        "negative_prompt": (*NOTHING, 3, True, [], ["a", "b"]),
        "height": (*WHOLE, 2**70, 0, 12),
        "width": (*WHOLE, 2**70, 0, 12),
        "num_steps": (*WHOLE, 2**70, 0),
        "num_images_per_prompt": (*WHOLE, 2**70, 0),
        "batch_size": (*WHOLE, 2**70, 0),
        "callback_every": (*WHOLE, 2**70, 0),
        "guidance_scale": (*NUMBERS, True),
        "temperature": (*NUMBERS, True, 0, -1),
        "seed": (*WHOLE, 2**70),
        "output_type": (*NOTHING, 3, "gif"),
        "progress": (*NOTHING, 1, "yes"),
        "trace": (*NOTHING, 1, "yes"),
        "callback": (*NOTHING, 1, "yes"),
        "sampler": (*NOTHING, 0, [], "best"),
        "renoise_steps": WHOLE,
        "guided_steps": WHOLE,
        "quantize_from_step": WHOLE,
        "renoise_mode": (*NOTHING, 1, "sometimes"),
        "typical_mass": (*NUMBERS, 0, 1, -1, True),
        "t_start": (*NUMBERS, -1, 1.5, True),
        "t_end": (*NUMBERS, -1, 1, True),
        "weights": (*NUMBERS, -1, 0, 3),
        "known": (*NOTHING, 1, "a", True),
        "image_tokens": (*NOTHING, 1, "a", True),
    },
    "masked": {
        "schedule": (*NOTHING, 1, "fast"),
        "exponent": (*NOTHING, "12", True, 0),
        "choice_temperature": (*NUMBERS, -1, True),
        "temperature": (*NUMBERS, 0, True),
        "strength": (*NUMBERS, 0, 2, True),
    },
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_argument_refuses_what_it_is_not(name, request):
    """In one line that names it, before anything is compiled."""
    pipe = request.getfixturevalue(name)
    before = programs(pipe)
    for argument, wrong in OTHERS[name].items():
        own = () if argument.startswith("prompt") else (RED,)
        for value in wrong:
            with pytest.raises(ValueError, match=argument) as refused:
                pipe(*own, **{argument: value})
            assert "\n" not in str(refused.value), (argument, value)
    assert programs(pipe) == before


def test_wrong_images_and_prompts_are_named(pipe, photo):
    mask = np.zeros((60, 100), bool)
    for arguments, words in (
        ({"mask": mask}, "marks nothing"),
        ({"mask": ~mask}, "marks everything"),
        ({"mask": np.ones((60, 60))}, "the mask is 60x60 pixels .* proportions"),
        ({"mask": np.ones((60, 100, 3))}, "a mask array has shape"),
        ({"strength": 0.0}, "strength must be in"),
        ({"strength": "half"}, "strength must be in"),
        ({"strength": 1.5}, "strength must be in"),
        ({"height": 30}, "height 30 must be"),
    ):
        with pytest.raises(ValueError, match=words):
            pipe(RED, image=photo, **arguments)
    with pytest.raises(ImageError, match=r"absent\.png"):
        pipe(RED, image="absent.png")
    with pytest.raises(PromptError, match="prompt 0 is empty"):
        pipe("", image=photo)
    for nothing in ({}, {"prompt": RED, "prompt_embeds": pipe.embed(RED)}):
        with pytest.raises(ValueError, match="give a prompt or prompt_embeds"):
            pipe(**nothing)
    with pytest.raises(ValueError, match="hold their negative prompts"):
        pipe(prompt_embeds=pipe.embed(RED), negative_prompt="x")
