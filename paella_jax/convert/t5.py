"""T5 and ByT5 encoder weights: Hugging Face names and folders <-> our parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from paella_jax.convert.tensors import ConversionError, Entry, export_tensors, import_tensors
from paella_jax.encoders.t5 import T5Encoder, t5_from_hf_config

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
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
    """Reads a Hugging Face folder: `config.json` and safetensors weights, single or sharded.

    Returns:
      The module and its parameters (numpy, in the file's dtype, so bfloat16 files stay small).

    Raises:
      FileNotFoundError: the folder, its config or its weights are not there.
      ConversionError: a file cannot be read, or its tensors do not fit the config.
      ValueError: the config describes a model this encoder is not.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the one with {CONFIG} in it")
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}; download the whole model folder")
    try:
        module = t5_from_hf_config(_read_json(folder / CONFIG))
    except ConversionError:
        raise
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    tensors: dict[str, np.ndarray] = {}
    for file in _weight_files(folder):
        tensors.update(_read_encoder(file))
    try:
        return module, import_t5(tensors, module)
    except ConversionError as error:
        raise ConversionError(f"{folder}: {error}") from error


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}. If the model was published only as "
            "pytorch_model.bin, convert it where torch is installed: "
            "T5EncoderModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    shards = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ConversionError(f"{folder / INDEX} has no weight_map; download it again")
    # A shard with nothing but decoder tensors is not needed, nor opened.
    names = {file for name, file in shards.items() if not name.startswith(DECODER)}
    absent = sorted(name for name in names if not (folder / name).is_file())
    if absent:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(absent)}, named in {INDEX}; download it"
        )
    return [folder / name for name in sorted(names)]


def _read_encoder(file: Path) -> dict[str, np.ndarray]:
    """The encoder's tensors of one safetensors file; the decoder's are never read."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            names = [name for name in tensors.keys() if not name.startswith(DECODER)]  # noqa: SIM118
            return {name: tensors.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ConversionError(
            f"cannot read {file} ({file.stat().st_size} bytes): {error}. It is cut short or not a "
            "safetensors file; download or copy it again"
        ) from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConversionError(f"cannot read {file}: {error}; download it again") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{file} holds no JSON object; download it again")
    return content
