"""What the loop needs to know of a method; every file in families/ makes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from paella_jax.typing import Array, Tree

if TYPE_CHECKING:  # for the types alone: who only draws needs neither grain nor optax
    from paella_jax.data.loader import Source, Transform
    from paella_jax.objectives.inputs import Objective
    from paella_jax.training.state import TrainState
    from paella_jax.training.step import AfterUpdate

# Texts -> ids and mask, of a fixed length.
Tokenize = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]

TEXT_LENGTH = "text.pad_to or text.max_length"  # the name of that number in `Encoding.settings`


@dataclass(frozen=True)
class Encoding:
    """What a step can be given in place of images and texts: `paella_jax.encode` computes it once.

    Attributes:
      arrays: (frozen, batch of the method's transform) -> the batch that the objective takes
        instead, each array [batch, ...]; pure.
      largest: the largest whole number in an array of token ids, by the array's name.
      networks: the frozen trees that `arrays` uses and a step then does not; of a tokenizer, the
        part that makes tokens.
      tokenizers: of texts.
      settings: config fields, and other numbers, that the arrays depend on.
    """

    arrays: Callable[[Tree, dict[str, Array]], dict[str, Array]]
    networks: Mapping[str, Tree]
    tokenizers: Mapping[str, Tokenize]
    settings: Mapping[str, Any]
    largest: Mapping[str, int] = field(default_factory=dict)


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
      rebuild: optional (frozen, images in [0, 1]) -> images: a frozen tokenizer there and back.
      encoding: optional: what may be computed once for all epochs.
      held: makes the source of held-back samples.
      validates: whether the objective has a meaning on those.
      validation: optional (state, frozen) -> metrics of those (`with_validation`).
    """

    title: str
    init: Callable[[jax.Array], tuple[Tree, Tree]]
    objective: Objective
    frozen: Tree
    source: Source
    held: Callable[[], Source]
    transform: Transform
    after_update: AfterUpdate | None = None
    preview: Callable[[TrainState, Tree, Path], dict[str, float]] | None = None
    tokenizers: Mapping[str, Any] = field(default_factory=dict)
    rebuild: Callable[[Tree, Array], Array] | None = None
    encoding: Encoding | None = None
    validates: bool = True
    validation: Callable[[TrainState, Tree], dict[str, float]] | None = None
