"""Tables, sentences and curves of a comparison, from made-up rows."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
from PIL import Image

from paella_jax.comparison.budgets import by_budget
from paella_jax.comparison.report import markdown, write_report
from paella_jax.comparison.rows import (
    Estimate,
    best_steps,
    by_training,
    check_rows,
    estimate,
    over_seeds,
    reference_steps,
)
from paella_jax.comparison.verdict import verdict

STEPS, LEVELS = (4, 8, 12, 18, 24), ("10", "30", "50", "70", "90")
CELL = ("uniform", "unet", "random")


def make_row(cell=CELL, seed=0, exact=0.5, steps=STEPS, **changes):
    """Measurements that do not depend on the steps but for the exact match, which grows."""
    measured = {
        "seen_exact": exact, "seen_attributes": 0.9, "heldout_exact": 0.2,
        "heldout_attributes": 0.6, "frechet": 3.0, "diversity": 0.1, "seconds_per_image": 0.02,
    }  # fmt: skip
    curves = {
        "cross_entropy": {level: 0.01 * float(level) for level in LEVELS},
        "token_accuracy": dict.fromkeys(LEVELS, 0.9),
    }
    numbers = {
        "parameters": 1_650_000, "flops": 2.5e7, "images_trained": 76800, "train_seconds": 300.0,
        "guidance": 3.0,
    }  # fmt: skip
    by_steps = {
        count: {n: changes.get(n, v) for n, v in measured.items()}
        | {"seen_exact": exact * min(1.0, count / 12), "seconds_per_image": 0.002 * count}
        for count in steps
    }
    names = dict(zip(("corruption", "network", "sampler"), cell, strict=True))
    row = {"cell": "-".join(cell), "seed": seed, "by_steps": by_steps, **names, **numbers, **curves}
    return row | {name: value for name, value in changes.items() if name in row}


def full_rows(seeds=3):
    """Twelve cells with effects of known size: mask +0.10, uvit +0.05, confidence -0.02."""
    rows, draw = [], np.random.default_rng(0)
    cells = product(("uniform", "mask"), ("unet", "transformer", "uvit"), ("random", "confidence"))
    for cell, seed in product(cells, range(seeds)):
        corruption, network, sampler = cell
        noise = draw.normal() * 0.01
        exact = 0.6 + 0.1 * (corruption == "mask") + 0.05 * (network == "uvit") + noise
        exact -= 0.02 * (sampler == "confidence")
        factor = {"unet": 1.0, "transformer": 1.3, "uvit": 0.8}[network]
        losses = {
            level: factor * (0.3 if corruption == "mask" else 0.6) * float(level) / 50 + noise
            for level in LEVELS
        }
        rows.append(make_row(
            cell, seed, exact, frechet=4.0 * factor + draw.normal() * 0.2,
            heldout_attributes=exact - 0.1, diversity=0.2 * factor, cross_entropy=losses,
        ))  # fmt: skip
    return rows


# --- rows ----------------------------------------------------------------------------------------


def test_estimates():
    assert estimate([1.0, 3.0]) == Estimate(2.0, pytest.approx(np.sqrt(2)), 2)
    assert estimate([1.0, 3.0]).show(2) == "2.00 ± 1.41"
    assert estimate([2.0]).show(1) == "2.0"
    assert estimate([2.0, float("nan")]).show(1) == "2.0"
    assert estimate([float("nan")]).show(1) == "-"


def test_rows_are_cleaned():
    odd = make_row(parameters=np.int64(7), flops=np.float32(2), frechet=float("nan"))
    odd["by_steps"] = {str(k): v for k, v in reversed(odd["by_steps"].items())}
    odd["cross_entropy"] = {90: np.float32(1), 10: None}
    (row,) = check_rows([odd])
    assert list(row["by_steps"]) == ["4", "8", "12", "18", "24"]
    assert list(row["cross_entropy"].items()) == [("10", None), ("90", 1.0)]
    assert row["parameters"] == 7 and row["by_steps"]["4"]["frechet"] is None
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "at least one row"),
        ([{"cell": "a"}], "row of a lacks corruption, network"),
        ([make_row(), make_row()], "two rows for seed 0"),
        ([make_row(), make_row(seed=1, network="uvit")], "stands for"),
        ([make_row(), make_row(cell=CELL, seed=1) | {"cell": "twin"}], "two cells stand for"),
        ([make_row(), make_row(seed=1, steps=(4, 8))], "by_steps of uniform-unet-random, seed 1"),
        ([make_row(), make_row(seed=1, cross_entropy={"10": 1.0})], "cross_entropy of"),
    ],
)
def test_bad_rows_are_refused_before_writing(rows, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_report(rows, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_variants_are_drawn_at_fewer_steps():
    few = make_row(steps=(12,)) | {"cell": "cell / changed", "variant": "changed"}
    rows = check_rows([make_row(), few])
    assert [list(row["by_steps"]) for row in rows] == [[str(n) for n in STEPS], ["12"]]
    page = markdown(rows)
    assert "Variant cell / changed" in page and "| cell / changed |" in page
    other = few | {"seed": 1, "by_steps": make_row(steps=(8,))["by_steps"]}
    with pytest.raises(ValueError, match="by_steps of cell / changed, seed 1"):
        check_rows([make_row(), few, other])


def test_larger_budgets_are_a_curve_beside_their_cells(tmp_path):
    larger = make_row(steps=(12,)) | {"cell": "cell / 2x", "variant": "2x"}
    ablation = make_row(steps=(12,)) | {"cell": "cell / level", "variant": "no_level"}
    other = make_row(("uniform", "unet", "confidence"))
    rows = check_rows([make_row(), other, larger, larger | {"seed": 1}, ablation])
    ((pair, own),) = by_budget(rows).items()
    assert pair == ("unet", "uniform")
    kept = {budget: [(row["cell"], row["seed"]) for row in some] for budget, some in own.items()}
    assert kept == {1.0: [("-".join(CELL), 0)], 2.0: [("cell / 2x", 0), ("cell / 2x", 1)]}
    write_report(rows, tmp_path / "with")
    assert "comparison_budgets.png" in (tmp_path / "with" / "comparison.md").read_text()
    picture = np.asarray(Image.open(tmp_path / "with" / "comparison_budgets.png").convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
    write_report(check_rows([make_row(), ablation]), tmp_path / "without")
    assert not (tmp_path / "without" / "comparison_budgets.png").exists()


def test_missing_step_measurement_is_named():
    row = make_row()
    del row["by_steps"][8]["frechet"]
    with pytest.raises(ValueError, match=r"lacks by_steps\[8\].frechet"):
        check_rows([row])


def test_step_counts_that_are_compared():
    assert reference_steps(check_rows([make_row()])) == "12"
    assert reference_steps(check_rows([make_row(steps=(2, 6))])) == "6"
    assert reference_steps(check_rows([make_row(steps=(2, 12))]), 2) == "2"
    with pytest.raises(ValueError, match="24 steps were not measured, only 2, 6"):
        reference_steps(check_rows([make_row(steps=(2, 6))]), 24)
    assert best_steps(check_rows([make_row()])) == "12"  # 18 and 24 are as good
    with pytest.raises(ValueError, match="no step count"):
        reference_steps(check_rows([make_row(steps=())]))


def test_one_training_counts_once_whatever_samples_from_it():
    trained = by_training(check_rows(full_rows()))
    assert len(trained) == 6 and {len(rows) for rows in trained.values()} == {3}


# --- verdict -------------------------------------------------------------------------------------


def one(sentences, start):
    (found,) = [s for s in sentences if s.startswith(start)]
    return found


def test_winner_margin_and_spread():
    mask = ("mask", "unet", "random")
    rows = [make_row(exact=x, seed=i) for i, x in enumerate((0.50, 0.51, 0.52))]
    rows += [make_row(mask, exact=x, seed=i) for i, x in enumerate((0.60, 0.62, 0.64))]
    sentence = one(verdict(rows), "Seen exact match at 12 steps")
    assert "mask-unet-random is best with 0.620 ± 0.020" in sentence
    assert "0.110 ahead of uniform-unet-random (0.510 ± 0.010)" in sentence
    # Welch: an error of 0.0129, 2.94 degrees of freedom, t = 3.22.
    assert sentence.endswith("95 % interval of the difference [0.068, 0.152].")


def test_a_margin_that_seeds_may_make_is_undecided():
    rows = [make_row(exact=x, seed=i) for i, x in enumerate((0.4, 0.6))]
    rows += [
        make_row(("mask", "unet", "random"), exact=x, seed=i) for i, x in enumerate((0.5, 0.6))
    ]
    sentence = one(verdict(rows), "Seen exact match at 12 steps")
    assert sentence.endswith("], so undecided.")


def test_samplers_of_one_training_are_compared_seed_by_seed():
    """Trainings that differ by far more than their samplers do: each gains 0.02 to 0.03."""
    rows = [make_row(seed=i, frechet=x) for i, x in enumerate((3.0, 5.0, 9.0))]
    rows += [
        make_row(("uniform", "unet", "confidence"), seed=i, frechet=x)
        for i, x in enumerate((2.97, 4.98, 8.975))
    ]
    sentence = one(verdict(rows), "Fréchet distance at 12 steps")
    assert "confidence is best" in sentence and sentence.endswith("[-0.04, -0.01].")


def test_one_seed_decides_nothing():
    mask = ("mask", "unet", "random")
    captions = {f"caption {i}": [i < 90] for i in range(100)}
    right = {"exact_of": {"seen": captions, "heldout": captions}}
    wrong = {split: {c: [not x for x in own] for c, own in of.items()} for split, of in
             right["exact_of"].items()}  # fmt: skip
    rows = [make_row(exact=0.9) | right, make_row(mask, exact=0.1) | {"exact_of": wrong}]
    sentence = one(verdict(rows), "Seen exact match at 12 steps")
    assert sentence.endswith("of captions alone: one seed, so undecided.")


def test_lower_is_better_where_it_is():
    rows = [make_row(frechet=3.0), make_row(("mask", "unet", "random"), frechet=2.0)]
    sentence = one(verdict(rows), "Fréchet distance at 12 steps")
    assert "mask-unet-random is best with 2.00, 1.00 ahead" in sentence
    assert "one seed, so undecided" in sentence


def test_more_diversity_is_not_called_better():
    rows = [make_row(diversity=0.3), make_row(("mask", "unet", "random"), diversity=0.2)]
    assert "uniform-unet-random is highest" in one(verdict(rows), "Diversity at 12 steps")
    assert "diversity -0.100 (higher in 0 of 1)" in one(verdict(rows), "Corruption mask")


def test_ties_and_unmeasured_cells():
    rows = [
        make_row(frechet=None),
        make_row(("mask", "unet", "random"), frechet=1.0),
        make_row(("mask", "uvit", "random"), frechet=1.0),
    ]
    sentences = verdict(rows)
    assert "all tie at 1.00" in one(sentences, "Fréchet distance at 12 steps")
    lonely = [row for row in rows if row["network"] == "unet"]
    assert not [s for s in verdict(lonely) if s.startswith("Fréchet")]


def test_cross_entropy_is_compared_within_a_corruption_only():
    sentences = [s for s in verdict(full_rows()) if s.startswith("Cross-entropy")]
    assert len(sentences) == 2
    assert "uniform corruption" in sentences[0] and "uniform, uvit is best" in sentences[0]
    assert "mask corruption" in sentences[1] and "mask, uvit is best" in sentences[1]


def test_paired_effects_change_one_factor_only():
    """An unbalanced grid: the mean over cells would mix the factors, pairs do not."""
    rows = []
    for seed in range(2):
        rows += [
            make_row(("uniform", "unet", "random"), seed, 0.50),
            make_row(("mask", "unet", "random"), seed, 0.60),
            make_row(("mask", "uvit", "random"), seed, 0.90),  # no uniform partner
        ]
    sentences = verdict(rows)
    assert "seen exact match +0.100 ± 0.000 (better in 2 of 2)" in one(
        sentences, "Corruption mask instead of uniform"
    )
    assert "seen exact match +0.300 ± 0.000 (better in 2 of 2)" in one(
        sentences, "Network uvit instead of unet"
    )
    assert not [s for s in sentences if s.startswith("Sampler")]


def test_paired_effects_of_the_full_grid():
    sentences = verdict(full_rows())
    mask = one(sentences, "Corruption mask instead of uniform")
    effect = float(mask.split("seen exact match ")[1].split(" ")[0])
    assert effect == pytest.approx(0.1, abs=0.02) and "(better in 9 of 9)" in mask
    assert "cross-entropy" not in mask
    network = one(sentences, "Network uvit instead of unet")
    assert "of 12)" not in network and "cross-entropy -" in network and "of 6)" in network
    assert len([s for s in sentences if s.startswith("Network")]) == 3


# --- files ---------------------------------------------------------------------------------------


def test_report_files(tmp_path):
    rows = full_rows()
    result = write_report(rows, tmp_path / "new", notes=("600 steps of 64 images each",))
    saved = json.loads((tmp_path / "new" / "comparison.json").read_text())
    assert saved == result and len(saved["rows"]) == 36 and saved["verdict"] == verdict(rows)
    assert saved["notes"] == ["600 steps of 64 images each"]
    page = (tmp_path / "new" / "comparison.md").read_text()
    assert "- 600 steps of 64 images each" in page and saved["verdict"][0] in page
    assert sorted(f.name for f in (tmp_path / "new").iterdir()) == [
        "comparison.html", "comparison.json", "comparison.md", "comparison.png",
    ]  # fmt: skip
    picture = np.asarray(Image.open(tmp_path / "new" / "comparison.png").convert("RGB"))
    assert picture.shape[0] > 600 and picture.shape[1] > 1000
    for color in ((0, 114, 178), (213, 94, 0), (0, 158, 115)):  # one per network
        assert (picture == np.array(color).reshape(1, 1, 3)).all(-1).sum() > 500


def test_tables_hold_the_numbers():
    rows = [make_row(exact=x, seed=i) for i, x in enumerate((0.5, 0.7))]
    lines = markdown(rows).splitlines()
    scores = [line for line in lines if line.startswith("| uniform-unet-random")]
    assert len(scores) == 3  # equal steps, best steps, cost
    assert "| 0.600 ± 0.141 | 0.900 ± 0.000 |" in scores[0]
    assert scores[1].startswith("| uniform-unet-random | 12 | 0.600 ± 0.141 |")
    assert scores[2] == "| uniform-unet-random | 2 | 1,650,000 | 25.0 | 76,800 | 300 ± 0 | 3 |"
    assert "| uniform, unet | 0.100 ± 0.000 (0.900) |" in "\n".join(lines)
    widths = {line.count("|") for line in lines if line.startswith("| uniform-unet-random")}
    assert widths == {11, 12, 8}


def test_guidance_that_rises_is_no_constant_one():
    rows = [make_row(seed=i) | {"guidance_scale": pair} for i, pair in enumerate(((3, 3), (1, 3)))]
    assert "| 1 to 3, 3 |" in markdown(rows)


def test_one_row_of_few_measurements_is_enough(tmp_path):
    row = make_row(steps=(4,), frechet=None, cross_entropy={}, token_accuracy={})
    result = write_report([row], tmp_path)
    assert result["verdict"] == []
    assert "| - |" in (tmp_path / "comparison.md").read_text()
    assert over_seeds(result["rows"], "cross_entropy").seeds == 0
