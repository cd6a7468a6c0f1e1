"""`python -m paella_jax.sample`: what is refused before loading, and what its files say."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import small
from PIL import Image

from paella_jax import sample as sample_command
from paella_jax.images.png import read_png_texts
from paella_jax.pipelines import load
from paella_jax.pipelines.rows_by_flags import check_rows_of
from paella_jax.pipelines.tokens import TokenPipeline

RED, BLUE = "a red circle", "a blue square"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small.untrained(tmp_path_factory.mktemp("run"), small.small_paella(sampler__num_steps=2))


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "private" / "photo.png"
    file.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(file)
    return file


def call(monkeypatch, *flags):
    monkeypatch.setattr(sample_command, "setup_jax", lambda: None)
    monkeypatch.setattr("sys.argv", ["sample", *map(str, flags)])
    return sample_command.main()


ALONE = "needs a --prompt"


@pytest.mark.parametrize(
    "method, flags, message",
    [
        ("tokens", ("--prompt", "x", "--temperature", 0), "--temperature must be above 0, got 0"),
        ("stage_c", ("--prompt", "x", "--stepper", "foo"), "--stepper must be one of ddpm, ddim"),
        ("stage_c", ("--image", "PHOTO", "--strength", 0.3), f"--strength {ALONE}"),
        ("stage_c", ("--image", "PHOTO", "--num_steps", 9), f"--num_steps {ALONE}"),
        ("stage_c", ("--image", "PHOTO", "--guidance_scale", 7), f"--guidance_scale {ALONE}"),
        ("stage_b", ("--image", "PHOTO", "--negative_prompt", "x"), f"--negative_prompt {ALONE}"),
        (
            "stage_c",
            ("--image", "PHOTO", "--num_images_per_prompt", 4),
            f"--num_images_per_prompt {ALONE}",
        ),
    ],
)
def test_what_is_refused_before_loading(monkeypatch, tmp_path, photo, method, flags, message):
    config = SimpleNamespace(method=method)
    monkeypatch.setattr("paella_jax.pipelines.flag_checks.read_config", lambda _: config)
    monkeypatch.setattr(load, "load", lambda *_, **__: pytest.fail("it was loaded"))
    given = [photo if flag == "PHOTO" else flag for flag in flags]
    with pytest.raises(ValueError, match=message):
        call(monkeypatch, "--checkpoint", "RUN", "--out", tmp_path / "out", *given)
    assert not (tmp_path / "out").exists()


def test_settings_of_all_rows_are_checked_before_a_folder_is_made():
    seen = []
    pipe = SimpleNamespace(
        check_settings=lambda **settings: seen.append(settings), text_lengths=lambda texts: ()
    )
    row = SimpleNamespace(where="", prompt="a", negative_prompt="", settings=(("height", 32),))
    check_rows_of(pipe, iter([row]), False, {"stepper": "ddim"})
    assert seen == [{"height": 32, "stepper": "ddim"}]


def test_an_image_task_draws_in_batches_and_keeps_paths_to_itself(
    monkeypatch, tmp_path, run, photo
):
    given, generate = [], TokenPipeline.generate

    def noting(self, prompt, **options):
        given.append(options.get("batch_size"))
        return generate(self, prompt, **options)

    monkeypatch.setattr(TokenPipeline, "generate", noting)
    out = tmp_path / "secret" / "out.png"
    call(monkeypatch, "--checkpoint", run, "--image", photo, "--prompt", RED, "--out", out,
         "--num_images_per_prompt", 2, "--batch_size", 1)  # fmt: skip
    assert given == [1]
    texts = read_png_texts(out)
    record = json.loads(texts["record"])
    assert (record["image"], record["out"], record["checkpoint"]) == (
        "photo.png", "out.png", run.name,
    )  # fmt: skip
    assert str(tmp_path) not in "".join(texts.values())


def test_steps_of_a_file_of_prompts_say_whose_they_are(monkeypatch, tmp_path, run):
    file, out = tmp_path / "prompts.csv", tmp_path / "strip.png"
    file.write_text(f"prompt,seed,negative\n{RED},,\n{BLUE},3,dark\n")
    call(monkeypatch, "--checkpoint", run, "--prompts", file, "--strip", "--seed", 7, "--out", out)
    texts = read_png_texts(out)
    assert texts["prompt"] == f"{RED}\n{BLUE}" and texts["seed"] == "7, 3"
    assert texts["negative_prompt"] == "\ndark"
    rows = json.loads(texts["record"])["images"]
    assert [(row["prompt"], row["seed"]) for row in rows] == [(RED, 7), (BLUE, 3)]
