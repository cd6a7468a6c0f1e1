"""The network whose features FID and the Inception Score are measured on.

Szegedy et al. 2016, "Rethinking the Inception Architecture", as Heusel et al. 2017 use it: the
weights of 2015 with 1008 classes, pools that do not count the padding, and a maximum in the last
block's pool. The published PyTorch port has the same tensor names as the table below.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from PIL import Image

from paella_jax.files.tensors import Entry, Names, batch_norm, linear
from paella_jax.models.conv_norm import FrozenConvNorm
from paella_jax.typing import Array

SIDE = 299  # pixels that the network sees
WIDTH = 2048
CLASSES = 1008
AVERAGE, MAXIMUM, HALVE = "average", "maximum", "halve"  # pools; the last of stride 2


class Layer(NamedTuple):
    """One convolution with its norm: its published name, channels, kernel, stride, padding."""

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


Fork = tuple[Layer, ...]  # layers side by side on one input
Step = Layer | Fork | str
Chain = tuple[Step, ...]
SQUARE, ROW, COLUMN = (3, 3), (1, 7), (7, 1)

STEM: Chain = (
    Layer("Conv2d_1a_3x3", 32, SQUARE, 2, "VALID"),
    Layer("Conv2d_2a_3x3", 32, SQUARE, 1, "VALID"),
    Layer("Conv2d_2b_3x3", 64, SQUARE),
    HALVE,
    Layer("Conv2d_3b_1x1", 80),
    Layer("Conv2d_4a_3x3", 192, SQUARE, 1, "VALID"),
    HALVE,
)


def _at_35(pooled: int) -> tuple[Chain, ...]:
    return (
        (Layer("branch1x1", 64),),
        (Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5))),
        (
            Layer("branch3x3dbl_1", 64),
            Layer("branch3x3dbl_2", 96, SQUARE),
            Layer("branch3x3dbl_3", 96, SQUARE),
        ),
        (AVERAGE, Layer("branch_pool", pooled)),
    )


def _at_17(inner: int) -> tuple[Chain, ...]:
    return (
        (Layer("branch1x1", 192),),
        (
            Layer("branch7x7_1", inner),
            Layer("branch7x7_2", inner, ROW),
            Layer("branch7x7_3", 192, COLUMN),
        ),
        (
            Layer("branch7x7dbl_1", inner),
            Layer("branch7x7dbl_2", inner, COLUMN),
            Layer("branch7x7dbl_3", inner, ROW),
            Layer("branch7x7dbl_4", inner, COLUMN),
            Layer("branch7x7dbl_5", 192, ROW),
        ),
        (AVERAGE, Layer("branch_pool", 192)),
    )


def _at_8(pool: str) -> tuple[Chain, ...]:
    split = lambda name, ends: tuple(
        Layer(f"{name}{end}", 384, kernel)
        for end, kernel in zip(ends, ((1, 3), (3, 1)), strict=True)
    )
    return (
        (Layer("branch1x1", 320),),
        (Layer("branch3x3_1", 384), split("branch3x3_2", "ab")),
        (
            Layer("branch3x3dbl_1", 448),
            Layer("branch3x3dbl_2", 384, SQUARE),
            split("branch3x3dbl_3", "ab"),
        ),
        (pool, Layer("branch_pool", 192)),
    )


MIXED: dict[str, tuple[Chain, ...]] = {
    "Mixed_5b": _at_35(32),
    "Mixed_5c": _at_35(64),
    "Mixed_5d": _at_35(64),
    "Mixed_6a": (
        (Layer("branch3x3", 384, SQUARE, 2, "VALID"),),
        (
            Layer("branch3x3dbl_1", 64),
            Layer("branch3x3dbl_2", 96, SQUARE),
            Layer("branch3x3dbl_3", 96, SQUARE, 2, "VALID"),
        ),
        (HALVE,),
    ),
    "Mixed_6b": _at_17(128),
    "Mixed_6c": _at_17(160),
    "Mixed_6d": _at_17(160),
    "Mixed_6e": _at_17(192),
    "Mixed_7a": (
        (Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, SQUARE, 2, "VALID")),
        (
            Layer("branch7x7x3_1", 192),
            Layer("branch7x7x3_2", 192, ROW),
            Layer("branch7x7x3_3", 192, COLUMN),
            Layer("branch7x7x3_4", 192, SQUARE, 2, "VALID"),
        ),
        (HALVE,),
    ),
    "Mixed_7b": _at_8(AVERAGE),
    "Mixed_7c": _at_8(MAXIMUM),
}


def _pool(x: Array, kind: str) -> Array:
    if kind == AVERAGE:
        return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)
    if kind == MAXIMUM:
        return nn.max_pool(x, (3, 3), (1, 1), "SAME")
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


def _conv(layer: Layer) -> FrozenConvNorm:
    name, features, kernel, stride, padding = layer
    return FrozenConvNorm(features, kernel, stride, padding, name=name)


def _follow(x: Array, chain: Chain) -> Array:
    """Runs the steps one after the other; call it inside of a module."""
    for step in chain:
        if isinstance(step, str):
            x = _pool(x, step)
        elif isinstance(step, Layer):
            x = _conv(step)(x)
        else:
            x = jnp.concatenate([_conv(layer)(x) for layer in step], axis=-1)
    return x


class Mixed(nn.Module):
    """Chains of layers side by side, their channels joined."""

    chains: tuple[Chain, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return jnp.concatenate([_follow(x, chain) for chain in self.chains], axis=-1)


class Inception(nn.Module):
    """Images to FID's features and the logits that the Inception Score is made of."""

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        """Runs the network.

        Args:
          images: float [batch, 299, 299, 3] in [-1, 1] (`resize`, then x / 127.5 - 1).

        Returns:
          Features float32 [batch, 2048], the mean of the last block over the pixels; and logits
          [batch, 1008] without their bias, which is how the published score has them.
        """
        x = _follow(images, STEM)
        for name, chains in MIXED.items():
            x = Mixed(chains, name=name)(x)
        features = x.mean((1, 2))
        kernel = self.param("fc_kernel", nn.initializers.zeros, (WIDTH, CLASSES))
        self.param("fc_bias", nn.initializers.zeros, (CLASSES,))
        return features, features @ kernel


