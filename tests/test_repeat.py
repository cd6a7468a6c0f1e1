"""Repetitions: what is trained for them, what is refused, the table, and a whole small one."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import small
from ml_collections import ConfigDict

from paella_jax import compare as compare_command
from paella_jax import repeat as command
from paella_jax.config import ConfigError, load_config
from paella_jax.evaluation.captions import scored_samples
from paella_jax.evaluation.tuning import Tried, best
from paella_jax.runs.checkpoint import CheckpointError
from paella_jax.runs.folder import read_config
from paella_jax.seeds import score
from paella_jax.seeds.plan import make_plan, parse_seeds
from paella_jax.seeds.report import METRICS, write_report
from paella_jax.seeds.run import repeat
from paella_jax.seeds.score import measured, tuning_rounds
from paella_jax.seeds.wish import Wish
from paella_jax.training.finish import is_trained

OUT = Path("/nowhere/out")


def wish(spec="paella:tiny", *overrides, **options):
    return Wish(load_config(spec, [f"--config.{text}" for text in overrides]), **options)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("tokenizer") for _ in range(2)]
    return tuple(str(small.untrained(folder, small.small_vqgan())) for folder in folders)


def test_seeds_take_turns_on_two_trained_tokenizers():
    plan = make_plan(wish(), OUT)
    ((first, second),) = plan.shared
    assert [t.config.seed for t in (first, second)] == [0, 1]
    assert first.config.preset == "tiny" and first.config.method == "vqgan"
    assert [seed.stands_on["tokenizer"] for seed in plan.seeds] == [
        str(first.workdir), str(second.workdir), str(first.workdir)
    ]  # fmt: skip
    runs = [seed.trainings["run"].config for seed in plan.seeds]
    assert [run.seed for run in runs] == [0, 1, 2]
    assert [run.tokenizer for run in runs] == [s.stands_on["tokenizer"] for s in plan.seeds]
    assert len({t.workdir for t in plan.trainings()}) == 5
    assert len(make_plan(wish(seeds=(7,)), OUT).shared[0]) == 1


def test_a_seed_s_runs_keep_their_folders_when_seeds_are_added():
    some, more = (make_plan(wish(seeds=seeds), OUT).seeds for seeds in ((4, 2), (4, 2, 3)))
    assert more[:2] == some


def test_stage_c_stands_on_stage_b_on_tokenizers():
    plan = make_plan(wish("stage_c:tiny", direct=True), OUT)
    tokenizers, stage_bs = plan.shared
    assert [t.config.tokenizer for t in stage_bs] == [str(t.workdir) for t in tokenizers]
    seed = plan.seeds[1]
    assert list(seed.trainings) == ["run", "direct"]
    for training in seed.trainings.values():
        assert training.config.stage_b == str(stage_bs[1].workdir) and training.config.seed == 1
    assert seed.stands_on["tokenizer"] == str(tokenizers[1].workdir)


def test_super_resolution_has_a_base_on_the_small_images_tokens():
    plan = make_plan(wish("muse:super_resolution_tiny"), OUT)
    large, low = plan.shared[0][:2], plan.shared[0][2:]
    assert [t.config.model["levels"] for t in (*large, *low)] == [2, 2, 3, 3]
    base, run = (plan.seeds[1].trainings[name].config for name in ("base", "run"))
    assert run.tokenizer == str(large[1].workdir)
    assert base.tokenizer == run.low_tokenizer == str(low[1].workdir)
    assert base.cell.network == "transformer" and base.seed == run.seed == 1
    assert base.sampler.num_steps == 12 and run.sampler.num_steps == 8
    assert len(tuning_rounds(run)) == 2


@pytest.mark.parametrize(
    "given, message",
    [
        (wish("paella:1b"), "on the embedded data"),
        (wish("vqgan:tiny"), "draws no images from text"),
        (wish("compare:tiny"), "no config of a run"),
        (wish("paella:tiny", "init_from=RUN"), "from scratch"),
        (wish("paella:tiny", "seed=3"), "--seeds gives the seeds"),
        (wish("paella:tiny", "tokenizer=RUN"), "give --tokenizer RUN"),
        (wish("paella:tiny", "data.image_size=36"), "36 does not fit spec"),
        (wish("paella:tiny", "model.codebook_size=64"), "has 128 codes, the run 64"),
        (wish("paella:tiny", "cell.sampler=best"), "cell.sampler must be one of"),
        (wish(num_images=0), "at least 1"),
        (wish(direct=True), "for presets of stage_c"),
        (wish("stage_c:tiny", tasks=True), "token predictors of one scale"),
        (wish("muse:super_resolution_tiny", tasks=True), "token predictors of one scale"),
        (wish(low_tokenizers=("a",)), "for cell.network=super_resolution"),
        (wish(tokenizers=("a", "a")), "given twice"),
        (wish(seeds=(0,), tokenizers=("a", "b")), "2 of --tokenizer for 1 seeds"),
        (wish(tokenizers=("nowhere",)), "is not a run folder"),
        (wish("stage_c:tiny", stage_bs=("a",), tokenizers=("b",)), "leave --tokenizer out"),
        (wish("stage_c:tiny", "model.channels=8"), "compresses to 4 channels"),
        (wish("stage_c:shapes", "data.spec=shapes64", "data.image_size=64"), "unknown preset"),
        (wish("muse:super_resolution_tiny", "super_resolution.low_grid=8"), "gives 4x4 tokens"),
        (wish("paella:tiny", "text.max_length=9"), "set text.max_length=13"),
    ],
)
def test_what_cannot_be_repeated_ends_before_training(given, message, tmp_path):
    with pytest.raises((ConfigError, CheckpointError), match=message):
        repeat(given, tmp_path / "out", "")
    assert not (tmp_path / "out").exists()


def test_given_runs_of_another_kind_are_refused(tokenizers, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="has 32 codes, the run 128"):
        repeat(wish(tokenizers=tokenizers), out, "")
    with pytest.raises(ConfigError, match="is a vqgan run, not one of"):
        repeat(wish("stage_c:tiny", stage_bs=tokenizers), out, "")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text((Path(tokenizers[0]) / "config.json").read_text())
    with pytest.raises(CheckpointError, match="train it first"):
        repeat(wish(tokenizers=(str(empty),)), out, "")
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write to --out"):
        repeat(wish(), tmp_path / "file" / "out", "")


@pytest.mark.parametrize("text, message", [("0,0", "one twice"), ("0,a", "whole"), ("-1", "below")])
def test_senseless_seeds_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_seeds(text)
    assert parse_seeds("3,1") == (3, 1)


def test_captions_are_different_where_the_data_has_so_many():
    many, few = (measured(load_config(spec), 40, 20) for spec in ("paella:shapes", "paella:tiny"))
    counts = many.counts()
    assert [own["different"] for own in counts.values()] == [40, 40, 20]
    assert 1.0 < counts["seen"]["objects"] <= 2.0
    seen, heldout, tuning = (set(texts) for texts in (*(c for _, c in many.splits.values()),
                                                      many.tuning))  # fmt: skip
    assert not seen & tuning and not heldout & (seen | tuning)
    assert few.counts()["seen"]["captions"] == 40 > few.counts()["seen"]["different"]
    with pytest.raises(ConfigError, match="24 different captions"):
        scored_samples("tiny", "validation", 40, for_tuning=False, distinct=True)


def test_a_setting_must_be_better_than_the_run_s_own():
    own = Tried({}, 0.9, 0.95)
    equal = Tried({"guidance_scale": (1.0, 1.0)}, 0.9, 0.95)
    better = [Tried({"guidance_scale": weight}, 0.9, 0.96) for weight in ((1.0, 3.0), 2.0)]
    assert best([equal, own]) == own
    assert best([own, equal, *better]) == better[1], "the smaller guidance of two equal ones"


def row(seed, exact, **more):
    scores = lambda value: dict.fromkeys(METRICS, 1.0) | {"exact": value}
    return {
        "seed": seed,
        "stands_on": {"tokenizer": f"runs/tokenizer_{seed % 2}"},
        "seconds": {"run": 100.0 + seed},
        "chosen": {"guidance_scale": (1.0, 1.5)} if seed else {},
        "preset": {"seen": scores(exact), "heldout": scores(exact / 2)},
        "tuned": {"seen": scores(1.0), "heldout": scores(0.5)},
        "ceiling": {"seen": 1.0, "heldout": 0.75},
    } | more


COUNTS = {
    name: {"captions": 8, "different": 7, "objects": 1.5} for name in ("seen", "heldout", "tuning")
}


def test_the_table_has_mean_spread_and_minimum(tmp_path):
    config = load_config("paella:tiny")
    settings = {"config": config.to_dict(), "captions": COUNTS}
    result = write_report([row(0, 0.8), row(1, 0.9), row(2, 1.0)], tmp_path, "repeat it", settings)
    assert json.loads(json.dumps(result)) == json.loads((tmp_path / "seeds.json").read_text())
    assert result["over_seeds"]["preset"]["seen"]["exact"] == {
        "mean": 0.9, "deviation": 0.1, "minimum": 0.8,
    }  # fmt: skip
    page = (tmp_path / "seeds.md").read_text()
    assert "| seen exact | 0.900 ± 0.100 | 0.800 | 1.000 ± 0.000 | 1.000 |" in page
    assert "| held-out exact | 0.450 ± 0.050 | 0.400 | 0.500 ± 0.000 | 0.500 |" in page
    assert "    repeat it\n" in page and "8 (7 different, 1.5 objects each)" in page
    assert "| 1 | tokenizer_1 | run 101 | 0.900 | 0.450 | 1.000 | 0.500 |" in page
    assert "take turns to stand on: 2." in page and "100 to 102 seconds" in page

    decoders = {"drawn": dict.fromkeys(("exact", "color", "shape", "size", "position"), 0.5)}
    write_report([row(0, 0.8, decoders=decoders)], tmp_path, "repeat it", settings)
    page = (tmp_path / "seeds.md").read_text()
    assert "| seen exact | 0.800 ± - | 0.800 |" in page, "one seed has no spread"
    assert "| drawn | 0.500 ± - |" in page


def test_image_tasks_have_their_spread_too(tmp_path):
    task = lambda met: [{"task": "inpainting", "setting": "half", "kept": 1.0, "met": met},
                        {"task": "class label", "setting": "no text", "met": 0.5}]  # fmt: skip
    settings = {"config": load_config("paella:tiny").to_dict(), "captions": COUNTS}
    rows = [row(seed, 0.8, tasks=task(0.6 + 0.2 * seed)) for seed in (0, 1)]
    write_report(rows, tmp_path, "repeat it", settings)
    page = (tmp_path / "seeds.md").read_text()
    assert "| task | setting | source kept | request met |" in page
    assert "| inpainting | half | 1.000 ± 0.000 | 0.700 ± 0.141 |" in page
    assert "| class label | no text |  | 0.500 ± 0.000 |" in page


def test_the_command_line_that_repeats_it_has_no_workers():
    words = ["--config", "paella:tiny", "--workers", "2", "--out", "x", "--workers=3"]
    assert command._alone(words) == ["--config", "paella:tiny", "--out", "x"]


@pytest.mark.parametrize("words", [["--workers", "0"], ["--workers=-2"], ["--workers=two"]])
@pytest.mark.parametrize("main", [command.main, compare_command.main])
def test_a_number_of_workers_that_cannot_be(monkeypatch, capsys, main, words):
    monkeypatch.setattr(sys, "argv", ["x", "--config", "paella:tiny", "--out", "y", *words])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--workers" in capsys.readouterr().err


@pytest.mark.slow
def test_a_whole_repetition_and_its_resumption(tokenizers, tmp_path, monkeypatch):
    tried = {"guidance": (1.0,), "temperature": ((1.0, 1.0),), "choice_temperature": ((0.0, 0.0),)}
    monkeypatch.setattr(score, "TOKENS", ConfigDict(tried))
    monkeypatch.setattr(score, "BATCH", 8)
    config = small.small_paella(num_steps=1, checkpoint__every=1, sampler__num_steps=2)
    given = Wish(config, (0,), tokenizers[:1], num_images=8, tuning_images=8)
    out = tmp_path / "out"
    result = repeat(given, out, "first")
    (own,) = result["runs"]
    assert own["stands_on"] == {"tokenizer": tokenizers[0]} and own["updates"] == {"run": 1}
    assert len(own["tried"][0]) == 2 and own["tried"][0][0]["settings"] == {}
    for sampler in ("preset", "tuned"):
        for split in ("seen", "heldout"):
            assert all(0 <= own[sampler][split][metric] <= 1 for metric in METRICS)
    assert is_trained(out / "seed_0_on_0") and read_config(out / "seed_0_on_0").seed == 0

    scores = [file for file in (out / "scores").rglob("*") if file.is_file()]
    stamps = {file: file.stat().st_mtime_ns for file in scores}
    monkeypatch.setattr("paella_jax.seeds.run.finish", None)  # nothing is trained again
    assert repeat(given, out, "again")["runs"] == result["runs"]
    assert {f: f.stat().st_mtime_ns for f in stamps} == stamps

    monkeypatch.setattr(score, "score_tasks", partial(score.score_tasks, count=1))
    (more,) = repeat(replace(given, tasks=True), out, "with tasks")["runs"]
    assert {f: f.stat().st_mtime_ns for f in stamps} == stamps
    assert more == own | {"tasks": more["tasks"]}
    assert {"inpainting", "image to image"} <= {row["task"] for row in more["tasks"]}
    assert "| inpainting |" in (out / "seeds.md").read_text()
    with pytest.raises(ConfigError, match=r"another repetition(.|\n)*num_images: 8 -> 9"):
        repeat(Wish(config, (0,), tokenizers[:1], num_images=9, tuning_images=8), out, "")


@pytest.mark.slow
def test_stage_c_with_direct_decoders(tmp_path, monkeypatch):
    monkeypatch.setattr(
        score, "STAGE_C", {"guidance_scale": (1.5,), "stepper": ("dpm++",), "num_steps": (3,)}
    )
    monkeypatch.setattr(score, "BATCH", 8)
    overrides = {"model__widths": "(16,)", "model__depths": "(1,)", "model__cond_width": 16,
                 "compressor__head_channels": 16, "sampler__num_steps": 2}  # fmt: skip
    stage_b = small.untrained(tmp_path / "b", small.config_of("stage_b:tiny", **overrides))
    short = partial(load_config, overrides=["--config.num_steps=2"])
    monkeypatch.setattr("paella_jax.seeds.plan.load_config", short)  # of the direct decoder
    given = wish(
        "stage_c:tiny", "num_steps=1", "sampler.segments=(2,1)",
        seeds=(0,), stage_bs=(str(stage_b),), direct=True, num_images=8, tuning_images=8,
    )  # fmt: skip
    result = repeat(given, tmp_path / "out", "")
    assert [list(own["seconds"]) for own in result["runs"]] == [["run", "direct"]]
    assert result["runs"][0]["tried"][0][1]["settings"]["stepper"] == "dpm++"
    page = (tmp_path / "out" / "seeds.md").read_text()
    assert "| compressed, decoded directly | " in page


@pytest.mark.slow
def test_super_resolution_on_a_base_of_the_same_seed(tokenizers, tmp_path, monkeypatch):
    tried = {"guidance": (1.0,), "temperature": ((1.0, 1.0),), "choice_temperature": ((0.0, 0.0),)}
    monkeypatch.setattr(score, "TOKENS", ConfigDict(tried))
    monkeypatch.setattr(score, "SECOND_SCALE", {"super_resolution_guidance": (1.0,)})
    monkeypatch.setattr(score, "BATCH", 8)
    low = small.untrained(tmp_path / "low", small.small_vqgan(model__levels=3))
    given = wish(
        "muse:super_resolution_tiny", "num_steps=1", "model.codebook_size=32",
        seeds=(0,), tokenizers=tokenizers[:1], low_tokenizers=(str(low),),
        num_images=8, tuning_images=8,
    )  # fmt: skip
    (own,) = repeat(given, tmp_path / "out", "")["runs"]
    assert list(own["updates"]) == ["base", "run"] and len(own["tried"]) == 2
    assert own["stands_on"]["low_tokenizer"] == str(low)
