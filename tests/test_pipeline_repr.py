"""What a pipeline says of its use: a Stage B run alone reconstructs, and says so."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from paella_jax.pipelines.wuerstchen import WuerstchenPipeline


def stages(*methods):
    """A Würstchen of these stages, by their configs alone."""
    pipe = object.__new__(WuerstchenPipeline)
    sampler = {"num_steps": 12, "segments": (20, 10), "guidance_scale": (4.0, 4.0)}
    sampler["stepper"] = "ddpm"
    pipe.configs = {
        name: ConfigDict({"method": name, "data": {"image_size": 64}, "sampler": sampler})
        for name in methods
    }
    pipe.config = pipe.configs[methods[-1]]
    pipe.stage_c = SimpleNamespace() if "stage_c" in methods else None
    pipe._weights, pipe._whole = {name: {"x": np.zeros(2_000_000)} for name in methods}, {}
    return pipe


def test_a_stage_b_run_says_that_it_reconstructs():
    text = repr(stages("stage_b"))
    assert text.startswith("WuerstchenPipeline: stage_b run, 2.0M parameters, images of 64x64")
    assert "reconstructs, and draws nothing from text: pipe.reconstruct(images)" in text
    assert "pipe(prompt" not in text and "draws by default" not in text


@pytest.mark.parametrize("words", ["num_steps=30", "stepper='ddpm'", "pipe(prompt, num_images"])
def test_all_stages_say_what_they_draw_with(words):
    assert words in repr(stages("stage_b", "stage_c"))
