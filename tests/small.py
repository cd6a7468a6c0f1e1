"""Small configs and run folders that several tests share."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from paella_jax.config import load_config, to_json
from paella_jax.families.vqgan import make_vqgan
from paella_jax.runs.weights import save_tree

ROOT = Path(__file__).resolve().parent.parent


def config_of(name: str, **overrides):
    """configs/NAME with overrides given as a__b=value."""
    texts = [f"--config.{k.replace('__', '.')}={v}" for k, v in overrides.items()]
    return load_config(str(ROOT / "configs" / name.replace(":", ".py:")), texts)


def small_vqgan(**overrides):
    values = {"model__width": 16, "model__bottleneck_blocks": 1, "model__codebook_size": 32,
              "batch_size": 8, "mesh__data": -1} | overrides  # fmt: skip
    return config_of("vqgan:tiny", **values)


def small_paella(**overrides):
    values = {
        "batch_size": 8,
        "num_steps": 4,
        "model__codebook_size": 32,
        "model__token_width": 16,
        "model__cond_width": 32,
        "model__widths": "(32,)",
        "model__depths": "(1,)",
        "text__width": 32,
        "text__hidden_dim": 32,
        "text__num_layers": 1,
        "checkpoint__every": 2,
        "log__every": 1,
        "optim__warmup_steps": 1,
        "log__preview_images": 2,
        "sampler__guidance_scale": "(3.0,3.0)",
    } | overrides
    return config_of("paella:tiny", **values)


def carry_random_tokenizer(workdir: Path) -> None:
    """An untrained tokenizer in a run folder: enough for everything but good images."""
    config = small_vqgan()
    model = make_vqgan(config)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    codebook = jax.random.normal(jax.random.key(1), variables["params"]["codebook"].shape)
    params = dict(variables["params"]) | {"codebook": codebook}
    save_tree(workdir / "frozen" / "vqgan.safetensors", dict(variables) | {"params": params})
    (workdir / "frozen" / "vqgan.json").write_text(to_json(config))
