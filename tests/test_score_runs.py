"""What a run is scored on: its data and prompts, by a pipeline that draws noise."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import small
from PIL import Image
from small_judges import shrinking_judges

from paella_jax.data.build import make_source
from paella_jax.reports import run_scores
from paella_jax.reports.gathered import Judges, ScoreError
from paella_jax.reports.run_scores import check_method, score_run
from paella_jax.reports.scored_data import note_on_other_data
from paella_jax.reports.scored_run import Asked
from paella_jax.runs.folder import DATA_FILE, prepare_workdir, read_config

SIZES = ((32, 32), (32, 48), (48, 32))


def write_images(folder, count, word="caption", most=256):
    """Captioned images of three shapes."""
    draw = np.random.default_rng(0)
    for n in range(count):
        pixels = draw.integers(0, most, (*SIZES[n % 3], 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{n:03}.png")
        (folder / f"{n:03}.txt").write_text(f"{word} {n}")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """100 images that a run is trained on, a quarter of them held back."""
    return write_images(tmp_path_factory.mktemp("data"), 100)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """70 images that it never saw, all dark."""
    return write_images(tmp_path_factory.mktemp("other"), 70, "dark thing", 60)


@pytest.fixture
def drawn(monkeypatch):
    """The captions that were drawn; of every run noise is drawn, and images come back as given."""
    captions, draw = [], np.random.default_rng(0)

    def generate(texts, seed, batch_size):
        captions.extend(texts)
        return SimpleNamespace(images=draw.random((len(texts), 32, 32, 3)).astype(np.float32))

    pipe = SimpleNamespace(can_encode=True, beside="tokens", cut_text=str, generate=generate,
                           encode=np.asarray, decode=np.asarray)  # fmt: skip
    monkeypatch.setattr(run_scores, "load", lambda *_, **__: pipe)
    return captions


def run_on(folder, workdir, **overrides):
    fields = {"data__folder": folder, "data__split": 0.25, "evaluation__batch_size": 8} | overrides
    return prepare_workdir(workdir, small.config_of("paella:folder32", **fields))


def test_a_run_of_several_shapes_is_scored_on_squares(data, drawn, tmp_path):
    """Its held-back images are squares; training images of other shapes do not lie beside them."""
    run = run_on(data, tmp_path / "run", data__buckets=SIZES)
    network, shapes = shrinking_judges().network, set()
    look = lambda image: (shapes.add(image.shape), network.prepare(image))[1]
    page = score_run(
        Asked(run, tmp_path / "out", num_images=24), Judges(replace(network, prepare=look))
    )
    assert "(24 of the training against 24)" in page and len(drawn) == 24
    assert shapes == {(32, 32, 3)} and (tmp_path / "out" / "scores.png").is_file()


def test_data_that_the_run_was_not_trained_on_is_told(data, other, drawn, tmp_path, capsys):
    run = run_on(data, tmp_path / "run")
    (run / DATA_FILE).write_text(json.dumps({"samples": 80}))
    told = "was trained on 80 samples, its data has 75 for training now: the held-back images may"
    score = lambda **options: score_run(
        Asked(run, tmp_path, num_images=20, **options), shrinking_judges()
    )
    assert told in score() and f"warning: The run {told}" in capsys.readouterr().out
    assert told in json.loads((tmp_path / "scores.json").read_text())["notes"][-1]
    assert told in score(data=str(data))  # the same images
    assert "not searched for among exactly" in score(data=str(other))
    (run / DATA_FILE).write_text(json.dumps({"samples": 75}))
    assert "was trained on" not in score()


def test_what_is_known_of_a_run_s_data(tmp_path):
    assert note_on_other_data(tmp_path, 9) == ""  # a converted run, or an old one
    (tmp_path / DATA_FILE).write_text("{}")
    assert "data.json cannot be read" in note_on_other_data(tmp_path, 9)


def rows_of(folder):
    report = json.loads((folder / "scores.json").read_text())
    return report["rows"], report["notes"]


def test_copies_are_searched_for_among_what_the_run_was_trained_on(
    data, other, drawn, tmp_path, monkeypatch
):
    """And not among the other half of images that it never saw; of those all are scored."""
    run, tables = run_on(data, tmp_path / "run", data__split=0.7), []
    monkeypatch.setattr(run_scores, "_save", lambda _, columns, captions: tables.append(columns))
    score_run(Asked(run, tmp_path / "a", data=str(other)), shrinking_judges())
    rows, _ = rows_of(tmp_path / "a")
    assert set(drawn) == {f"dark thing {n}" for n in range(70)}
    assert rows[0]["images"] == 70 and "copies" in rows[0]
    assert rows[-1]["name"] == "real images (35 against 35)"
    nearest = np.stack(tables[0]["nearest training"])
    assert nearest.max() > 200 and np.stack(tables[0]["true"]).max() < 60
    trained = make_source(read_config(run).data, "train", 0)
    pixels = {trained[n]["image"].tobytes() for n in range(len(trained))}
    assert all(image.tobytes() in pixels for image in nearest)
    # What is usual, the run's own held-back images say: the drawn ones are not nearer than those.
    assert rows[0]["copies"]["value"] < 0.2


@pytest.mark.parametrize("groups", ["", "dark,light"])
def test_a_run_whose_own_images_are_gone_is_scored_without_them(
    other, drawn, tmp_path, monkeypatch, capsys, groups
):
    run, tables = run_on(tmp_path / "gone", tmp_path / "run"), []
    monkeypatch.setattr(run_scores, "_save", lambda _, columns, captions: tables.append(columns))
    score = lambda: score_run(
        Asked(run, tmp_path / "a", data=str(other), groups=groups), shrinking_judges()
    )
    if groups:
        with pytest.raises(ScoreError, match=r"--groups dark,light learns from .*gone"):
            score()
        assert not drawn
        return
    score()
    rows, notes = rows_of(tmp_path / "a")
    assert "copies" not in rows[0] and tables[0]["nearest training"] is None
    told = "own training images cannot be had (data.folder"
    assert any(told in note for note in notes) and told in capsys.readouterr().out


@pytest.mark.parametrize("overrides", [(), ("--config.data.split=0.5",)])
def test_who_teaches_the_groups(data, other, drawn, tmp_path, monkeypatch, overrides):
    """Images of the place that are not scored, or the run's own where all of them are."""
    run, taught = run_on(data, tmp_path / "run"), []

    def learn(grouping, training, said, wanted, rebuild):
        taught.extend(said)
        raise KeyboardInterrupt

    monkeypatch.setattr(run_scores, "learn_groups", learn)
    asked = Asked(run, tmp_path, data=str(other), groups="dark,light", overrides=overrides)
    with pytest.raises(KeyboardInterrupt):
        score_run(asked, shrinking_judges())
    word, count = ("dark thing", 35) if overrides else ("caption", 75)
    assert len(taught) == count and all(one.caption.startswith(word) for one in taught)


