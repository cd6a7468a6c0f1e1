"""What image tasks use by default, their windows and parts, their scores, and the sheet of them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from paella_jax.data.shapes import Scene, ShapeObject, get_spec
from paella_jax.data.shapes_captions import parse_caption
from paella_jax.evaluation import attributes as of
from paella_jax.evaluation.oracle import read_scenes
from paella_jax.images.sheet import GAP, Panel, SheetRow, save_sheet
from paella_jax.models.conditioning import Conditioning
from paella_jax.pipelines import tasks
from paella_jax.pipelines.presets import between_options, edit_settings, start_options
from paella_jax.pipelines.prompt_embeds import PromptEmbeds
from paella_jax.pipelines.prompts import Condition
from paella_jax.pipelines.variations import part_weights
from paella_jax.pipelines.windows import Window, windows_of
from paella_jax.reports import task_pairs
from paella_jax.reports.task_page import table
from paella_jax.sampling.renoise_settings import RenoiseSettings

SPEC = get_spec("shapes")
RED = ShapeObject("red", "circle", "large", 0, 0)
BLUE = ShapeObject("blue", "triangle", "small", 1, 1)
SETTINGS = RenoiseSettings(temperature=(0.9, 0.4), guidance_scale=(5.0, 3.0))


def run_with(guidance):
    """As much of a pipeline as the presets read."""
    config = ConfigDict({"sampler": {} if guidance is None else {"image_guidance": guidance}})
    return SimpleNamespace(config=config, settings=lambda *_: SETTINGS)


# --- presets


def test_strength_follows_the_runs_guidance_where_it_says_so():
    plain, own = run_with(None).config, run_with((0.1, 0.6)).config
    assert start_options(plain, SETTINGS, 0.5) == {"t_start": 0.5}
    quiet = start_options(own, SETTINGS, 0.5)
    assert quiet["t_start"] == 0.5 and quiet["guidance_scale"] == pytest.approx(0.35)
    louder = start_options(own, SETTINGS, 0.8)["guidance_scale"]
    assert quiet["guidance_scale"] < louder < 0.6
    assert start_options(own, SETTINGS, 1.0) == {"t_start": 1.0}  # text-to-image as ever


def test_editing_follows_the_runs_last_step():
    settings = edit_settings(run_with(None))
    assert settings.guidance_scale == (3.0, 3.0) and settings.temperature == (0.4, 0.4)
    own = edit_settings(run_with(None), guidance_scale=(4.0, 1.0), rounds=7)
    assert own.guidance_scale == (4.0, 1.0) and own.rounds == 7
    of_two_scales = SimpleNamespace(base=run_with(None))
    assert edit_settings(of_two_scales) == settings
    with pytest.raises(ValueError, match="share"):
        edit_settings(run_with(None), share=2.0)


def test_between_two_conditions_the_prompt_gets_quieter():
    assert between_options(run_with(None)) == {}
    assert between_options(run_with((0.1, 0.6))) == {"guidance_scale": (5.0, 0.1)}


def test_positions_of_one_text_alone_keep_their_vector():
    rng = np.random.default_rng(0)
    text, image = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 1, 3, 4), (1, 1, 5)))
    short, long = (np.array([[True, True, more]]) for more in (False, True))
    nothing = Conditioning(text=np.zeros((1, 3, 4), np.float32), text_mask=short)
    conditions = [
        Conditioning(text=text[n], text_mask=mask, image_pooled=image * n,
                     image_mask=np.array([[n == 1]]))
        for n, mask in enumerate((short, long))
    ]  # fmt: skip
    first, second = (
        PromptEmbeds((str(n),), ("",), {"": (one, nothing)}, {"": "run"})
        for n, one in enumerate(conditions)
    )
    assert first.towards(second, 0.0) is first and first.towards(second, 1.0) is second
    half = first.towards(second, 0.5).parts[""][0]
    np.testing.assert_allclose(half.text[:, :2], (text[0] + text[1])[:, :2] / 2)
    np.testing.assert_array_equal(half.text[:, 2], text[1][:, 2])
    np.testing.assert_array_equal(half.image_pooled, image)  # not half of one and half of nothing
    np.testing.assert_array_equal(half.text_mask, long)
    joined = first.and_then(second, first)
    assert joined.prompts == ("0", "1", "0") and len(joined.parts[""][0].text) == 3


# --- windows and parts


@pytest.mark.parametrize(
    ("canvas", "kept", "places"),
    [
        ((8, 12), Window(0, 0, 8, 8), [(0, 4)]),
        ((8, 16), Window(0, 0, 8, 8), [(0, 4), (0, 8)]),
        ((8, 16), Window(0, 4, 8, 8), [(0, 8), (0, 0)]),
        ((12, 12), Window(0, 0, 8, 8), [(0, 4), (4, 0), (4, 4)]),
        ((8, 13), Window(0, 5, 8, 8), [(0, 1), (0, 0)]),
        ((4, 12), Window(0, 4, 4, 4), [(0, 2), (0, 4), (0, 0)]),
    ],
)
def test_windows_cover_a_canvas_and_overlap_what_is_there(canvas, kept, places):
    windows = windows_of(canvas, kept, (8, 8))
    assert [(window.top, window.left) for window in windows] == places
    known = np.zeros(canvas, bool)
    known[kept.place] = True
    for window in windows:
        part = known[window.place]
        assert part.any() and not part.all()
        known[window.place] = True
    assert known.all()


def test_each_condition_has_its_own_part():
    weights = part_weights(2, (4, 6), "columns")
    assert weights.shape == (1, 2, 4, 6) and (weights.sum(1) == 1).all()
    assert (weights[0, 0, :, :3] == 1).all() and (weights[0, 1, :, 3:] == 1).all()
    rows = part_weights(3, (4, 6), "rows")[0].argmax(0)
    assert rows[:, 0].tolist() == [0, 0, 1, 2]
    with pytest.raises(ValueError, match="columns or rows"):
        part_weights(2, (4, 6), "diagonals")
    with pytest.raises(ValueError, match="give 2 to 4"):
        part_weights(5, (4, 6), "rows")


# --- scores


def test_scores_of_known_pairs():
    """Images of the source keep all and meet nothing, those of the request the other way round."""
    tiles = of.tiles(SPEC.lattice)
    source, request = Scene("white", (RED,)), Scene("black", (BLUE,))
    # Red over black, and a triangle with the circle's colour: between the two in known ways.
    mixed = Scene("black", (RED,))
    shown = [source, request, mixed]
    images = np.stack([task_pairs.image_of(scene, SPEC) for scene in shown])
    read = read_scenes(images, SPEC)
    assert read == shown
    score = lambda scene: of.kept_and_met([scene], [source], [request], tiles)
    assert [score(scene)[:2] for scene in read] == [(1.0, 0.0), (0.0, 1.0), (6 / 7, 1 / 7)]
    assert score(source).number == 7  # the background and three attributes in either tile
    assert of.kept_and_met([mixed], [source], [request], [(1, 1)]).number == 4
    with pytest.raises(ValueError, match="the same"):
        of.kept_and_met([source], [source], [source], tiles)


def test_what_an_edit_must_leave_alone():
    tiles = of.tiles(SPEC.lattice)
    source = Scene("white", (RED, BLUE))
    request = Scene("white", (replace(RED, color="green"), BLUE))
    both = lambda shown: of.unchanged([shown], [source], [request], tiles)
    assert both(request) == both(source) == 1.0
    assert both(Scene("black", source.objects)) == 5 / 6
    extra = Scene("white", (*request.objects, replace(RED, column=1)))
    assert both(extra) == 6 / 9


def test_what_images_have_in_common():
    source = Scene("white", (RED, BLUE))
    moved = Scene("white", (replace(RED, column=1), replace(BLUE, color="red")))
    shares = of.shared_by_kind([moved], [source])
    assert shares == {"background": 1, "position": 0, "color": 0.5, "shape": 1, "size": 1}
    assert of.shared_by_kind([Scene("black", ())], [source])["shape"] == 0
    with pytest.raises(ValueError, match="no images"):
        of.shared_by_kind([], [])


MAKERS = ("another", "same_background", "another_shape", "one_change", "right_half", "next_window")


@pytest.mark.parametrize("name", MAKERS)
def test_requests_are_scenes_of_the_data(name):
    made = task_pairs.pairs(SPEC, 12, 3, getattr(task_pairs, name))
    assert made == task_pairs.pairs(SPEC, 12, 3, getattr(task_pairs, name))
    for source, request in made:
        assert source != request
        assert parse_caption(task_pairs.text_of(request, SPEC), SPEC) == request
        pairs = {(o.color, o.shape) for o in request.objects}
        assert not pairs & set(SPEC.heldout)
        differing = of.kept_and_met([source], [source], [request], of.tiles(2)).number
        if name == "same_background":
            halves = ([(row, column) for row in (0, 1)] for column in (0, 1))
            assert all(of.kept_and_met([source], [source], [request], x).number for x in halves)
        if name == "one_change":
            assert differing == 1
        if name == "right_half":
            left = lambda scene: [o for o in scene.objects if o.column == 0]
            assert left(source) == left(request) and source.background == request.background
    with pytest.raises(ValueError, match="has no 9 pairs"):
        task_pairs.pairs(SPEC, 9, 3, lambda *given: None)


def test_the_table_leaves_out_what_no_task_has():
    rows = [
        {"task": "a", "setting": "x", "kept": 0.5, "clean": 1.0},
        {"task": "b", "setting": "y", "met": 0.25},
    ]
    lines = table(rows).splitlines()
    assert lines[0] == "| task | setting | source kept | request met | clean |"
    assert lines[2:] == ["| a | x | 0.50 |  | 1.00 |", "| b | y |  | 0.25 |  |"]


# --- the sheet


def test_a_sheet_has_no_empty_frames(tmp_path):
    """Panels of one height stand side by side in their own width, at one scale, none padded."""
    colors = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    sizes = [(8, 8), (8, 12), (10, 10)]
    red, green, blue = (
        np.broadcast_to(np.float32(color), (*size, 3))
        for color, size in zip(colors, sizes, strict=True)
    )
    rows = [
        SheetRow("a task", [Panel(red, "source"), Panel(green, "a wider result")]),
        SheetRow("another", [Panel(blue, "alone")]),
    ]
    save_sheet(tmp_path / "sheet.png", rows, zoom=2)
    with Image.open(tmp_path / "sheet.png") as image:
        pixels = np.asarray(image)
    for color, (height, width) in zip(colors, sizes, strict=True):
        found = (pixels == np.uint8(np.float32(color) * 255)).all(-1)
        assert found.sum() == 4 * height * width
        assert np.ptp(np.flatnonzero(found.any(1))) + 1 == 2 * height
        assert np.ptp(np.flatnonzero(found.any(0))) + 1 == 2 * width
    # As wide as its widest row, and no frame around nothing: 4 sides for each of 3 panels.
    assert pixels.shape[1] == 16 + 24 + GAP + 2 * GAP
    frame = (pixels == 0x88).all(-1)
    assert frame.sum() == sum(2 * (2 * h + 2 * w) + 4 for h, w in sizes)
    with pytest.raises(ValueError, match="have heights"):
        save_sheet(tmp_path / "x.png", [SheetRow("x", [Panel(red, ""), Panel(blue, "")])])
    with pytest.raises(ValueError, match="at least one row"):
        save_sheet(tmp_path / "x.png", [])


def test_a_prior_draws_with_the_seed_of_each_row(monkeypatch):
    seeds = []
    monkeypatch.setattr(tasks, "load_clip_prior", lambda folder: folder)
    monkeypatch.setattr(
        tasks.variations, "with_prior", lambda *given, seed: seeds.append(seed) or given[2]
    )
    pipe = SimpleNamespace(generate=lambda conditions, **options: conditions)
    flags = SimpleNamespace(prior="P", seed=3, height=None, width=None, num_images_per_prompt=1)
    conditions = [Condition("a"), Condition("b")]
    asked = tasks.Asked(pipe, flags, ["a", "b"], conditions, {"seed": [7, 8]})
    assert tasks.text_to_image(asked) == (conditions, ["a", "b"]) and seeds == [[7, 8]]
