"""A small CLIP model on disk, in the Hugging Face layout: both towers and a real tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file
from small import random_variables

from paella_jax.encoders.clip_text import clip_text_from_hf_config
from paella_jax.encoders.clip_vision import clip_vision_from_hf_config
from paella_jax.encoders.published import TEXT, VISION

WIDTH, PROJECTION = 16, 12
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_letters() -> list[str]:
    """CLIP's printable stand-ins for the 256 bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    letters = {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    return [letters[b] for b in range(256)]


def write_clip_folder(folder: Path, seed: int = 0) -> Path:
    """Random weights of two small towers with a shared projection width."""
    letters = byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": WIDTH,
             "intermediate_size": 32, "projection_dim": PROJECTION}  # fmt: skip
    text = tower | {"vocab_size": len(words), "max_position_embeddings": 77,
                    "eos_token_id": len(words) - 1}  # fmt: skip
    vision = tower | {"image_size": 32, "patch_size": 16}
    config = {"model_type": "clip", "projection_dim": PROJECTION, "text_config": text,
              "vision_config": vision}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    text_tower, vision_tower = clip_text_from_hf_config(config), clip_vision_from_hf_config(config)
    text_params = random_variables(text_tower, jnp.zeros((1, 4), jnp.int32), seed=seed)["params"]
    vision_params = random_variables(vision_tower, jnp.zeros((1, 32, 32, 3)), seed=seed + 1)[
        "params"
    ]
    tensors = TEXT.save(text_params, text_tower)
    tensors |= VISION.save(vision_params, vision_tower)
    tensors["logit_scale"] = np.float32(4.6)[None]
    save_file(tensors, folder / "model.safetensors")
    return folder
