"""What an image is conditioned on, before and after the encoders, as pytrees every family reads."""

from __future__ import annotations

from typing import Any

from flax import struct

from paella_jax.models.context import KeysAndValues

Leaf = Any  # a jax or numpy array, or the abstract shape of one


@struct.dataclass
class Conditioning:
    """Every field may be None; masks are True where a position is real.

    Attributes:
      text: float [batch, length, text_width], one vector per text token.
      text_values: float [batch, length, text_width], what is read at a text position, where it
        differs from what the position is found by, its `text` (models/context.py).
      text_mask: bool [batch, length]; None means every position is real.
      text_weights: float32 [batch, length], multiplies the attention each text position gets;
        None means 1.
      text_pooled: float [batch, clip_width], one vector per caption.
      image_pooled: float [batch, images, clip_width], zero or more image embeddings per sample.
      image_mask: bool [batch, images]; None means every embedding is real.
      labels: int32 [batch], a class per sample, -1 for none.
      segmentation: int32 [batch, h, w], a class per token position, -1 for none.
      guide: float [batch, h, w, 16], the compressor's latents, raw scale.
      micro_conds: float32 [batch, 5], aMUSEd's: width and height of the image in pixels, top and
        left of its crop, aesthetic score.
      low_tokens: int32 [batch, h, w], the tokens of a smaller image to enlarge.
    """

    text: Leaf | None = None
    text_values: Leaf | None = None
    text_mask: Leaf | None = None
    text_weights: Leaf | None = None
    text_pooled: Leaf | None = None
    image_pooled: Leaf | None = None
    image_mask: Leaf | None = None
    labels: Leaf | None = None
    segmentation: Leaf | None = None
    guide: Leaf | None = None
    micro_conds: Leaf | None = None
    low_tokens: Leaf | None = None

    @property
    def text_context(self) -> Any:
        """The text as attention takes it: its states, or keys and values."""
        if self.text is None or self.text_values is None:
            return self.text
        return KeysAndValues(self.text, self.text_values)


@struct.dataclass
class ConditionInputs:
    """What `Conditioning` is made from: ids where it has states. Every field may be None.

    Attributes:
      text_ids: int32 [batch, length].
      text_mask: bool [batch, length].
      text_weights: as in `Conditioning`.
      clip_ids: int32 [batch, 77], the caption as CLIP's tokens.
      text_states: float [batch, length, width], what a frozen encoder made of the ids beforehand.
      text_pooled: as in `Conditioning`, where CLIP's tower ran beforehand.
      image_pooled: as in `Conditioning`; images are embedded beforehand.
      image_mask: as in `Conditioning`.
      labels: as in `Conditioning`.
      segmentation: as in `Conditioning`.
      micro_conds: as in `Conditioning`.
      low_tokens: as in `Conditioning`.
    """

    text_ids: Leaf | None = None
    text_mask: Leaf | None = None
    text_weights: Leaf | None = None
    clip_ids: Leaf | None = None
    text_states: Leaf | None = None
    text_pooled: Leaf | None = None
    image_pooled: Leaf | None = None
    image_mask: Leaf | None = None
    labels: Leaf | None = None
    segmentation: Leaf | None = None
    micro_conds: Leaf | None = None
    low_tokens: Leaf | None = None


def text_alone(cond: Conditioning, network: str) -> Any:
    """The text as a context, of a condition for a network that reads nothing else.

    Raises:
      ValueError: there is no text, or something else too.
    """
    others = ("text_weights", "image_pooled", "labels", "segmentation")
    given = [name for name in others if getattr(cond, name) is not None]
    if cond.text is None or given:
        raise ValueError(
            f"the {network} is conditioned on text alone, got {given or 'no text'}; "
            "cell.network=unet takes the other conditions"
        )
    return cond.text_context
