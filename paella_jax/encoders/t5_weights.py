"""T5 and ByT5 encoder weights: Hugging Face names and folders <-> our parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.encoders.t5 import T5Encoder, t5_from_hf_config
from paella_jax.files.hf_folder import CONFIG, errors_name, read_config, read_weights
from paella_jax.files.tensors import ConversionError, Entry, export_tensors, import_tensors

EMBEDDING, EMBEDDING_ALIAS = "shared.weight", "encoder.embed_tokens.weight"
# The other half of an encoder-decoder checkpoint.
DECODER = ("decoder.", "lm_head.")


def t5_entries(num_layers: int, gated: bool) -> list[Entry]:
    """The tensor table of an encoder: Hugging Face names to our paths."""
    first = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    entries = [Entry(EMBEDDING, ("embedding",)), Entry(first, ("relative_bias",))]
    for i in range(num_layers):
        block, ours = f"encoder.block.{i}.layer", f"block_{i}"
        for theirs, name in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
            path = (ours, "attention", name, "kernel")
            entries.append(Entry(f"{block}.0.SelfAttention.{theirs}.weight", path, "linear"))
        entries.append(Entry(f"{block}.0.layer_norm.weight", (ours, "attention_norm", "scale")))
        inputs = (("wi_0", "wi_0"), ("wi_1", "wi_1")) if gated else (("wi", "wi_0"),)
        for theirs, name in (*inputs, ("wo", "wo")):
            path = (ours, "mlp", name, "kernel")
            entries.append(Entry(f"{block}.1.DenseReluDense.{theirs}.weight", path, "linear"))
        entries.append(Entry(f"{block}.1.layer_norm.weight", (ours, "mlp_norm", "scale")))
    entries.append(Entry("encoder.final_layer_norm.weight", ("final_norm", "scale")))
    return entries


def import_t5(tensors: Mapping[str, np.ndarray], module: T5Encoder) -> dict[str, Any]:
    """Hugging Face tensors -> `module`'s parameters, values and dtypes unchanged.

    Decoder tensors are dropped; the embedding may have either of its two names, or both.

    Raises:
      ConversionError: listing every missing, unknown and misshapen tensor.
    """
    kept = {name: array for name, array in tensors.items() if not name.startswith(DECODER)}
    if EMBEDDING_ALIAS in kept:
        alias = kept.pop(EMBEDDING_ALIAS)
        if not np.array_equal(kept.setdefault(EMBEDDING, alias), alias):
            raise ConversionError(
                f"{EMBEDDING} and {EMBEDDING_ALIAS} differ, but T5 has one embedding; "
                "remove the one that is not the encoder's"
            )
    expected = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    return import_tensors(t5_entries(module.num_layers, module.gated), kept, expected["params"])


def export_t5(params: Mapping[str, Any], module: T5Encoder) -> dict[str, np.ndarray]:
    """`module`'s parameters -> Hugging Face tensors (T5EncoderModel), values unchanged."""
    return export_tensors(t5_entries(module.num_layers, module.gated), params)


def load_t5_folder(path: str | Path) -> tuple[T5Encoder, dict[str, Any]]:
    """Reads a Hugging Face folder: `config.json` and weights, safetensors or .bin,
    single or sharded.

    Returns:
      The module and its parameters (numpy, in the file's dtype, so bfloat16 files stay small).

    Raises:
      FileNotFoundError: the folder, its config or its weights are not there.
      ConversionError: a file cannot be read, or its tensors do not fit the config.
      ValueError: the config describes a model this encoder is not.
    """
    folder = Path(path)
    config = read_config(folder)
    with errors_name(folder / CONFIG):
        module = t5_from_hf_config(config)
    tensors = read_weights(folder, lambda name: not name.startswith(DECODER), "T5EncoderModel")
    with errors_name(folder):
        return module, import_t5(tensors, module)
