"""A loaded pipeline as a folder to give away: its weights in memory, the rest from its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paella_jax.config import ConfigError
from paella_jax.outside import expanded
from paella_jax.runs.derive import restore_all
from paella_jax.runs.folder import CheckpointError, read_config
from paella_jax.runs.frozen import COMPRESSOR
from paella_jax.sharing.folder import (
    KEEP,
    SUPER_RESOLUTION,
    Shared,
    check_out,
    step_of,
    write_shared,
)
from paella_jax.sharing.hub import check_path

WITH_STATE = "stage_b"  # the method whose runs hold more than their pipeline's own parameters


@dataclass(frozen=True)
class Origin:
    """What a pipeline was loaded from.

    Attributes:
      folder: the run's.
      options: those it was loaded with.
      steps: the newest checkpoint at that time, of the run and of one that enlarges its images.
    """

    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, folder: str | Path, options: Mapping[str, Any]) -> Origin:
        """Notes the steps that are there now."""
        options = {name: value for name, value in options.items() if value}
        second = options.get(SUPER_RESOLUTION, "")
        return cls(Path(folder), options, (step_of(folder), step_of(second) if second else 0))


def save_pipeline(
    pipe: Any, folder: str | Path, dtype: str = KEEP, report: str | Path = "", licence: str = ""
) -> Path:
    """Writes a pipeline that `paella_jax.load` gave; see `write_shared`.

    Raises:
      ValueError: a folder or a report that is no path.
      ConfigError: it was made otherwise, so that no run folder has its frozen networks.
      ConversionError, CheckpointError: as `write_shared`, or the run's folder is gone.
    """
    check_path("folder", folder)
    check_path("report", report)
    origin: Origin | None = getattr(pipe, "origin", None)
    if origin is None:
        raise ConfigError(
            "this pipeline was not made by paella_jax.load; save its run instead: "
            "python -m paella_jax.export --checkpoint RUN --out FOLDER"
        )
    folder, report = expanded(folder), str(expanded(report)) if report else ""
    check_out(folder, dtype, report)
    parts, second = pipe.parts(), origin.options.get(SUPER_RESOLUTION)
    decoder = str(origin.options.get("decoder", ""))
    params = {name: weights[0] for name, (_, weights) in parts.items()}
    if second:
        runs = {
            "": _shared(origin.folder, origin.steps[0], params["base"]),
            SUPER_RESOLUTION: _shared(Path(second), origin.steps[1], params[""], decoder),
        }
    else:
        runs = {"": _shared(origin.folder, origin.steps[0], params[""], decoder)}
    return write_shared(folder, runs, dtype, report, licence)


def _shared(folder: Path, step: int, params: Any, decoder: str = "") -> Shared:
    """A run's own weights as the pipeline has them."""
    config = read_config(folder)
    if config.method != WITH_STATE:
        return Shared(folder, config, step, params, {}, decoder)
    # The compressor that trained along, with its statistics, is no part of what a stage draws with.
    newest, stored, state = restore_all(folder, config)
    if step_of(folder) != step:
        raise CheckpointError(f"{folder} was trained on to step {newest}; load it again, then save")
    kept = {name: tree for name, tree in stored.items() if name == COMPRESSOR}
    return Shared(folder, config, step, {**params, **kept}, state)
