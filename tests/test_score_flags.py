"""No flag of `evaluate` is passed over: each is refused by its name where it has no say."""

from __future__ import annotations

import sys

import pytest
import small

from paella_jax import evaluate
from paella_jax.reports.flags import BELONGS
from paella_jax.runs.folder import prepare_workdir

IMAGES, CHANGED = "--images a --reference b ", "--manipulations a "
OWN, TOKENIZER, EMBEDDED = "own", "tokenizer", "embedded"


@pytest.fixture
def check(monkeypatch, tmp_path):
    """A function that runs the command up to its work, for which it returns True."""
    worked = []
    monkeypatch.setattr(evaluate, "setup_jax", lambda: None)
    for name in ("load_judges", "evaluate_on_real_images", "evaluate_on_shapes"):
        monkeypatch.setattr(evaluate, name, lambda *_: worked.append(1) or sys.exit(0))
    configs = {
        OWN: small.small_paella(data__source="folder"),
        TOKENIZER: small.small_vqgan(),
        EMBEDDED: small.small_paella(),
    }

    def of(subject, flags):
        if subject in configs:
            run = prepare_workdir(tmp_path / subject, configs[subject])
            subject = f"--checkpoint {run} "
        words = [*(subject + flags).split(), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["evaluate", *words])
        with pytest.raises(SystemExit):
            evaluate.main()
        return bool(worked)

    return of


def drawing(what):
    return f"--{what} belongs to .*--checkpoint RUN that draws and is scored by features"


@pytest.mark.parametrize(
    "subject, flags, message",
    [
        (CHANGED, "--prompts f", "--prompts belongs to --images A --reference B or --checkpoint"),
        (CHANGED, "--training_images 7", drawing("training_images")),
        (CHANGED, "--steps x,y", drawing("steps")),
        (CHANGED, "--clip f", drawing("clip")),
        (CHANGED, "--pick f", drawing("pick")),
        (IMAGES, "--steps x", drawing("steps")),
        (IMAGES, "--guidance q", drawing("guidance")),
        (IMAGES, "--sweep_images 3", "--sweep_images belongs to --checkpoint RUN on the embedded"),
        (IMAGES, "--prompts f", "--prompts has what --clip and --pick compare images with"),
        (TOKENIZER, "--super_resolution EMBEDDED", drawing("super_resolution")),
        (TOKENIZER, "--clip f", drawing("clip")),
        (TOKENIZER, "--pick f", drawing("pick")),
        (TOKENIZER, "--training_images 0", drawing("training_images")),
        (OWN, "--steps 4", "--steps has the values of --curve steps; give both"),
        (OWN, "--steps 4 --curve guidance", "--steps has the values of --curve steps; give both"),
        (OWN, "--guidance 4", "--guidance has the values of --curve guidance; give both"),
        (OWN, "--sweep_images 4", "--sweep_images belongs to --checkpoint RUN on the embedded"),
        (OWN, "--perceptual f", "--perceptual belongs to --images .* or --checkpoint RUN of a tok"),
        (OWN, "--training_images -1", "--training_images must be at least 0, got -1"),
        (OWN, "--num_images 0", "--num_images must be at least 1, got 0"),
        (EMBEDDED, "--training_images 4", drawing("training_images")),
        (EMBEDDED, "--sweep_images 4", "--sweep_images belongs to --sweep; give both"),
        (EMBEDDED, "--task_pairs 4", "--task_pairs belongs to --tasks; give both"),
    ],
)
def test_flags_that_would_be_passed_over(check, subject, flags, message, tmp_path):
    flags = flags.replace("EMBEDDED", str(tmp_path / "other"))
    prepare_workdir(tmp_path / "other", small.small_paella())
    with pytest.raises(ValueError, match=message):
        check(subject, flags)


@pytest.mark.parametrize(
    "subject, flags",
    [
        (IMAGES, "--clip f --prompts f --paired --perceptual f --features clip --weights f"),
        (CHANGED, "--num_images 50 --features inception --weights f"),
        (TOKENIZER, "--num_images 50 --perceptual f --data f --config.data.split=0.1"),
        (OWN, "--curve steps,guidance --steps 4 --guidance 2 --training_images 0 --prompts f"),
        (OWN, "--groups a,b --clip f --pick f --num_images 30"),
        (EMBEDDED, "--steps 4 --sweep --sweep_images 4 --tasks --task_pairs 4 --seconds a=1"),
        (EMBEDDED, "--training_images 4 --features efficientnet"),
    ],
)
def test_flags_that_belong(check, subject, flags):
    assert check(subject, flags)


def test_the_table_has_every_flag(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate", "--checkpoint", "r"])
    flags = set(vars(evaluate.parse())) - {"given", "out", *evaluate.SUBJECTS}
    assert flags == set(BELONGS)
