"""Scores of folders, of changed images and of runs, on a feature network that only shrinks."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import small
from PIL import Image
from safetensors.numpy import save_file
from small_judges import shrinking_judges

from paella_jax import evaluate
from paella_jax.pipelines.tokens import TokenPipeline
from paella_jax.reports import run_scores
from paella_jax.reports.folder_scores import score_folders
from paella_jax.reports.gathered import keeping
from paella_jax.reports.manipulations import MANIPULATIONS, measure_manipulations
from paella_jax.reports.run_scores import score_run
from paella_jax.reports.scored_run import Asked, shown_of
from paella_jax.runs.folder import prepare_workdir


@pytest.fixture(scope="module")
def judges():
    return shrinking_judges()


def write_images(folder, count, seed, side=32, tones=("small",)):
    """Two blocks of colour each, with captions; of several tones the second is a lighter one."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for n in range(count):
        blocks = draw.integers(0, 256, (2, 2, 3), np.uint8).repeat(side // 2, 0)
        tone = n % len(tones)
        blocks = blocks if len(tones) == 1 else 128 * np.uint8(tone) + blocks // 2
        Image.fromarray(blocks.repeat(side // 2, 1)).save(folder / f"{n:03}.png")
        (folder / f"{n:03}.txt").write_text(f"a {tones[tone]} red circle {n}")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("images")
    return write_images(base / "a", 40, 0), write_images(base / "b", 44, 1)


def rows_of(out):
    return json.loads((out / "scores.json").read_text())["rows"]


def test_a_folder_against_another(folders, judges, tmp_path):
    first, second = map(str, folders)
    page = score_folders(first, second, judges, tmp_path, paired=False)
    row, floor = rows_of(tmp_path)
    assert row["images"] == 40 and floor["images"] == 44
    assert row["fid"]["low"] < row["fid"]["value"] < row["fid"]["high"]
    assert abs(row["kid"]["value"]) < 0.2 and row["blank"]["value"] == 0.0
    assert "| FID |" in page and "do not compare with published numbers" in page
    assert "22 against 22" in floor["name"] and "with at most 48 images" in page.lower()


def test_pairs_of_equal_images(folders, judges, tmp_path):
    first = str(folders[0])
    score_folders(first, first, judges, tmp_path, paired=True)
    row = rows_of(tmp_path)[0]
    assert row["fid"]["value"] < 1e-8 and abs(row["kid"]["value"]) < 1e-9
    assert row["psnr"]["value"] == 100.0 and row["ssim"]["value"] == 1.0 and "lpips" not in row
    assert row["precision"]["value"] == row["recall"]["value"] == 1.0


def test_unreadable_images_are_skipped_and_many_refused(folders, judges, tmp_path, capsys):
    copy = write_images(tmp_path / "copy", 40, 0)
    for n in range(3):
        (copy / f"{n:03}.png").write_bytes(b"no image")
    score_folders(str(copy), str(folders[1]), judges, tmp_path / "out", paired=False)
    assert rows_of(tmp_path / "out")[0]["images"] == 37
    assert capsys.readouterr().out.count("skipping") == 3
    for n in range(3, 7):
        (copy / f"{n:03}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"5 of 40 images of .* cannot be read"):
        score_folders(str(copy), str(folders[1]), judges, tmp_path / "out", paired=False)


def test_folders_that_cannot_be_scored(folders, judges, tmp_path):
    (tmp_path / "empty").mkdir()
    few = write_images(tmp_path / "few", 19, 2)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\ntwo\n")
    first, second = map(str, folders)
    for images, options, message in (
        (tmp_path / "absent", {}, "--images: there is no .*absent"),
        (tmp_path / "empty", {}, "has none of these: images, .tar"),
        (few, {}, "FID or KID needs at least 20 images .*, there are 19"),
        (first, {"prompts": str(prompts)}, "2 prompts for 40 images"),
        (first, {"prompts": str(tmp_path / "no.txt")}, "is not a file"),
        (first, {"paired": True}, "4 differ, the first: 040"),
    ):
        with pytest.raises(ValueError, match=message):
            score_folders(str(images), second, judges, tmp_path, **{"paired": False} | options)


def test_changed_images_are_farther_away_the_more_they_are_changed(folders, judges, tmp_path):
    page = measure_manipulations(str(folders[1]), judges.network, tmp_path, num_images=40)
    rows = json.loads((tmp_path / "manipulations.json").read_text())["rows"]
    assert len(rows) == 1 + sum(len(m.strengths) for m in MANIPULATIONS)
    fid = {row["name"]: row["fid"]["value"] for row in rows}
    assert 0 < fid["brightness ×0.95"] < fid["brightness ×0.9"]
    assert 0 < fid["shift 1 px"] < fid["shift 4 px"]
    assert rows[-1]["name"].startswith("none: 20 against") and rows[-1]["psnr"] is None
    assert page.count("\n") == 2 + len(rows)
    with pytest.raises(ValueError, match="at least 40 images"):
        measure_manipulations(str(folders[1]), judges.network, tmp_path, num_images=39)


TONES = ("dark", "light")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Captioned images in two parts."""
    base = tmp_path_factory.mktemp("data")
    write_images(base / "train", 70, 3, tones=TONES)
    write_images(base / "validation", 70, 4, tones=TONES)
    return base


@pytest.mark.devices(8)
def test_a_run_that_draws(shared_runs, data, judges, tmp_path):
    run = shared_runs.trained(small.brief_paella())
    asked = Asked(run, tmp_path, str(data), num_images=64, axes=("steps",), steps=[3],
                  groups="dark,light")  # fmt: skip
    page = score_run(asked, judges)
    row, ceiling, floor = rows_of(tmp_path)
    assert row["images"] == ceiling["images"] == floor["images"] == 64
    assert row["steps"] == 3 and row["guidance"] == "3"
    for key in ("fid", "kid", "precision", "recall", "retrieval_five", "copies", "blank"):
        assert row[key]["low"] <= row[key]["value"] <= row[key]["high"]
    assert "64 of the training against 64" in floor["name"]
    assert "encoded and decoded" in page and (tmp_path / "scores.png").is_file()
    # The tokenizer is random: what is drawn is of any tone, or of none, but not what it rebuilds.
    assert floor["group_right"]["value"] > 0.95 > row["group_right"]["value"]
    assert ceiling["group_right"]["value"] > 0.8 and "as the run rebuilds them" in page
    groups = json.loads((tmp_path / "scores.json").read_text())["groups"]
    assert groups["by"] == list(TONES) and groups["training"] == {"dark": 35, "light": 35}
    assert groups["real"]["groups"]["dark"]["images"] == 32 and "by chance" in page
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert [row["steps"] for row in curves] == [3]
    assert [row["name"] for row in curves] == ["steps 3"]
    # The run's own number of steps draws the same images again.
    assert curves[0]["fid"]["value"] == pytest.approx(row["fid"]["value"], rel=1e-5)
    assert (tmp_path / "curves.png").is_file()


def test_each_image_is_rebuilt_with_a_noise_of_its_own(judges):
    """Else a judge learns the marks of that one noise; those of drawn images are others."""
    seeds = []

    def decode(latents, seed):
        seeds.extend(seed[:2] if len(seeds) == 8 else seed)
        return latents

    pipe = SimpleNamespace(can_encode=True, beside="latents", encode=np.asarray, decode=decode)
    draw = np.random.default_rng(0)
    source = [{"image": draw.integers(0, 256, (32, 32, 3), np.uint8)} for _ in range(10)]
    subject, known = SimpleNamespace(batch=4), SimpleNamespace(places=list(range(10)))
    rebuilt = run_scores._rebuilt(pipe, subject, source, run_scores.TRAINING_SEED, known, judges)
    assert len(rebuilt) == 10
    assert seeds == [run_scores.TRAINING_SEED + n for n in range(10)]


@pytest.mark.slow
@pytest.mark.devices(8)
def test_a_run_that_cannot_encode(shared_runs, data, judges, tmp_path, monkeypatch):
    monkeypatch.setattr(TokenPipeline, "can_encode", False)
    run = shared_runs.trained(small.brief_paella())
    page = score_run(Asked(run, tmp_path, str(data), num_images=64, groups="dark,light"), judges)
    row, floor = rows_of(tmp_path)
    assert floor["group_right"]["value"] > 0.95 and "group_right" in row
    assert "encoded and decoded" not in page and "rebuilds" not in page


@pytest.mark.slow
@pytest.mark.devices(8)
def test_other_prompts_have_no_true_images(shared_runs, data, judges, tmp_path):
    run = shared_runs.trained(small.brief_paella())
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a large blue square {n}\n" for n in range(24)))
    asked = Asked(run, tmp_path, str(data), str(prompts), num_images=64, training_images=0)
    score_run(asked, judges)
    row, floor = rows_of(tmp_path)
    assert row["images"] == 24 and "retrieval_first" not in row and "copies" not in row
    assert "32 against 32" in floor["name"]


@pytest.fixture(scope="module")
def perceptual(tmp_path_factory):
    """The file of a VGG of one layer."""
    draw = np.random.default_rng(0)
    vgg = {"features.0.weight": draw.normal(size=(4, 3, 3, 3)).astype(np.float32),
           "features.0.bias": np.zeros(4, np.float32)}  # fmt: skip
    save_file(vgg, file := tmp_path_factory.mktemp("vgg") / "vgg.safetensors")
    return str(file)


def test_pairs_of_other_suffixes_and_sizes(folders, judges, perceptual, tmp_path):
    """Each image is compared with the one of its name, and only so."""
    changed = tmp_path / "changed"
    changed.mkdir()
    expected = []
    for n, file in enumerate(sorted(folders[0].glob("*.png"))):
        pixels = np.asarray(Image.open(file)).astype(float)
        moved = np.clip(pixels + (n % 5 - 2), 0, 255).astype(np.uint8)
        error = np.square(moved - pixels).mean() / 255.0**2
        expected.append(-10 * np.log10(max(error, 1e-10)))
        Image.fromarray(moved).save(changed / (file.stem + (".bmp" if n % 2 else ".tiff")))
    score = lambda **options: score_folders(str(changed), str(folders[0]), judges, tmp_path,
                                            **{"paired": True} | options)  # fmt: skip
    page = score(perceptual=perceptual)
    row = rows_of(tmp_path)[0]
    assert row["psnr"]["value"] == pytest.approx(np.mean(expected), rel=1e-6)
    assert 0 < row["lpips"]["value"] < 0.05 and 0.97 < row["ssim"]["value"] < 1
    assert "| PSNR dB | SSIM | LPIPS |" in page
    with pytest.raises(ValueError, match="no perceptual feature file"):
        score(perceptual="absent")
    Image.new("RGB", (31, 32)).save(changed / "000.tiff")
    with pytest.raises(ValueError, match=r"pairs of one size; 000\.tiff has 31x32 and 32x32"):
        score()


def test_equal_names_are_told(folders, judges, tmp_path):
    page = score_folders(str(folders[0]), str(folders[0]), judges, tmp_path, paired=False)
    assert "--paired compares them one by one" in page


def test_a_tokenizer(data, judges, perceptual, tmp_path):
    config = small.small_vqgan()
    run = small.untrained(tmp_path / "run", config)
    asked = Asked(run, tmp_path, str(data), num_images=21, perceptual=perceptual)
    score_run(asked, judges)
    row, _ = rows_of(tmp_path)
    assert row["lpips"]["value"] > 0
    used, codes = map(int, row["codes_used"].split(" of "))
    assert codes == config.model.codebook_size and 1 <= row["perplexity"] <= used <= codes
    assert 0 < row["psnr"]["value"] < 40 and row["images"] == 21
    assert (tmp_path / "scores.png").is_file()
    with pytest.raises(ValueError, match="KID needs at least 20 images"):
        score_run(Asked(run, tmp_path, str(data), num_images=19), judges)
    with pytest.raises(ValueError, match="--curve and --prompts are for runs that draw"):
        score_run(Asked(run, tmp_path, str(data), axes=("steps",)), judges)
    with pytest.raises(ValueError, match=r"--data: there is no .*absent"):
        score_run(Asked(run, tmp_path, str(tmp_path / "absent")), judges)
    with pytest.raises(ValueError, match="--curve knows steps and guidance, not seed"):
        score_run(Asked(run, tmp_path, str(data), axes=("seed",)), judges)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("", "give one of --checkpoint RUN, --images PLACE or --manipulations PLACE"),
        ("--images a --manipulations b", "not --images and --manipulations"),
        ("--images a", "belong together"),
        ("--checkpoint r --reference b", "belong together"),
        ("--images a --reference b --curve steps", "--curve belongs to --checkpoint"),
        ("--images a --reference b --perceptual f", "--perceptual compares pairs: give it with"),
        ("--checkpoint r --paired", "--paired belongs to --images"),
        ("--checkpoint /nowhere", "not a run folder"),
        ("--images a --reference b --num_images 4", "are scored whole; leave --num_images out"),
        ("--images a --reference b --config.data.tfds=c", "--config.data.FIELD belongs to --check"),
    ],
)
def test_flags_that_do_not_go_together(flags, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate", *flags.split()])
    monkeypatch.setattr(evaluate, "setup_jax", lambda: None)
    with pytest.raises((ValueError, RuntimeError), match=message):
        evaluate.main()


@pytest.mark.parametrize(
    "source, flags, by_features",
    [
        ("shapes", "", False),
        ("shapes", "--tasks", False),
        ("shapes", "--clip F", True),
        ("shapes", "--curve steps", True),
        ("folder", "", True),
        ("folder", "--tasks", "--tasks reads images of the embedded data; this run has other"),
        (
            "shapes",
            "--sweep --pick F",
            "--sweep reads images of the embedded data, not with --pick",
        ),
    ],
)
def test_no_flag_is_passed_over(source, flags, by_features, monkeypatch, tmp_path):
    prepare_workdir(tmp_path, small.small_paella(data__source=source))
    monkeypatch.setattr(sys, "argv", ["evaluate", "--checkpoint", str(tmp_path), *flags.split()])
    arguments = evaluate.parse()
    if isinstance(by_features, str):
        with pytest.raises(ValueError, match=by_features):
            evaluate.scores_real_images(arguments)
    else:
        assert evaluate.scores_real_images(arguments) == by_features


def test_the_command_scores_folders(folders, judges, tmp_path, monkeypatch, capsys):
    first, second = map(str, folders)
    flags = ["--images", first, "--reference", second, "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["evaluate", *flags])
    monkeypatch.setattr(evaluate, "setup_jax", lambda: None)
    monkeypatch.setattr(evaluate, "load_judges", lambda arguments: judges)
    assert evaluate.main() == 0
    assert "| a |" in capsys.readouterr().out and (tmp_path / "scores.md").is_file()


def test_what_is_shown_is_spread_over_all():
    shown, kept = shown_of(256), []
    assert len(list(keeping(map(np.array, range(256)), kept, shown))) == 256
    assert [int(x) for x in kept] == shown and len(shown) == 12
    assert shown[0] == 0 and shown[-1] == 255 and min(np.diff(shown)) >= 23
