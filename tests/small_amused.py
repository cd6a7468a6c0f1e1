"""A small aMUSEd as diffusers saves it: the recorded U-ViT, a small tokenizer and a small CLIP."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import small
import small_clip
from safetensors.numpy import save_file

from paella_jax.convert.vqgan import VQMODEL
from paella_jax.encoders.clip_text import clip_text_from_hf_config
from paella_jax.encoders.published import TEXT
from paella_jax.models.vqmodel import VQModel

GOLDEN = small.ROOT / "tests" / "golden"
UVIT = GOLDEN / "uvit2d" / "down"
WEIGHTS = "diffusion_pytorch_model.safetensors"
TEXT_WIDTH, POOLED, CODES, MASK = 20, 12, 64, 71  # of the recorded U-ViT
TOKENIZER = VQModel(
    widths=(8, 16), blocks_per_level=1, latent_channels=4, code_channels=4, codebook_size=CODES,
    norm_groups=4, encoder_attention=(False,) * 2, decoder_attention=(False,) * 2,
)  # fmt: skip


def random_like(shapes, seed):
    generator = np.random.default_rng(seed)
    draw = lambda x: (0.2 * generator.standard_normal(x.shape)).astype(np.float32)
    return jax.tree.map(draw, shapes)


def write_vqvae(folder, model=TOKENIZER):
    folder.mkdir(parents=True)
    params = random_like(VQMODEL.names.shapes(model), 1)
    save_file(VQMODEL.names.save(params, model), folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(VQMODEL.foreign.write(model)))
    return params


def write_amused(folder: Path, clip: Path) -> Path:
    """The folder, new, with the text tower of a CLIP folder."""
    shutil.copytree(UVIT, folder / "transformer", ignore=shutil.ignore_patterns("*.npz"))
    write_vqvae(folder / "vqvae")

    (folder / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(clip / name, folder / "tokenizer" / name)
    marks = {"bos_token": small_clip.START, "eos_token": small_clip.END, "pad_token": "!"}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **marks}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenizer" / "special_tokens_map.json").write_text(json.dumps(marks))
    config = json.loads((clip / "config.json").read_text())["text_config"]
    config |= {"model_type": "clip_text_model", "hidden_size": TEXT_WIDTH, "projection_dim": POOLED,
               "architectures": ["CLIPTextModelWithProjection"]}  # fmt: skip
    module = clip_text_from_hf_config(config)
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config))
    params = random_like(TEXT.shapes(module), 2)
    save_file(TEXT.save(params, module), folder / "text_encoder" / "model.safetensors")

    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "AmusedScheduler", "_diffusers_version": "0.42.1",
                 "mask_token_id": MASK, "masking_schedule": "cosine"}  # fmt: skip
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {
        "_class_name": "AmusedPipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "AmusedScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "transformer": ["diffusers", "UVit2DModel"],
        "vqvae": ["diffusers", "VQModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
