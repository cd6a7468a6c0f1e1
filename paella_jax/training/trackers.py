"""TensorBoard and W&B, where a run asks for them: its config, its metrics and its sample images."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from ml_collections import ConfigDict

from paella_jax.config import to_json
from paella_jax.files.atomic import write_atomically
from paella_jax.images.read import read_rgb

WANDB_FILE = "wandb_id"  # in the run folder: what W&B knows the run by
SAMPLES = "samples"
STEP = "step"  # W&B's axis of everything


class Tracker(Protocol):
    """Somewhere that metrics and images go, besides the run folder."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the metrics of a step."""

    def show(self, step: int, file: Path) -> None:
        """Takes an image that was drawn at a step."""

    def close(self, failed: bool) -> None:
        """Nothing more comes; `failed` says that an error ended the training."""


def trackers(workdir: Path, config: ConfigDict, start: int) -> list[Tracker]:
    """Those that `config.log` asks for.

    Args:
      workdir: the run folder.
      config: of the run.
      start: the step that it goes on from; 0 where it begins.

    Raises:
      ImportError: their package is not there.
    """
    found: list[Tracker] = []
    if config.log.tensorboard:
        found.append(TensorBoard(workdir, config, start))
    if config.log.wandb:
        found.append(WeightsAndBiases(workdir, config, resumed=start > 0))
    return found


class TensorBoard:
    """Events in the run folder's `tensorboard/`."""

    def __init__(self, workdir: Path, config: ConfigDict, start: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            told = "log.tensorboard needs: pip install 'paella_jax[tensorboard]'"
            raise ImportError(told) from error
        # What a call that was killed told of later steps comes again, and not as it was.
        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)
        # Four spaces before each line: Markdown shows them as they are.
        self._writer.add_text("config", "    " + to_json(config).replace("\n", "\n    "))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar for each value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def show(self, step: int, file: Path) -> None:
        """The image in the tab of images."""
        self._writer.add_image(SAMPLES, np.asarray(read_rgb(file)), step, dataformats="HWC")

    def close(self, failed: bool) -> None:
        """Writes what is held back."""
        self._writer.close()


class WeightsAndBiases:
    """A run of a W&B project; one that is resumed goes on there."""

    def __init__(self, workdir: Path, config: ConfigDict, resumed: bool) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError("log.wandb needs: pip install 'paella_jax[wandb]'") from error
        self._image = wandb.Image
        self._run = wandb.init(
            project=config.log.wandb,
            dir=str(workdir),
            name=workdir.name,
            id=wandb_id(workdir, resumed),
            resume="allow",
            config=json.loads(to_json(config)),
        )
        # W&B's own count of rows only ascends: it would drop the steps that a resumed run repeats.
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The values as one row."""
        self._run.log({STEP: step, **values})

    def show(self, step: int, file: Path) -> None:
        """The image as another row of the step."""
        self._run.log({STEP: step, SAMPLES: self._image(str(file))})

    def close(self, failed: bool) -> None:
        """Ends W&B's run, or it would go on as that of this process's next training."""
        self._run.finish(exit_code=int(failed))


def wandb_id(workdir: Path, resumed: bool) -> str:
    """What W&B knows a run folder by: drawn at its start, so that folders of one name are two runs.

    Runs that were begun before there was such a file went by their folder's name; they still do.
    """
    file = workdir / WANDB_FILE
    if file.is_file():
        return file.read_text().strip()
    drawn = workdir.name if resumed else secrets.token_hex(8)
    write_atomically(file, drawn + "\n")
    return drawn
