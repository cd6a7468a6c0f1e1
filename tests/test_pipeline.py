"""The pipeline: same seed same image, bad prompts and sizes, entry points' error messages."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import small
from PIL import Image

import paella_jax
from paella_jax import pipelines
from paella_jax.config import ConfigError
from paella_jax.encoders.byte_tokenizer import PromptError
from paella_jax.images.png import read_png_texts
from paella_jax.pipelines import editing, variations
from paella_jax.pipelines.base import Pipeline
from paella_jax.pipelines.wuerstchen import WuerstchenPipeline
from paella_jax.registry import build_method
from paella_jax.reports.report import evaluate_run
from paella_jax.runs.checkpoint import CheckpointError
from paella_jax.runs.folder import prepare_workdir
from paella_jax.sampling.token_loop import Known
from paella_jax.sharing.hub import push_to_hub

pytestmark = pytest.mark.devices(8)
RED, BLUE = "a large red circle at the top left", "a large blue circle at the bottom right"


@pytest.fixture(scope="module")
def run_folder(shared_runs):
    return shared_runs.trained(small.brief_paella())


@pytest.fixture(scope="module")
def pipeline(run_folder):
    return paella_jax.load(str(run_folder))


def test_call_returns_pictures(pipeline):
    images = pipeline(RED, seed=1)
    assert len(images) == 1 and isinstance(images[0], Image.Image) and images[0].size == (32, 32)
    arrays = pipeline([RED, BLUE], num_images_per_prompt=2, output_type="array")
    assert arrays.shape == (4, 32, 32, 3) and arrays.dtype == np.float32
    assert arrays.min() >= 0.0 and arrays.max() <= 1.0


def test_image_depends_on_prompt_and_seed_only(pipeline):
    """Not on the rest of the batch, its order, its padding, or how it is cut."""
    tokens = lambda *args, **kwargs: pipeline.generate(*args, **kwargs).tokens
    alone = tokens(RED, seed=7, num_images_per_prompt=2)
    together = tokens([BLUE, RED], seed=[3, 7], num_images_per_prompt=2)
    np.testing.assert_array_equal(alone, together[2:])
    cut = tokens([BLUE, RED], seed=[3, 7], num_images_per_prompt=2, batch_size=1)
    np.testing.assert_array_equal(together, cut)
    assert (tokens(RED, seed=8) != alone[:1]).any()
    assert (alone[0] != alone[1]).any()
    assert (tokens(BLUE, seed=7) != alone[:1]).any()


def test_settings_change_the_result(pipeline):
    base = pipeline.generate(RED, seed=0).tokens
    none = pipeline.generate(RED, seed=0, negative_prompt=None).tokens
    np.testing.assert_array_equal(none, base)
    for change in ({"num_steps": 2}, {"guidance_scale": 9.0}, {"temperature": (3.0, 3.0)},
                   {"negative_prompt": BLUE, "guidance_scale": 9.0}):  # fmt: skip
        other = pipeline.generate(RED, seed=0, **change).tokens
        assert (other != base).any(), change


def test_other_sizes_trace_and_callback(pipeline):
    result = pipeline.generate(RED, height=16, width=48, trace=True)
    assert result.images.shape == (1, 16, 48, 3) and result.trace.shape == (3, 1, 4, 12)
    np.testing.assert_array_equal(result.trace[-1], result.tokens)
    seen = []
    pipeline(RED, callback=lambda *told: seen.append((*told[:2], [x.size for x in told[2]])))
    assert seen == [(step, 3, [(32, 32)]) for step in (1, 2, 3)]


@pytest.mark.parametrize(
    "prompt, words",
    [("", "prompt 0 is empty"), (["ok", "  "], "prompt 1 is empty"), (7, "type int"),
     (["ok", None], "prompt 1"), ([], "no prompts"), ("x " * 500, "limit")],
)  # fmt: skip
def test_bad_prompts(pipeline, prompt, words):
    with pytest.raises(PromptError, match=words):
        pipeline(prompt)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"height": 30}, "height 30 must be a positive multiple of 8; use 32"),
        ({"width": 0}, "width 0"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"temperature": 0.0}, "temperature"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"seed": [1, 2]}, "2 values of seed for 1 prompts"),
        ({"output_type": "gif"}, "output_type"),
        ({"renoise_mode": "sometimes"}, "renoise_mode"),
    ],
)
def test_bad_arguments(pipeline, arguments, words):
    with pytest.raises(ValueError, match=words):
        pipeline(RED, **arguments)


def test_tokens_must_be_codes_and_masks_may_be_bytes(pipeline):
    tokens, part = np.zeros((1, 8, 8), np.int32), np.zeros((1, 8, 8), np.uint8)
    part[:, :4] = 255
    marked = pipeline.generate(RED, known=Known(tokens, part), seed=1)
    same = pipeline.generate(RED, known=Known(tokens, part > 0), seed=1)
    np.testing.assert_array_equal(marked.tokens, same.tokens)
    for wrong in (tokens + 32, tokens - 1, tokens.astype(np.float32)):
        with pytest.raises(ValueError, match=r"known.tokens .* from 0 to 31"):
            pipeline.generate(RED, known=Known(wrong, part))
        with pytest.raises(ValueError, match=r"image_tokens .* from 0 to 31"):
            pipeline.generate(RED, image_tokens=wrong, t_start=0.5)


LOADED = """
import sys, paella_jax
paella_jax.load(sys.argv[1])
print(len([name for name in sys.modules if name.split(".")[0] == "paella_jax"]))
import paella_jax.pipelines.flag_checks, paella_jax.pipelines.rows_by_flags
print(*(name for name in ("grain", "optax", "transformers", "matplotlib") if name in sys.modules))
"""


def test_loading_imports_what_the_run_needs(run_folder):
    """At most 142 of the package's files, its `__init__`s included, and to draw by command none of
    what only trains, reads published tokenizers or plots: importing that took longer than drawing.
    """
    command = [sys.executable, "-c", LOADED, str(run_folder)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=small.ROOT, check=True)
    files, heavy = result.stdout.split("\n")[:2]
    assert int(files) <= 142 and heavy == ""


SHOWN = (paella_jax.load, paella_jax.push_to_hub, push_to_hub, Pipeline.embed, Pipeline.warm_up,
         WuerstchenPipeline.embed, editing.image_to_image, editing.inpaint, editing.outpaint,
         editing.edit, editing.morph, variations.variations, variations.with_prior,
         variations.interpolate, variations.mix_parts, variations.interpolate_images)  # fmt: skip


@pytest.mark.parametrize("function", SHOWN, ids=lambda function: function.__qualname__)
def test_what_users_call_has_an_example(function):
    """Of the call itself, in Python that can be copied."""
    example = inspect.getdoc(function).partition("Example:\n")[2]
    code = "\n".join(line[6:] for line in example.splitlines() if line.startswith("  >>> "))
    called = [node.func for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert function.__name__ in {getattr(f, "attr", getattr(f, "id", "")) for f in called}


def test_the_package_shows_a_condition():
    assert "pipe(paella_jax.Condition(" in paella_jax.__doc__


def code_lines(file, names):
    """Lines of functions ("name" or "Class.name") without docstrings, comments and blanks."""
    text, found = file.read_text(), {}
    nodes = [("", node) for node in ast.parse(text).body]
    for prefix, node in nodes:
        if isinstance(node, ast.ClassDef):
            nodes += [(f"{node.name}.", inner) for inner in node.body]
        elif isinstance(node, ast.FunctionDef):
            found[prefix + node.name] = node
    total, lines = 0, [line.strip() for line in text.splitlines()]
    for name in names:
        node = found[name]
        doc = node.body[0] if ast.get_docstring(node) else None
        inside = range(doc.lineno, doc.end_lineno + 1) if doc else ()
        numbers = [n for n in range(node.lineno, node.end_lineno + 1) if n not in inside]
        total += sum(bool(lines[n - 1]) and lines[n - 1][0] != "#" for n in numbers)
    return total


def test_prompt_to_image_is_a_short_reading():
    """Nine files, at most 400 lines of them: the docstring of pipelines/ says which."""
    steps = re.findall(r"^\d\. (\S+\.py) ((?:`[\w.]+`\s*)+):", pipelines.__doc__, re.M)
    assert len({file for file, _ in steps}) == len(steps) == 9
    root = small.ROOT / "paella_jax"
    assert sum(code_lines(root / f, re.findall(r"`([\w.]+)`", names)) for f, names in steps) <= 400


def test_load_refuses_what_is_no_paella_run(tmp_path, run_folder):
    with pytest.raises(CheckpointError, match="not a run folder"):
        paella_jax.load(tmp_path)
    config = small.small_vqgan()
    prepare_workdir(tmp_path / "vqgan", config)
    with pytest.raises(CheckpointError, match="method 'vqgan'"):
        paella_jax.load(tmp_path / "vqgan")


def test_tokenizer_errors(tmp_path):
    config = small.small_paella()
    with pytest.raises(ConfigError, match=r"--config\.tokenizer=RUN"):
        build_method(config, prepare_workdir(tmp_path / "a", config))
    config = small.small_paella(model__codebook_size=64)
    workdir = prepare_workdir(tmp_path / "b", config)
    small.carry_random_tokenizer(workdir)
    with pytest.raises(ConfigError, match=r"model\.codebook_size=32"):
        build_method(config, workdir)
    config = small.small_paella(data__spec="shapes64", data__image_size=64, model__patch_size=3)
    with pytest.raises(ConfigError, match="multiple of 12"):
        workdir = prepare_workdir(tmp_path / "c", config)
        small.carry_random_tokenizer(workdir)
        build_method(config, workdir)
    file = workdir / "frozen" / "vqgan.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged or cut off"):
        build_method(small.small_paella(), workdir)


def test_report(run_folder, tmp_path):
    report = evaluate_run(run_folder, tmp_path, num_images=6, step_counts=[2, 3])
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["scores"]["seen"]["exact"] == report["scores"]["seen"]["exact"]
    assert set(stored["exact_by_steps"]) == {"2", "3"}
    assert stored["tokenizer"]["seen"]["oracle_on_clean_exact"] == 1.0
    for name in ("samples.png", "training.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] > 300


def entry(*arguments):
    command, environment = [sys.executable, "-m", *arguments], os.environ | small.COMPILE_CHEAPLY
    return subprocess.run(
        command, capture_output=True, text=True, cwd=small.ROOT, env=environment, check=False
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["paella_jax.train", "--config", "configs/paella.py:tiny", "--workdir", "/tmp/x",
          "--config.modl.widths=1"], "unknown config field 'modl.widths'"),
        (["paella_jax.train", "--config", "configs/paella.py:giant", "--workdir", "/tmp/x"],
         "unknown preset 'giant'"),
        (["paella_jax.sample", "--checkpoint", "/nowhere", "--prompt", "a"], "not a run folder"),
        (["paella_jax.evaluate", "--checkpoint", "/nowhere"], "not a run folder"),
    ],
)  # fmt: skip
def test_commands_end_in_one_clear_line(arguments, words):
    result = entry(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and words in result.stderr
    assert "Traceback" not in result.stderr


def test_sample_command(run_folder, tmp_path):
    out = tmp_path / "grid.png"
    result = entry(
        "paella_jax.sample", "--checkpoint", str(run_folder), "--prompt", RED, "--out", str(out)
    )
    assert result.returncode == 0, result.stderr
    with Image.open(out) as picture:
        assert picture.size == (32, 32)
    assert read_png_texts(out)["prompt"] == RED and "compiling the sampler" in result.stderr
    result = entry(
        "paella_jax.sample", "--checkpoint", str(run_folder), "--prompt", "", "--out", str(out)
    )
    assert result.returncode == 2 and "prompt 0 is empty" in result.stderr
