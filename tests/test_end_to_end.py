"""The README's quickstart at its smallest setting: the score must rise clearly above chance."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import small
from PIL import Image

import paella_jax


@pytest.mark.slow
def test_quickstart_learns_captions(tmp_path):
    """One command, from another directory; a second call repeats nothing."""
    command = [str(small.ROOT / "launch" / "quickstart.sh"), str(tmp_path / "out")]
    environment = os.environ | {"PRESET": "tiny"}
    environment.pop("XLA_FLAGS", None)
    run = lambda: subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    first = run()
    assert first.returncode == 0, first.stderr[-3000:]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["tokenizer"]["seen"]["reconstruction_exact"] >= 0.85
    # 40 scenes: guessing one is right in 2.5 % of the cases.
    assert report["scores"]["seen"]["exact"] >= 0.6
    assert {"install", "tokenizer", "predictor", "evaluate"} <= set(report["seconds"])
    for name in ("samples.png", "training.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.size[0] > 300
    second = run()
    assert second.returncode == 0 and "already done" in second.stdout
    pipeline = paella_jax.load(tmp_path / "out" / "paella")
    assert pipeline("a large red circle at the top left on a black background")[0].size == (32, 32)
