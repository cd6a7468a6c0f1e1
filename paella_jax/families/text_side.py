"""The text side of the diffusion stages: a small encoder that trains along, frozen CLIP, or none.

Unlike Paella's (families/tokens.py) it has one encoder whose last states the network attends to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.encoders.clip_text import ClipText
from paella_jax.encoders.t5 import T5Encoder
from paella_jax.encoders.text import (
    CLIP_LIMITS,
    TEXT_LIMITS,
    ClipTokenizer,
    Tokenizer,
    joint_text_encoder,
    make_tokenizer,
    refusing,
)
from paella_jax.families.networks import frozen_form
from paella_jax.models.conditioning import Conditioning
from paella_jax.runs.frozen import carry, load_carried, place_of
from paella_jax.typing import Array, Tree

NAME = "text_encoder"  # of its parameters, in the trained or the frozen tree
CLIP_LENGTH = 77


@dataclass(frozen=True)
class TextSide:
    """Tokenizer and encoder; `encoder` is None for networks that see no text.

    Attributes:
      encoder: its parameters are at "text_encoder" of the trained tree if it is a T5, else of the
        frozen one.
      tokenizer: cuts texts that are too long.
      length: ids of every text.
    """

    encoder: T5Encoder | ClipText | None
    tokenizer: Tokenizer | None
    length: int

    @property
    def is_joint(self) -> bool:
        """Whether the encoder trains along."""
        return isinstance(self.encoder, T5Encoder)

    @property
    def tokenizers(self) -> dict[str, Tokenizer]:
        """The tokenizer, if there is one, by what sets how long texts may be."""
        limits = TEXT_LIMITS if self.is_joint else CLIP_LIMITS
        return {} if self.tokenizer is None else {limits: self.tokenizer}

    def ids(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
        """Ids int32 and mask bool [count, length]; None without text."""
        return None if self.tokenizer is None else self.tokenizer(texts, self.length)

    def check(self, texts: Sequence[str]) -> None:
        """Raises PromptError where a text is longer than what is read of it."""
        if self.tokenizer is not None:
            refusing(self.tokenizer)(texts, self.length)

    def cut(self, text: str) -> str:
        """What is read of a text."""
        return text if self.tokenizer is None else self.tokenizer.cut(text)

    def empty(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Ids and mask [length] of the empty text; None without text."""
        pair = self.ids([""])
        return None if pair is None else (pair[0][0], pair[1][0])

    def init(self, key: Array) -> Tree:
        """Fresh trainable parameters: empty unless the encoder trains along."""
        if not isinstance(self.encoder, T5Encoder):
            return {}
        return {NAME: self.encoder.init(key, jnp.zeros((1, 4), jnp.int32))["params"]}

    def abstract(self) -> Conditioning:
        """Something of the right widths to initialise a network with."""
        width = 1 if self.encoder is None else self.encoder.width
        text = jnp.zeros((1, 1, width))
        two = isinstance(self.encoder, T5Encoder) and self.encoder.word_values
        return Conditioning(text=text, text_values=text if two else None)

    def __call__(
        self,
        params: Tree,
        frozen: Tree,
        ids: Array | None,
        mask: Array | None,
        batch: int,
        key: Array | None = None,
    ) -> Conditioning:
        """Text states, and for a T5 the mask of its padding; `key` switches dropout on.

        CLIP's tower is given the mask, the networks are not: they attend to all 77 positions
        (docs/models/wuerstchen.md 1). Without an encoder the text is one zero vector.
        """
        if self.encoder is None:
            return Conditioning(text=jnp.zeros((batch, 1, 1)))
        if isinstance(self.encoder, T5Encoder):
            states = self.encoder.apply(
                {"params": params[NAME]},
                ids,
                mask,
                deterministic=key is None,
                rngs=None if key is None else {"dropout": key},
            )
            states, values = states if self.encoder.word_values else (states, None)
            return Conditioning(text=states, text_values=values, text_mask=mask)
        output = self.encoder.apply({"params": frozen[NAME]}, ids, mask)
        return Conditioning(text=jax.lax.stop_gradient(output.last_hidden_state))

    def transform(self, sample: dict[str, Any]) -> dict[str, np.ndarray]:
        """A captioned sample's image and ids."""
        arrays = {"image": sample["image"]}
        pair = self.ids([sample["caption"]]) if self.tokenizer is not None else None
        if pair is not None:
            arrays["text_ids"], arrays["text_mask"] = pair[0][0], pair[1][0]
        return arrays


def predict_noise(
    module: nn.Module, params: Tree, x: Array, t: Array, cond: Conditioning, key: Array | None
) -> Array:
    """What a diffusion stage makes of noised values; `key` switches dropout on."""
    rngs = None if key is None else {"dropout": key}
    return module.apply({"params": params}, x, t, cond, deterministic=key is None, rngs=rngs)


def carry_text(config: ConfigDict, workdir: Path, part: str) -> None:
    """Copies the CLIP folder of `config.text` into a run's folder, once.

    Args:
      config: of a diffusion stage.
      workdir: the run's folder.
      part: the stage's key of `runs.frozen.CARRIED`.

    Raises:
      ConfigError: kind clip without a folder.
    """
    if config.text.kind == "clip":
        needed = (
            "text.kind=clip needs --config.text.folder=FOLDER, a CLIP text model in Hugging Face "
            "layout; or train a small encoder with --config.text.kind=joint"
        )
        carry(part, config.text.folder, workdir, needed)


def load_text(config: ConfigDict, workdir: Path, part: str, frozen: Tree) -> TextSide:
    """The text side of a prepared run folder; a frozen encoder's weights go into `frozen`.

    Raises:
      ConfigError: unknown kind.
      CheckpointError: the folder carries no CLIP model.
    """
    text = config.text
    if text.kind == "none":
        return TextSide(None, None, 0)
    if text.kind == "joint":
        length = min(text.pad_to, text.max_length)
        encoder = joint_text_encoder(text, config.precision)
        tokenizer = make_tokenizer(encoder.vocab_size, "", length, truncate=True)
        return TextSide(encoder, tokenizer, length)
    if text.kind != "clip":
        raise ConfigError(f"text.kind must be none, joint or clip, got {text.kind!r}")
    module, frozen[NAME] = load_carried(part, workdir)
    tokenizer = ClipTokenizer(place_of(part, workdir), CLIP_LENGTH, truncate=True)
    return TextSide(module.clone(**frozen_form(config)), tokenizer, CLIP_LENGTH)
