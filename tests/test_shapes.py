"""The captioned-shapes task: determinism, splits, captions and pixels."""

import hashlib
import pickle
from collections import Counter

import numpy as np
import pytest

from paella_jax.data.shapes import (
    SPECS,
    SPLITS,
    Scene,
    ShapeObject,
    check_scene,
    get_spec,
    sample_scene,
)
from paella_jax.data.shapes_captions import caption, parse_caption
from paella_jax.data.shapes_render import BACKGROUNDS, COLORS, RADII, coverage, render
from paella_jax.data.sources import ShapesSource

# The words and bytes of sample 3 (seed 0) and the digest of the first 64 images of each split.
GOLDEN = {
    ("tiny", "train"): (
        "a large green circle at the top right on a black background",
        "24172b25c95f0945",
    ),
    ("tiny", "validation"): (
        "a large red circle at the top left on a white background",
        "661a84326055abdd",
    ),
    ("tiny", "heldout"): (
        "a large blue square at the top right on a white background",
        "3153c593c291f47e",
    ),
    ("shapes", "train"): (
        "a large yellow square at the top right on a gray background",
        "b317e1c8d64d73df",
    ),
    ("shapes", "validation"): (
        "a small purple square at the top right and a large blue cross at the bottom right "
        "on a gray background",
        "d149d93569cd898b",
    ),
    ("shapes", "heldout"): (
        "a small yellow cross at the top right on a white background",
        "06e12393735fbd5a",
    ),
    ("single", "train"): (
        "a large yellow square at the top right on a gray background",
        "0a751c766026c589",
    ),
    ("single", "validation"): (
        "a small blue circle at the top left on a gray background",
        "11a2d9355e256aa7",
    ),
    ("single", "heldout"): (
        "a small yellow cross at the top right on a white background",
        "f451f9bd2d899d7c",
    ),
    ("shapes64", "train"): (
        "a large cyan heart at the left and a large orange square at the right "
        "on a white background",
        "079ff8c83a8544f6",
    ),
    ("shapes64", "validation"): (
        "a small pink cross at the top left and a large orange heart at the center "
        "on a gray background",
        "0b30230c25c4ffd6",
    ),
    ("shapes64", "heldout"): (
        "a small green circle at the left and a small pink heart at the bottom left "
        "on a gray background",
        "2ec33a819acefc67",
    ),
}


def scenes_of(name: str, split: str, count: int, seed: int = 0) -> list[Scene]:
    return [sample_scene(SPECS[name], split, seed, i) for i in range(count)]


def digest_of(source: ShapesSource) -> str:
    digest = hashlib.sha256()
    for i in range(len(source)):
        digest.update(source[i]["image"].tobytes())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("split", SPLITS)
def test_same_words_and_bytes_on_every_machine(name, split):
    source = ShapesSource(name, split, 64, seed=0)
    assert (source[3]["caption"], digest_of(source)) == GOLDEN[name, split]


@pytest.mark.parametrize("name", SPECS)
def test_scenes_are_random_access_and_depend_on_seed_split_and_index(name):
    spec = SPECS[name]
    forward = scenes_of(name, "train", 50)
    backward = [sample_scene(spec, "train", 0, i) for i in reversed(range(50))][::-1]
    assert forward == backward
    assert forward != scenes_of(name, "train", 50, seed=1)
    assert forward != scenes_of(name, "validation", 50)
    assert len(set(forward)) > 15


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("split", SPLITS)
def test_only_heldout_scenes_have_heldout_pairs(name, split):
    pairs = set(SPECS[name].heldout)
    seen = Counter()
    for scene in scenes_of(name, split, 1500):
        check_scene(scene, SPECS[name])
        hits = [(o.color, o.shape) for o in scene.objects if (o.color, o.shape) in pairs]
        assert bool(hits) == (split == "heldout")
        seen.update(hits)
    assert set(seen) == (pairs if split == "heldout" else set())


@pytest.mark.parametrize("name", ["shapes", "shapes64"])
def test_one_pair_per_color_is_held_out(name):
    spec = SPECS[name]
    assert sorted(color for color, _ in spec.heldout) == sorted(spec.colors)


