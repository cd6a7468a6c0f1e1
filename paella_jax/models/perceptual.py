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

from paella_jax.files.safetensors_file import map_safetensors
from paella_jax.files.tensors import ConversionError
from paella_jax.typing import Array

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
        tensors = map_safetensors(file)
    except ConversionError as error:
        raise ValueError(f"{file} is not a readable safetensors file ({error})") from error
    numbers = sorted(
        int(m[1]) for n in tensors if (m := re.fullmatch(r"features\.(\d+)\.weight", n))
    )
    if not numbers:
        raise ValueError(f"{file} has no tensors features.N.weight; export a torchvision VGG")
    problems = _misfits(tensors, numbers)
    if problems:
        raise ValueError(f"{file} is not a plain VGG feature network:\n  " + "\n  ".join(problems))
    stages: list[list[dict[str, np.ndarray]]] = [[]]
    for index, number in enumerate(numbers):
        if index > 0 and number - numbers[index - 1] == 3:
            stages.append([])
        kernel = tensors[f"features.{number}.weight"].astype(np.float32).transpose(2, 3, 1, 0)
        bias = tensors[f"features.{number}.bias"].astype(np.float32)
        stages[-1].append({"kernel": kernel, "bias": bias})
    try:
        return {"stages": stages, "heads": _heads(tensors, stages)}
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _misfits(tensors: dict[str, np.ndarray], numbers: list[int]) -> list[str]:
    """Everything about the convolutions `numbers` that is not a chain of 3x3 convolutions."""
    problems, channels = [], 3
    for index, number in enumerate(numbers):
        name = f"features.{number}"
        weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
        if weight.ndim != 4 or weight.shape[1:] != (channels, 3, 3):
            wanted = f"[channels, {channels}, 3, 3]"
            problems.append(f"{name}.weight has shape {weight.shape}, expected {wanted}")
        if bias is None:
            problems.append(f"{name}.bias is missing")
        elif bias.shape != weight.shape[:1]:
            problems.append(f"{name}.bias has shape {bias.shape}, expected {weight.shape[:1]}")
        gap = number - numbers[index - 1] if index else 2 + number
        if gap not in (2, 3) or (index == 0 and number > 0):
            problems.append(f"{name} does not follow the layer before it by 2, or 3 with a pool")
        channels = weight.shape[0]
    return problems


def _heads(
    tensors: dict[str, np.ndarray], stages: list[list[dict[str, np.ndarray]]]
) -> list[np.ndarray]:
    """Channel weights of every stage: all from the file, or 1 / channels for all."""
    widths = [stage[-1]["bias"].shape[0] for stage in stages]
    names = [n for n in tensors if re.fullmatch(r"lin\d+\.(model\.1\.)?weight", n)]
    if not names:
        return [np.full((width,), 1.0 / width, np.float32) for width in widths]
    found = {int(name[3 : name.index(".")]): tensors[name] for name in names}
    shapes = {index: head.shape for index, head in sorted(found.items())}
    wanted = {index: (1, width, 1, 1) for index, width in enumerate(widths)}
    if shapes != wanted:
        raise ValueError(f"heads lin0, lin1, ... have shapes {shapes}, expected {wanted}")
    return [found[index].reshape(-1).astype(np.float32) for index in wanted]


def perceptual_distance(network: dict[str, Any], a: Array, b: Array) -> Array:
    """Distance of images [batch, H, W, 3] in [0, 1] -> float32 [batch].

    Per stage, before its pooling: features of unit length over the channels, squared difference,
    weighted by the stage's head, averaged over the pixels; then summed over the stages. The network
    is frozen: no gradient flows into it.

    Raises:
      ValueError: the images vanish under the poolings.
    """
    smallest = 2 ** (len(network["stages"]) - 1)
    if min(a.shape[1:3]) < smallest:
        raise ValueError(
            f"image size {a.shape[1]}x{a.shape[2]} is below the {smallest} pixels that "
            f"{len(network['stages'])} feature stages need"
        )
    network = jax.lax.stop_gradient(network)
    mean, std = (jnp.asarray(v).reshape(1, 1, 1, 3) for v in (MEAN, STD))
    x = (jnp.concatenate([a, b]).astype(jnp.float32) - mean) / std
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
