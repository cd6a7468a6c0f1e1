"""A run folder that lost its config."""

from __future__ import annotations

import pytest
import small

from paella_jax.config import CheckpointError
from paella_jax.runs.folder import prepare_workdir


@pytest.mark.parametrize("trained", ["weights.safetensors", "checkpoints/4/note"])
def test_what_was_trained_is_not_resumed_under_any_config(tmp_path, trained):
    run = prepare_workdir(tmp_path / "run", small.small_paella())
    (run / trained).parent.mkdir(parents=True, exist_ok=True)
    (run / trained).write_text("")
    (run / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"run .*no config\.json"):
        prepare_workdir(run, small.small_paella(batch_size=7))
    assert not (run / "config.json").exists()