@pytest.mark.parametrize("name", ["shapes", "shapes64"])
def test_train_and_validation_share_no_scene(name):
    def distinct(split: str) -> set[Scene]:
        return {s.without_jitter() for s in scenes_of(name, split, 3000, seed=7)}

    assert not distinct("train") & distinct("validation")


def test_tiny_train_and_validation_share_the_forty_seen_scenes():
    train, validation = (set(scenes_of("tiny", s, 600)) for s in ("train", "validation"))
    assert train == validation
    assert len(train) == 40


@pytest.mark.parametrize("name", SPECS)
def test_every_word_count_cell_and_jitter_occurs(name):
    spec = SPECS[name]
    scenes = scenes_of(name, "train", 1500)
    objects = [o for s in scenes for o in s.objects]
    assert {s.background for s in scenes} == set(spec.backgrounds)
    assert {o.color for o in objects} == set(spec.colors)
    assert {o.shape for o in objects} == set(spec.shapes)
    assert {o.size for o in objects} == set(spec.sizes)
    assert len({(o.row, o.column) for o in objects}) == spec.lattice**2
    assert len({o.jitter for o in objects}) == (2 * spec.jitter + 1) ** 2
    counts = Counter(len(s.objects) for s in scenes)
    assert sorted(counts) == list(range(spec.min_objects, spec.max_objects + 1))
    assert min(counts.values()) > 0.8 * len(scenes) / len(counts)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("split", SPLITS)
def test_captions_are_read_back_as_their_scene(name, split):
    spec = SPECS[name]
    scenes = {s.without_jitter() for s in scenes_of(name, split, 1000)}
    texts = {caption(s, spec): s for s in scenes}
    assert len(texts) == len(scenes)
    assert all(parse_caption(text, spec) == scene for text, scene in texts.items())


def test_captions_as_specified():
    red = ShapeObject("red", "circle", "large", 0, 0)
    blue = ShapeObject("blue", "square", "small", 1, 1)
    text = (
        "a large red circle at the top left and a small blue square at the bottom right "
        "on a white background"
    )
    assert caption(Scene("white", (blue, red)), get_spec("shapes")) == text
    places = [
        caption(Scene("white", (ShapeObject("red", "circle", "large", r, c),)), SPECS["shapes64"])
        for r in range(3)
        for c in range(3)
    ]
    assert [p.split(" at the ")[1].removesuffix(" on a white background") for p in places] == [
        "top left", "top", "top right", "left", "center", "right",
        "bottom left", "bottom", "bottom right",
    ]  # fmt: skip


@pytest.mark.parametrize("relation", ["above", "below", "left of", "right of"])
def test_captions_use_every_relation_and_jitter_never_changes_one(relation):
    spec = SPECS["shapes64"]
    scenes = scenes_of("shapes64", "train", 400)
    assert any(f" {relation} a " in caption(s, spec) for s in scenes)
    assert all(caption(s, spec) == caption(s.without_jitter(), spec) for s in scenes)


def test_a_relation_places_the_first_object_next_to_the_second():
    scene = parse_caption(
        "A small blue star  left of a large red circle at the center on a black background.",
        SPECS["shapes64"],
    )
    star, circle = scene.objects
    assert (star.shape, star.row, star.column) == ("star", 1, 0)
    assert (circle.shape, circle.row, circle.column) == ("circle", 1, 1)


def test_paraphrases_vary_with_the_seed_only_and_differ_between_scenes():
    spec = SPECS["shapes64"]
    scenes = list({s.without_jitter() for s in scenes_of("shapes64", "train", 300)})
    first = [caption(s, spec, paraphrase_seed=1) for s in scenes]
    assert first == [caption(s, spec, paraphrase_seed=1) for s in scenes]
    assert len(set(first)) == len(scenes)
    changed = [a != caption(s, spec, paraphrase_seed=2) for a, s in zip(first, scenes, strict=True)]
    assert np.mean(changed) > 0.9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a large red circle at the top left", "must end in"),
        ("a large red circle at the top left on a teal background", "background 'teal'"),
        ("a large teal circle at the top left on a white background", "color 'teal'"),
        ("a large red blob at the top left on a white background", "shape 'blob'"),
        ("a huge red circle at the top left on a white background", "size 'huge'"),
        ("a large red circle at the center on a white background", "place 'center'"),
        ("red circle on a white background", "cannot read 'red circle'"),
        (
            "a large red circle at the top left and a large red circle at the top left "
            "on a white background",
            "share a lattice cell",
        ),
        (
            "a large red circle at the top left, a large red circle at the top right "
            "and a large red circle at the bottom left on a white background",
            "3 objects asked for",
        ),
        (
            "a large red circle above a small blue cross at the bottom left on a white background",
            "no relations",
        ),
    ],
)
def test_unreadable_prompts_say_why(text, message):
    with pytest.raises(ValueError, match=message):
        parse_caption(text, SPECS["shapes"])