def _layers(chain: Chain) -> Iterator[Layer]:
    for step in chain:
        if isinstance(step, Layer):
            yield step
        elif not isinstance(step, str):
            yield from step


def _entries(module: Inception) -> list[Entry]:
    """Published names -> our variables."""
    named: list[tuple[tuple[str, ...], str]] = [
        ((layer.name,), layer.name) for layer in _layers(STEM)
    ]
    for block, chains in MIXED.items():
        named += [
            ((block, layer.name), f"{block}.{layer.name}")
            for chain in chains
            for layer in _layers(chain)
        ]
    entries = linear("fc", "params", layout="linear", leaf="fc_kernel")
    for path, name in named:
        entries.append(Entry(f"{name}.conv.weight", ("params", *path, "kernel"), "conv"))
        entries += batch_norm(f"{name}.bn", *path)
    return entries


# An ImageNet classifier's file may hold the auxiliary head, which FID's lacks: it is unknown then.
NAMES = Names(_entries, lambda module: (jnp.zeros((1, SIDE, SIDE, 3)),), whole=True)


def resize(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [side, side, 3] in [0, 255], as the clean-fid package resizes.

    Each channel as a float image, bicubic and antialiased, values beyond the range cut off.
    """
    shrink = lambda channel: np.asarray(
        Image.fromarray(channel.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    )
    channels = [shrink(image[..., c]) for c in range(3)]
    return np.clip(np.stack(channels, axis=-1), 0.0, 255.0)


def resize_legacy(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """As `resize`, by plain bilinear interpolation, which older published numbers have.

    It does not look at all pixels of a large image: such numbers depend on how it was made small.
    """
    rows, columns = (_bilinear(size, side) for size in image.shape[:2])
    resized = np.einsum("yh,hwc,xw->yxc", rows, image.astype(np.float64), columns, optimize=True)
    return resized.astype(np.float32)


def _bilinear(size_in: int, size_out: int) -> np.ndarray:
    """One axis by the half-pixel rule without antialiasing, float64 [size_out, size_in]."""
    centre = np.clip((np.arange(size_out) + 0.5) * size_in / size_out - 0.5, 0, size_in - 1)
    distance = np.abs(np.arange(size_in)[None, :] - centre[:, None])
    return np.maximum(1.0 - distance, 0.0)