def test_too_few_images_held_back_of_its_own_leave_copies_out(data, other, drawn, tmp_path):
    run = run_on(data, tmp_path / "run")  # 25
    score_run(Asked(run, tmp_path / "a", data=str(other)), shrinking_judges())
    rows, notes = rows_of(tmp_path / "a")
    assert "copies" not in rows[0]
    assert any("holds back, there are 25: it is left out" in note for note in notes)


def test_too_few_held_back_images_name_the_split(data, drawn, tmp_path):
    run = run_on(data, tmp_path / "run", data__split=0.05)
    with pytest.raises(ScoreError, match=r"data\.split 0\.05 holds 5 of 100 back"):
        score_run(Asked(run, tmp_path), shrinking_judges())
    assert not drawn


def test_a_direct_decoder_is_scored_beside_a_stage_c(tmp_path):
    with pytest.raises(ScoreError, match=r"decodes what a Stage C .*--checkpoint STAGE_C --direct"):
        check_method(tmp_path, "direct_decoder")
    with pytest.raises(ScoreError, match="'clip_prior', which makes no images"):
        check_method(tmp_path, "clip_prior")
    for method in ("tokens", "stage_b", "stage_c", "vqgan"):
        check_method(tmp_path, method)


def test_a_tokenizer_s_other_data_is_told(data, tmp_path):
    config = small.small_vqgan(
        data__source="folder", data__folder=data, data__split=0.25, data__buckets=SIZES
    )
    run = small.untrained(tmp_path / "run", config)
    (run / DATA_FILE).write_text(json.dumps({"samples": 74}))
    page = score_run(Asked(run, tmp_path / "out", num_images=20), shrinking_judges())
    assert "was trained on 74 samples" in page


def test_as_many_prompts_are_drawn_as_were_asked_for(data, drawn, tmp_path, capsys):
    run, prompts = run_on(data, tmp_path / "run"), tmp_path / "prompts.txt"
    prompts.write_text("".join(f"prompt {n}\n" for n in range(61)))
    asked = {"prompts": str(prompts), "training_images": 0}
    score_run(Asked(run, tmp_path, num_images=21, **asked), shrinking_judges())
    assert list(dict.fromkeys(drawn)) == [f"prompt {n}" for n in range(0, 61, 3)]
    rows = json.loads((tmp_path / "scores.json").read_text())["rows"]
    assert rows[0]["images"] == 21 and "21 of the 61 prompts" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, lines, message",
    [
        ({}, 3, r"--prompts .*need at least 20 prompts, there are 3 to draw; give more lines$"),
        ({"num_images": 19}, 30, "there are 19 to draw; give more lines or a larger --num_images"),
    ],
)
def test_too_few_prompts_are_refused_before_any_is_drawn(
    data, drawn, tmp_path, options, lines, message
):
    run, prompts = run_on(data, tmp_path / "run"), tmp_path / "prompts.txt"
    prompts.write_text("a\n" * lines)
    with pytest.raises(ScoreError, match=message):
        score_run(Asked(run, tmp_path, prompts=str(prompts), **options), shrinking_judges())
    assert not drawn


def test_numbers_below_what_can_be(tmp_path):
    for name, value, least in (("training_images", -1, 0), ("num_images", 0, 1)):
        with pytest.raises(ScoreError, match=f"--{name} must be at least {least}, got {value}"):
            Asked(tmp_path, tmp_path, **{name: value})