def test_a_relation_that_leaves_the_lattice_is_refused():
    text = "a large red circle above a small blue cross at the top on a white background"
    with pytest.raises(ValueError, match="no cell above the top"):
        parse_caption(text, SPECS["shapes64"])


@pytest.mark.parametrize("name", SPECS)
def test_images_show_pure_color_inside_and_background_on_the_border(name):
    spec = SPECS[name]
    for scene in scenes_of(name, "heldout", 200):
        image = render(scene, spec)
        assert image.shape == (spec.image_size, spec.image_size, 3)
        assert image.dtype == np.uint8
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (border == BACKGROUNDS[scene.background]).all(-1).mean() > 0.8
        for o in scene.objects:
            assert (image == COLORS[o.color]).all(-1).sum() >= 4


def test_jitter_moves_an_object_by_whole_pixels():
    still = coverage("star", "large", 20, (0, 0))
    moved = coverage("star", "large", 20, (1, -1))
    np.testing.assert_array_equal(moved[1:, :-1], still[:-1, 1:])


@pytest.mark.parametrize("shape", SPECS["shapes64"].shapes)
@pytest.mark.parametrize("cell", [16, 20])
def test_coverage_is_antialiased_mirror_symmetric_and_scales(shape, cell):
    areas = {}
    for size in RADII:
        cover = coverage(shape, size, cell, (0, 0))
        np.testing.assert_array_equal(cover, cover[:, ::-1])
        assert cover.min() == 0
        assert cover.max() == 256
        assert ((cover > 0) & (cover < 256)).any()
        areas[size] = cover.sum() / 256
    # A ring's or a star's thin parts lose a little at low resolution.
    assert areas["large"] / areas["small"] == pytest.approx((0.42 / 0.26) ** 2, rel=0.1)


def test_source_samples_pickle_and_bounds():
    source = ShapesSource("shapes", "validation", 10, seed=3)
    copy = pickle.loads(pickle.dumps(source))
    assert len(source) == 10
    sample, again = source[np.int64(4)], copy[4]
    assert sample.keys() == {"image", "caption", "index"}
    assert sample["index"] == 4
    assert sample["caption"] == again["caption"] == caption(source.scene(4), SPECS["shapes"])
    np.testing.assert_array_equal(sample["image"], again["image"])
    assert "validation" in repr(source)
    for index in (-1, 10):
        with pytest.raises(IndexError, match="outside"):
            source[index]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("shape", "train", 1, 0), "unknown shapes spec 'shape'; known: tiny, shapes, single"),
        (("shapes", "test", 1, 0), "unknown split 'test'"),
        (("shapes", "train", -1, 0), "size must be at least 0"),
    ],
)
def test_source_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShapesSource(*arguments)


def test_sampling_and_rendering_refuse_bad_arguments():
    spec = SPECS["shapes"]
    with pytest.raises(ValueError, match="unknown split"):
        sample_scene(spec, "test", 0, 0)
    with pytest.raises(ValueError, match="index"):
        sample_scene(spec, "train", 0, -1)
    for changed, message in [
        (ShapeObject("cyan", "circle", "large", 0, 0), "color 'cyan'"),
        (ShapeObject("red", "circle", "large", 2, 0), "outside the 2x2 lattice"),
        (ShapeObject("red", "circle", "large", 0, 0, (0, 1)), "jittered by more than 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            render(Scene("white", (changed,)), spec)
