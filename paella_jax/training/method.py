"""What the loop needs to know of a method; every file in families/ makes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from paella_jax.data.loader import Source, Transform
from paella_jax.objectives.inputs import Objective
from paella_jax.training.state import TrainState
from paella_jax.training.step import AfterUpdate
from paella_jax.typing import Tree


@dataclass(frozen=True)
class Method:
    """One way of training, ready for `training.loop`.

    Attributes:
      title: shown in the progress bar.
      init: key -> (params, model_state); pure, so it can be evaluated abstractly.
      objective: what is trained, as objectives/inputs.py describes it.
      frozen: parameters of frozen networks.
      source: training samples.
      transform: sample -> arrays.
      after_update: optional change of the parameters after the optimiser.
      tokenizers: those of captions, by what their length is called in messages.
      preview: optional (state, frozen, png path) -> writes a sample grid and returns
        scores for the metrics file.
    """

    title: str
    init: Callable[[jax.Array], tuple[Tree, Tree]]
    objective: Objective
    frozen: Tree
    source: Source
    transform: Transform
    after_update: AfterUpdate | None = None
    preview: Callable[[TrainState, Tree, Path], dict[str, float]] | None = None
    tokenizers: Mapping[str, Any] = field(default_factory=dict)
