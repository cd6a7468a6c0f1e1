"""Run folders as versions without digests left them."""

from __future__ import annotations

import json
from pathlib import Path


def without_digests(run: Path) -> Path:
    """Takes the digests out of a run folder, and out of what its checkpoints say of themselves."""
    (run / "digests.json").unlink()
    for step in (run / "checkpoints").iterdir():
        (step / "digests.json").unlink()
        (step / "note" / "metadata").write_text(json.dumps({"step": int(step.name)}))
    return run
