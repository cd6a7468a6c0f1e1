"""EfficientNet-Lite0: an ImageNet classifier small enough to come from a package registry.

Tan and Le 2019, "EfficientNet", in the form without squeeze-and-excitation and with ReLU6. Its
1280 pooled features stand in for Inception's where no weights can be downloaded: distances on
them compare with each other, not with published ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.files.tensors import Entry, Names, batch_norm, linear
from paella_jax.models.conv_norm import FrozenConvNorm
from paella_jax.models.inception import resize as resize_clean
from paella_jax.typing import Array

SIDE = 224  # pixels that the network sees
WIDTH = 1280
CLASSES = 1000
STEM_WIDTH = 32


class Stage(NamedTuple):
    """Blocks of one width; the first of them strides."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Block(NamedTuple):
    """One inverted bottleneck: its place in the published names, and its sizes."""

    name: str
    kernel: int
    stride: int
    expansion: int
    inputs: int
    features: int


def _blocks(stages: tuple[Stage, ...]) -> Iterator[Block]:
    inputs, number = STEM_WIDTH, 0
    for repeats, kernel, stride, expansion, features in stages:
        for repeat in range(repeats):
            own_stride = stride if repeat == 0 else 1
            yield Block(f"block_{number}", kernel, own_stride, expansion, inputs, features)
            inputs, number = features, number + 1


class EfficientNetLite(nn.Module):
    """Images to pooled features and logits. The padding is TensorFlow's, uneven at stride 2.

    Attributes:
      stages: of the published network, unless told otherwise.
    """

    stages: tuple[Stage, ...] = STAGES

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        """Runs the network.

        Args:
          images: float [batch, 224, 224, 3], as `prepare` makes them.

        Returns:
          Features float32 [batch, 1280] and logits [batch, 1000].
        """
        relu6 = jax.nn.relu6
        size = (3, 3)
        x = FrozenConvNorm(STEM_WIDTH, size, stride=2, activation=relu6, name="stem")(images)
        for block in _blocks(self.stages):
            x = _bottleneck(x, block)
        x = FrozenConvNorm(WIDTH, activation=relu6, name="head")(x)
        features = x.mean((1, 2))
        kernel = self.param("fc_kernel", nn.initializers.zeros, (WIDTH, CLASSES))
        bias = self.param("fc_bias", nn.initializers.zeros, (CLASSES,))
        return features, features @ kernel + bias.reshape(1, -1)


def _bottleneck(x: Array, block: Block) -> Array:
    """Expand, filter every channel, project; call it inside of a module."""
    relu6, keep = jax.nn.relu6, lambda y: y
    width, size = block.inputs * block.expansion, (block.kernel, block.kernel)
    y = x
    if block.expansion > 1:
        y = FrozenConvNorm(width, activation=relu6, name=f"{block.name}_expand")(y)
    y = FrozenConvNorm(
        width, size, block.stride, depthwise=True, activation=relu6, name=f"{block.name}_filter"
    )(y)
    y = FrozenConvNorm(block.features, activation=keep, name=f"{block.name}_project")(y)
    return x + y if block.stride == 1 and block.inputs == block.features else y


def _entries(module: EfficientNetLite) -> list[Entry]:
    """Published names -> our variables."""
    named = [("_conv_stem", "_bn0", "stem"), ("_conv_head", "_bn1", "head")]
    for number, block in enumerate(_blocks(module.stages)):
        theirs = f"_blocks.{number}"
        if block.expansion > 1:
            named.append((f"{theirs}._expand_conv", f"{theirs}._bn0", f"{block.name}_expand"))
        named.append((f"{theirs}._depthwise_conv", f"{theirs}._bn1", f"{block.name}_filter"))
        named.append((f"{theirs}._project_conv", f"{theirs}._bn2", f"{block.name}_project"))
    entries = linear("_fc", "params", layout="linear", leaf="fc_kernel")
    for conv, norm, ours in named:
        entries.append(Entry(f"{conv}.weight", ("params", ours, "kernel"), "conv"))
        entries += batch_norm(norm, ours)
    return entries


NAMES = Names(_entries, lambda module: (jnp.zeros((1, SIDE, SIDE, 3)),), whole=True)


def prepare(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [224, 224, 3], the whole image resized as for Inception.

    The values are scaled as in the network's training, (x - 127) / 128. There images were
    cropped to their middle; here nothing is cut off, since all of a drawn image counts.
    """
    return (resize_clean(image, SIDE) - 127.0) / 128.0
