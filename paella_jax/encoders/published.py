"""Published text and image encoders: Hugging Face names and folders <-> our parameters.

A CLIP tower's tensors may come alone or with the other tower's (a whole CLIPModel, whose other half
is not read), with the prefix "text_model." or "vision_model." (all older files) or without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from paella_jax.encoders.clip_text import ClipText, clip_text_from_hf_config
from paella_jax.encoders.clip_vision import ClipVision, clip_vision_from_hf_config
from paella_jax.encoders.t5 import T5Encoder, t5_from_hf_config
from paella_jax.files.foreign import checked, network_of
from paella_jax.files.tensors import ConversionError, Entry, Names, attention, linear, norm
from paella_jax.files.weights_file import CONFIG, errors_name, read_config, read_weights
from paella_jax.files.wrappers import unwrapped
from paella_jax.typing import Tensors, Tree

EMBEDDING, EMBEDDING_ALIAS = "shared.weight", "encoder.embed_tokens.weight"
T5_MARK, CLIP_MARK = "encoder.final_layer_norm.weight", "embeddings.position_embedding.weight"
DECODER = ("decoder.", "lm_head.")  # the other half of an encoder-decoder checkpoint
POSITION_IDS = "embeddings.position_ids"  # not weights: 0, 1, 2, ... in older versions' files


class Tower(NamedTuple):
    """How one of CLIP's two towers is published."""

    prefix: str  # of its tensors, but for the projection's name
    projection: str  # name of the projection
    foreign: tuple[str, ...]  # how the tensors of a whole CLIPModel begin that it has no use for
    model_class: str  # transformers class that holds it alone
    read_config: Callable[[dict[str, Any]], Any]  # config.json -> module
    entries: Callable[[Any, str], list[Entry]]  # module, prefix -> table without the projection
    inputs: Callable[[Any], tuple[Any, ...]]  # module -> arguments of its `init`

    def names(self, prefix: str | None = None) -> Names:
        """Hugging Face names to our paths, with another prefix than the tower's own."""
        prefix = self.prefix if prefix is None else prefix
        last = Entry(self.projection, ("to_embedding", "kernel"), "linear")
        table = lambda m: self.entries(m, prefix) + [last] * (m.projection is not None)
        return Names(table, self.inputs, ignored=(prefix + POSITION_IDS,), foreign=self.foreign)

    def shapes(self, module: Any) -> Tree:
        """Shapes of all parameters; nothing is computed."""
        return self.names().shapes(module)

    def load(self, tensors: Tensors, module: Any) -> Tree:
        """Hugging Face tensors -> parameters, values and dtypes unchanged.

        The other tower's tensors are dropped.

        Raises:
          ConversionError: listing every missing, unknown and misshapen tensor.
        """
        tensors = self.plain(tensors)
        # Where neither form is complete the longer one makes the clearer list of missing tensors.
        bare = any(name.startswith(("embeddings.", "encoder.")) for name in tensors)
        return self.names("" if bare else None).load(tensors, module)

    def plain(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Tensors by the names that transformers gives them, without other programs' wrappers."""
        mark = f"{self.prefix}{CLIP_MARK}"
        is_full = any(name.endswith(mark) for name in tensors)
        return unwrapped(tensors, [mark if is_full else CLIP_MARK])[0]

    def save(self, params: Tree, module: Any, prefix: str | None = None) -> Tensors:
        """Parameters -> Hugging Face tensors, values unchanged."""
        return self.names(prefix).save(params, module)

    def load_folder(self, path: str | Path) -> tuple[Any, Tree]:
        """Reads the tower of a Hugging Face folder, see `load_clip_text_folder`."""
        module, read = _read_folder(path, self.read_config, self.foreign, self.model_class)
        with errors_name(Path(path)):
            tensors = self.plain(read)
        if module.projection is None and self.projection in tensors:
            module = module.clone(projection=len(tensors[self.projection]))
        with errors_name(Path(path)), network_of(CONFIG):
            return module, self.load(tensors, module)


def _block_entries(prefix: str, num_layers: int) -> list[Entry]:
    entries = []
    for i in range(num_layers):
        name, path = f"{prefix}encoder.layers.{i}", ("transformer", f"block_{i}")
        parts = [f"{part}_proj" for part in ("q", "k", "v", "out")]
        entries += norm(f"{name}.layer_norm1", *path, "attention_norm")
        entries += attention(f"{name}.self_attn", *path, "attention", parts=parts)
        entries += norm(f"{name}.layer_norm2", *path, "mlp_norm")
        entries += linear(f"{name}.mlp.fc1", *path, "mlp_in")
        entries += linear(f"{name}.mlp.fc2", *path, "mlp_out")
    return entries


def _text_entries(module: ClipText, prefix: str) -> list[Entry]:
    return [
        Entry(f"{prefix}embeddings.token_embedding.weight", ("token_embedding",)),
        Entry(f"{prefix}embeddings.position_embedding.weight", ("position_embedding",)),
        *_block_entries(prefix, module.num_layers),
        *norm(f"{prefix}final_layer_norm", "final_norm"),
    ]


def _vision_entries(module: ClipVision, prefix: str) -> list[Entry]:
    return [
        Entry(f"{prefix}embeddings.class_embedding", ("class_embedding",)),
        Entry(f"{prefix}embeddings.patch_embedding.weight", ("patch_kernel",), "conv"),
        Entry(f"{prefix}embeddings.position_embedding.weight", ("position_embedding",)),
        *norm(f"{prefix}pre_layrnorm", "pre_norm"),  # the misspelling is theirs
        *_block_entries(prefix, module.num_layers),
        *norm(f"{prefix}post_layernorm", "post_norm"),
    ]


TEXT = Tower(
    "text_model.", "text_projection.weight",
    ("vision_model.", "visual_projection.weight", "logit_scale"),
    "CLIPTextModelWithProjection", clip_text_from_hf_config, _text_entries,
    lambda module: (jnp.zeros((1, 1), jnp.int32),),
)  # fmt: skip
VISION = Tower(
    "vision_model.", "visual_projection.weight",
    ("text_model.", "text_projection.weight", "logit_scale"),
    "CLIPVisionModelWithProjection", clip_vision_from_hf_config, _vision_entries,
    lambda module: (jnp.zeros((1, module.image_size, module.image_size, module.channels)),),
)  # fmt: skip


def load_clip_text_folder(path: str | Path) -> tuple[ClipText, Tree]:
    """Reads the text tower of a Hugging Face folder: config and weights, safetensors or
    .bin, single or sharded.

    The tower has a projection where the config or the weights say so.

    Returns:
      The module and its parameters (numpy, in the file's dtype).

    Raises:
      FileNotFoundError: the folder, its config or its weights are not there.
      ConversionError: a file cannot be read, or its tensors do not fit the config.
      ValueError: the config describes a model this tower is not.
    """
    return TEXT.load_folder(path)


def load_clip_vision_folder(path: str | Path) -> tuple[ClipVision, Tree]:
    """Reads the vision tower of a Hugging Face folder, as `load_clip_text_folder` the text tower.

    Raises:
      FileNotFoundError, ConversionError, ValueError: as `load_clip_text_folder`.
    """
    return VISION.load_folder(path)


def t5_entries(module: T5Encoder) -> list[Entry]:
    """The tensor table of an encoder: Hugging Face names to our paths."""
    first = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    entries = [Entry(EMBEDDING, ("embedding",)), Entry(first, ("relative_bias",))]
    layer, scale = partial(linear, bias=False), partial(norm, bias=False)
    parts = ("q", "k", "v", "o")
    for i in range(module.num_layers):
        block, ours = f"encoder.block.{i}.layer", f"block_{i}"
        name = f"{block}.0.SelfAttention"
        entries += attention(name, ours, "attention", bias=False, parts=parts)
        entries += scale(f"{block}.0.layer_norm", ours, "attention_norm")
        inputs = (("wi_0", "wi_0"), ("wi_1", "wi_1")) if module.gated else (("wi", "wi_0"),)
        for theirs, name in (*inputs, ("wo", "wo")):
            entries += layer(f"{block}.1.DenseReluDense.{theirs}", ours, "mlp", name)
        entries += scale(f"{block}.1.layer_norm", ours, "mlp_norm")
    return entries + scale("encoder.final_layer_norm", "final_norm")


T5_NAMES = Names(t5_entries, lambda module: (jnp.zeros((1, 1), jnp.int32),), foreign=DECODER)


def import_t5(tensors: Tensors, module: T5Encoder) -> Tree:
    """Hugging Face tensors -> `module`'s parameters, values and dtypes unchanged.

    Decoder tensors are dropped; the embedding may have either of its two names, or both.

    Raises:
      ConversionError: listing every missing, unknown and misshapen tensor.
    """
    kept, _ = unwrapped(tensors, [T5_MARK])
    if EMBEDDING_ALIAS in kept:
        alias = kept.pop(EMBEDDING_ALIAS)
        if not np.array_equal(kept.setdefault(EMBEDDING, alias), alias):
            raise ConversionError(
                f"{EMBEDDING} and {EMBEDDING_ALIAS} differ, but T5 has one embedding; "
                "remove the one that is not the encoder's"
            )
    return T5_NAMES.load(kept, module)


def load_t5_folder(path: str | Path) -> tuple[T5Encoder, Tree]:
    """Reads a Hugging Face folder: `config.json` and weights, safetensors or .bin,
    single or sharded.

    Returns:
      The module and its parameters (numpy, in the file's dtype, so bfloat16 files stay small).

    Raises:
      FileNotFoundError: the folder, its config or its weights are not there.
      ConversionError: a file cannot be read, or its tensors do not fit the config.
      ValueError: the config describes a model this encoder is not.
    """
    module, tensors = _read_folder(path, t5_from_hf_config, DECODER, "T5EncoderModel")
    with errors_name(Path(path)), network_of(CONFIG):
        return module, import_t5(tensors, module)


def _read_folder(
    path: str | Path, make: Callable[..., Any], foreign: tuple[str, ...], model_class: str
) -> tuple[Any, dict[str, np.ndarray]]:
    """Module and tensors of a Hugging Face folder, but for those that begin as `foreign` does."""
    folder = Path(path)
    config = read_config(folder)
    with errors_name(folder / CONFIG), network_of("it"):
        module = checked(make(config))
    return module, read_weights(folder, lambda n: not n.startswith(foreign), model_class)


def read_config_of(option: str, folder: str) -> dict[str, Any]:
    """The config.json of a folder given as an option; ConversionError where there is none."""
    try:
        return read_config(Path(folder))
    except FileNotFoundError as error:
        raise ConversionError(f"{option}: {error}") from error


def check_clip(
    option: str, folder: str, width: int, pooled: int | None = None, shown: str = ""
) -> None:
    """Raises ConversionError for a CLIP folder that is not whole, or of another width.

    Args:
      option: that gave it.
      folder: empty for none.
      width: of the states that the weights were trained with.
      pooled: of the projection; None where the weights take no pooled text.
      shown: what to call the folder.
    """
    if not folder:
        return
    path, shown = Path(folder), shown or f"{option} {folder}"
    config = read_config_of(option, folder)
    with errors_name(Path(shown)), network_of(CONFIG):
        tower = checked(clip_text_from_hf_config(config))
    if tower.width != width:
        raise ConversionError(
            f"{shown} has hidden_size {tower.width}, the weights were trained with {width} "
            "(released: 768 of CLIP ViT-L/14 for aMUSEd, 1024 of ViT-H/14 for Stage B, 1280 of "
            "ViT-bigG/14 for Stage C)"
        )
    projection = tower.projection if pooled is not None else None
    if pooled is not None and projection is None:  # its config says nothing, the weights do
        is_projection = lambda name: name.endswith(TEXT.projection)
        found = read_weights(path, is_projection, TEXT.model_class)
        projection = len(next(iter(found.values()))) if found else None
    if projection != pooled:
        raise ConversionError(
            f"{shown} has projection_dim {projection}, the weights were trained with {pooled}"
        )
    has = lambda *names: all((path / name).is_file() for name in names)
    if not has("tokenizer.json") and not has("vocab.json", "merges.txt"):
        raise ConversionError(
            f"{shown} has neither tokenizer.json nor vocab.json and merges.txt; copy them "
            "there (diffusers repositories keep them in the folder `tokenizer`)"
        )
