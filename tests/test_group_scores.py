"""Whether images are of the group that captions ask for: the classifier, groups, and refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import small
import small_records
from small_judges import shrinking_judges

from paella_jax.data.build import make_records
from paella_jax.encoders.feature_network import Features
from paella_jax.evaluation.estimates import bootstrap
from paella_jax.evaluation.groups import classify_groups
from paella_jax.reports.gathered import ScoreError, gather
from paella_jax.reports.group_scores import Grouping, Said, grouping, learn_groups
from paella_jax.reports.run_scores import score_run
from paella_jax.reports.scored_data import scored_data
from paella_jax.reports.scored_run import Asked
from paella_jax.runs.folder import prepare_workdir


def test_the_classifier_sees_through_what_all_groups_vary_in():
    """Groups lie apart in one number, while another one varies far more within each of them."""
    draw = np.random.default_rng(0)
    groups = np.repeat([0, 1, 2], [40, 80, 20])

    def features(groups):
        x = draw.normal(size=(len(groups), 50))
        x[:, 0] = 3.0 * groups + 0.2 * x[:, 0]
        return x + 30.0 * draw.normal(size=(len(groups), 1)) * np.eye(50)[1]

    classify = classify_groups(features(groups), groups)
    others = np.tile([0, 1, 2], 50)
    assert (classify(features(others)) == others).mean() > 0.95
    few = classify_groups(features(groups)[:60, :], groups[:60])  # barely more than features
    assert (few(features(others % 2)) == others % 2).mean() > 0.9
    shuffled = classify_groups(features(groups), draw.permutation(groups))
    assert (shuffled(features(others)) == others).mean() < 0.6
    with pytest.raises(ValueError, match=r"a group of images needs at least 8 images.*are 7"):
        classify_groups(features(groups[:87]), np.repeat([0, 1], [80, 7]))


def test_a_bootstrap_s_interval_is_that_of_the_share():
    right = np.arange(200) % 5 > 0
    found = bootstrap(right)
    assert found.value == 0.8
    deviation = (0.8 * 0.2 / 200) ** 0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.15)
    nearly = bootstrap(np.arange(50) > 0)
    assert nearly.low < nearly.value < nearly.high == 1.0
    with pytest.raises(ValueError, match="at least 2 images"):
        bootstrap([True])


@pytest.mark.parametrize(
    "caption, group",
    [
        ("A Fox at night", "fox"),
        ("an arctic fox", "arctic fox"),
        ("a hen and a fox", ""),  # of two groups
        ("foxes", ""),
        ("a C++ (logo)", "c++"),
        ("nothing of the kind", ""),
    ],
)
def test_groups_by_words(caption, group):
    assert grouping("fox, hen,Arctic Fox,C++").of(Said(caption, "other")) == group


def test_groups_by_a_field_and_what_is_no_grouping():
    assert grouping("style").of(Said("a fox", "flat")) == "flat"
    assert not grouping("") and grouping("a,b")
    for wrong in ("style,", "a,a", "a,A"):
        with pytest.raises(ScoreError, match="two or more different words"):
            grouping(wrong)


@pytest.mark.parametrize("kind", list(small_records.FIELD))
def test_every_source_gives_the_field(kind, tmp_path):
    place = small_records.write(kind, tmp_path / "data", 9)
    data = scored_data(
        small.config_of("paella:folder32"), str(place), (), small_records.GROUP[kind]
    )
    records = make_records(data, True)
    found = [records.read(position).group for position in range(3)]
    assert found == (["0", "1", "2"] if kind == "tfds" else ["even", "odd", "even"])
    source_group = scored_data(small.config_of("paella:folder32"), str(place))
    assert make_records(source_group, True).read(0).group == ""
    if kind != "webdataset":  # where every json may have other fields
        data.group_field = "absent"
        with pytest.raises(ValueError, match="'absent'"):
            make_records(data, True)


@pytest.fixture(scope="module")
def tones():
    """40 dark and 40 light images, and what is said of them."""
    draw = np.random.default_rng(0)
    images = [draw.integers(128 * (n % 2), 128 + 128 * (n % 2), (8, 8, 3)) for n in range(80)]
    said = [Said(f"a {('dark', 'light')[n % 2]} square") for n in range(80)]
    return gather([image.astype(np.uint8) for image in images], shrinking_judges()), said


def test_images_are_marked_by_what_they_are_asked_to_be(tones):
    images, said = tones
    marks = learn_groups(grouping("light,dark"), images, said, said)
    swapped = [*said[:40], *(Said("light" if "dark" in one.caption else "dark")
                             for one in said[40:])]  # fmt: skip
    assert marks.mark("drawn", images, said)["group_right"].value == 1.0
    assert marks.mark("half", images, swapped)["group_right"].value == 0.5
    unasked = [Said("a light one and a dark one")] * 20 + said[20:]
    assert marks.mark("some", images, unasked)["group_right"].value == 1.0
    assert marks.report["some"]["without_group"] == 20
    assert marks.report["half"]["groups"]["dark"] == {"images": 40, "right": 0.5}
    assert "dark, light" in marks.note() and "0.50 by chance" in marks.note()


def test_a_decoder_that_darkens_makes_nothing_a_dark_image(tones):
    images, said = tones
    spread = images.vectors[1].mean() - images.vectors[0].mean()
    darker = images.vectors - 0.6 * spread  # the light ones nearer to the true dark ones
    drawn = replace(images, features=Features(darker, None))
    unaware = learn_groups(grouping("light,dark"), images, said, said)
    assert unaware.mark("drawn", drawn, said)["group_right"].value < 0.75
    assert "rebuilds" not in unaware.note()
    aware = learn_groups(grouping("light,dark"), images, said, said, lambda: drawn)
    assert aware.mark("drawn", drawn, said)["group_right"].value > 0.9
    assert aware.mark("real", images, said)["group_right"].value > 0.9
    assert "as they are and as the run rebuilds them" in aware.note()


def test_too_little_to_learn_or_to_mark(tones):
    images, said = tones
    for words, known, wanted, message in (
        ("red,blue", said, said, "of 80 images there are: none"),
        ("dark,blue", said, said, r"there are: dark \(40\)\. Give another field"),
        ("dark,light", said, [Said("a square")] * 9, "0 of the 9 captions to draw ask for one of"),
        ("dark,light", [*said[:14], *[Said("")] * 66], said, r"dark \(7\), light \(7\)"),
    ):
        with pytest.raises(ScoreError, match=message):
            learn_groups(grouping(words), images, known, wanted, lambda: pytest.fail("too early"))
    with pytest.raises(ScoreError, match="--groups style: two groups"):
        learn_groups(Grouping(by="style"), images, said, said)


def test_what_groups_need_is_told_before_anything_is_read(tmp_path):
    drawing = prepare_workdir(tmp_path / "drawing", small.small_paella())
    tokenizer = prepare_workdir(tmp_path / "tokenizer", small.small_vqgan())
    for run, options, message in (
        (tokenizer, {}, "is for runs that draw, this is a 'vqgan'"),
        (drawing, {"training_images": 0}, "leave --training_images 0 out"),
        (drawing, {"prompts": "p.txt"}, "--groups style is a field, which --prompts have not"),
        (drawing, {"groups": "a,"}, "two or more different words"),
    ):
        asked = Asked(run, tmp_path / "out", **{"groups": "style"} | options)
        with pytest.raises(ScoreError, match=message):
            score_run(asked, shrinking_judges())
