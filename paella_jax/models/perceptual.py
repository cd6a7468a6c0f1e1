"""Optional perceptual distance from a VGG-type feature network that the user supplies.

The file is a safetensors file with torchvision's names: `features.N.weight` and `.bias` for 3x3
convolutions. Where the gap to the next N shows a pooling layer (N+3 instead of N+2) the image is
halved, and a stage of features ends. LPIPS heads (`linI.model.1.weight` or `linI.weight`,
[1, C, 1, 1]) weight the channels where present; otherwise channels count evenly.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

Array = jax.Array
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_perceptual(path: str | Path) -> dict[str, Any]:
    """Reads a feature file into {"stages": [[{"kernel", "bias"}, ...], ...], "heads": [...]}.

    Raises:
      ValueError: the file is missing, damaged, or holds no such tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"no perceptual feature file {file}; set objective.perceptual_file")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a readable safetensors file ({error})") from error
    numbers = sorted(
        int(m[1]) for n in tensors if (m := re.fullmatch(r"features\.(\d+)\.weight", n))
    )
    if not numbers:
        raise ValueError(f"{file} has no tensors features.N.weight; export a torchvision VGG")
    stages: list[list[dict[str, np.ndarray]]] = [[]]
    for number, following in zip(numbers, [*numbers[1:], None], strict=True):
        kernel = tensors[f"features.{number}.weight"].astype(np.float32).transpose(2, 3, 1, 0)
        bias = tensors[f"features.{number}.bias"].astype(np.float32)
        stages[-1].append({"kernel": kernel, "bias": bias})
        if following is not None and following - number == 3:
            stages.append([])
    heads = []
    for index, stage in enumerate(stages):
        channels = stage[-1]["bias"].shape[0]
        head = tensors.get(f"lin{index}.model.1.weight", tensors.get(f"lin{index}.weight"))
        even = np.full((channels,), 1.0 / channels, np.float32)
        heads.append(even if head is None else head.reshape(-1).astype(np.float32))
    return {"stages": stages, "heads": heads}


def perceptual_distance(network: dict[str, Any], a: Array, b: Array) -> Array:
    """Distance of images [batch, H, W, 3] in [0, 1] -> float32 [batch]."""
    mean, std = (jnp.asarray(v).reshape(1, 1, 1, 3) for v in (MEAN, STD))
    x = (jnp.concatenate([a, b]) - mean) / std
    total = jnp.zeros((a.shape[0],))
    for index, (stage, head) in enumerate(zip(network["stages"], network["heads"], strict=True)):
        if index > 0:
            x = nn.max_pool(x, (2, 2), (2, 2))
        for layer in stage:
            x = jax.lax.conv_general_dilated(
                x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + layer["bias"].reshape(1, 1, 1, -1))
        unit = x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-10)
        first, second = jnp.split(unit, 2)
        difference = jnp.square(first - second) * head.reshape(1, 1, 1, -1)
        total += difference.sum(-1).mean((1, 2))
    return total
