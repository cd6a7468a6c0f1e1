"""The oracle reads what the renderer drew, and notices every kind of mistake."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from paella_jax.data.shapes import SPECS, Scene, ShapeObject, sample_scene
from paella_jax.data.shapes_render import render
from paella_jax.evaluation.oracle import compare_scenes, read_scenes, score, summary

RATES = ("background", "count", "position", "color", "shape", "size")


@cache
def samples(name: str, split: str, count: int) -> tuple[np.ndarray, tuple[Scene, ...]]:
    scenes = tuple(sample_scene(SPECS[name], split, 0, i) for i in range(count))
    return np.stack([render(s, SPECS[name]) for s in scenes]), scenes


def blur(images: np.ndarray) -> np.ndarray:
    """A 3x3 binomial blur, edges repeated."""
    for axis in (1, 2):
        pad = [(1, 1) if a == axis else (0, 0) for a in range(4)]
        p = np.pad(images, pad, mode="edge")
        n = images.shape[axis]
        low, mid, high = (np.take(p, range(i, i + n), axis=axis) for i in range(3))
        images = (low + 2 * mid + high) / 4
    return images


@pytest.mark.parametrize(("name", "count"), [("tiny", 100), ("shapes", 500), ("shapes64", 200)])
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_clean_renders_are_read_exactly(name, count, split):
    images, scenes = samples(name, split, count)
    result = score(images, scenes, SPECS[name])
    assert result.exact >= 0.99
    assert result.num_images == count
    assert result.num_objects == sum(len(s.objects) for s in scenes)
    assert result.num_matched >= 0.99 * result.num_objects


def test_jitter_is_read_too_and_does_not_count():
    images, scenes = samples("shapes64", "train", 60)
    assert read_scenes(images, SPECS["shapes64"]) == list(scenes)
    assert score(images, [s.without_jitter() for s in scenes], SPECS["shapes64"]).exact == 1.0


@pytest.mark.parametrize("name", SPECS)
def test_blur_and_noise_hardly_matter(name):
    images, scenes = samples(name, "validation", 200)
    noise = np.random.default_rng(0).normal(0, 0.06, images.shape)
    worn = np.clip(blur(images / 255.0) + noise, 0, 1)
    assert score(worn, scenes, SPECS[name]).exact >= 0.97


def test_float_and_bytes_and_single_images_agree():
    images, scenes = samples("shapes", "train", 500)
    few, spec = images[:20], SPECS["shapes"]
    read = read_scenes(few, spec)
    assert read == read_scenes(few / np.float32(255), spec)
    assert read == read_scenes((few / 255).astype(np.float16), spec)
    assert read == [read_scenes(image[None], spec)[0] for image in few] == list(scenes[:20])
    assert read_scenes(few[:0], spec) == []


TRUTH = Scene(
    "white",
    (
        ShapeObject("red", "circle", "large", 0, 0),
        ShapeObject("blue", "cross", "small", 1, 1),
    ),
)
FIRST, SECOND = TRUTH.objects


@pytest.mark.parametrize(
    ("drawn", "fallen"),
    [
        (Scene("white", (replace(FIRST, color="orange"), SECOND)), {"color": 0.5}),
        (Scene("white", (replace(FIRST, shape="square"), SECOND)), {"shape": 0.5}),
        (Scene("white", (FIRST, replace(SECOND, size="large"))), {"size": 0.5}),
        (Scene("white", (FIRST, replace(SECOND, row=0))), {"position": 0.0}),
        (Scene("white", (FIRST,)), {"count": 0.0, "position": 0.0}),
        (
            Scene("white", (*TRUTH.objects, ShapeObject("green", "square", "small", 0, 1))),
            {"count": 0.0, "position": 0.0},
        ),
        (Scene("gray", TRUTH.objects), {"background": 0.0}),
        (
            Scene("white", (replace(FIRST, row=1, column=1), replace(SECOND, row=0, column=0))),
            {"color": 0.0, "shape": 0.0, "size": 0.0},
        ),
        (
            Scene("white", ()),
            {"count": 0.0, "position": 0.0, "color": 0.0, "shape": 0.0, "size": 0.0},
        ),
    ],
    ids=[
        "color",
        "shape",
        "size",
        "position",
        "missing",
        "extra",
        "background",
        "swapped",
        "empty",
    ],
)
def test_every_kind_of_mistake_lowers_its_own_score(drawn, fallen):
    spec = SPECS["shapes"]
    images = np.stack([render(TRUTH, spec), render(drawn, spec)])
    good, bad = score(images[:1], [TRUTH], spec), score(images[1:], [TRUTH], spec)
    assert {name: getattr(good, name) for name in ("exact", *RATES)} == dict.fromkeys(
        ("exact", *RATES), 1.0
    )
    assert bad.exact == 0.0
    assert {name: getattr(bad, name) for name in RATES} == dict.fromkeys(RATES, 1.0) | fallen
    assert score(images, [TRUTH, TRUTH], spec).exact_images.tolist() == [True, False]


def test_confusion_counts_wrong_missing_and_extra_objects():
    drawn = Scene("black", (replace(FIRST, color="green"), replace(SECOND, row=0)))
    result = compare_scenes([drawn, TRUTH], [TRUTH, TRUTH])
    assert result.confusion["color"] == {
        "blue": {"blue": 1, "none": 1},
        "none": {"blue": 1},
        "red": {"green": 1, "red": 1},
    }
    assert result.confusion["background"] == {"white": {"black": 1, "white": 1}}
    assert result.confusion["count"] == {"2": {"2": 2}}
    assert result.num_matched == 3


def test_scores_are_json():
    images, scenes = samples("tiny", "train", 100)
    result = score(images, scenes, SPECS["tiny"])
    loaded = json.loads(json.dumps(result.to_dict()))
    assert loaded["exact"] == result.exact
    assert loaded["exact_images"] == result.exact_images.tolist()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 32, 32), np.uint8), "must be"),
        (np.zeros((1, 64, 64, 3), np.uint8), "must be"),
        (np.zeros((1, 32, 32, 3), np.int32), "int32"),
        (np.full((1, 32, 32, 3), np.nan, np.float32), "not finite"),
        (np.full((1, 32, 32, 3), 255.0, np.float32), "0, 1"),
        (np.full((1, 32, 32, 3), -1.0, np.float32), "0, 1"),
    ],
)
def test_bad_images_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        read_scenes(images, SPECS["shapes"])


@pytest.mark.parametrize("count", [0, 2])
def test_counts_must_agree(count):
    images, _ = samples("tiny", "train", 100)
    with pytest.raises(ValueError, match="cannot compare"):
        score(images[:count], [], SPECS["tiny"])


def test_a_garbled_object_is_exact_but_not_clean():
    spec = SPECS["shapes"]
    right = render(TRUTH, spec).astype(np.float32) / 255
    row = TRUTH.objects[0].row * spec.tile
    column = TRUTH.objects[0].column * spec.tile
    noise = np.random.default_rng(0).normal(size=(spec.tile, spec.tile, 3)).astype(np.float32)
    garbled, grainy = right.copy(), right.copy()
    for image, size in ((garbled, 0.4), (grainy, 0.05)):
        tile = image[row : row + spec.tile, column : column + spec.tile]
        tile[:] = np.clip(tile + size * noise, 0, 1)
    result = score(np.stack([right, garbled, grainy]), [TRUTH] * 3, spec)
    assert result.exact == 1.0 and result.clean == pytest.approx(2 / 3)
    assert score(right[None], [Scene("gray", TRUTH.objects)], spec).clean == 0.0
    assert summary(result)["clean"] == pytest.approx(0.6667)
