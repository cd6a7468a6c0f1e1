"""The semantic compressor: an EfficientNetV2 and a small mapper (docs/models/wuerstchen.md 3).

It turns an image into a map 32 times smaller a side, the latents of Stage C. The layers are
torchvision's: convolutions without bias, each followed by BatchNorm. Their padding is
(k - 1) / 2 on every side also at stride 2, which is not what "SAME" does.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from paella_jax.models.layers import Dense, Dtype
from paella_jax.models.vqgan import LatentBatchNorm
from paella_jax.ops.depthwise import depthwise_conv
from paella_jax.ops.linear import dense, strided_conv
from paella_jax.typing import Array

# torchvision's initial values: Kaiming normal over the outputs, and for the mapper torch's default.
kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Stage(NamedTuple):
    """One row of the backbone's table; only the first block strides and changes the width."""

    kind: str  # "fused" or "mb"
    expansion: int
    kernel: int
    stride: int
    inputs: int
    outputs: int
    repeats: int


Stages = tuple[Stage, ...]

VARIANTS: dict[str, Stages] = {
    "s": (
        Stage("fused", 1, 3, 1, 24, 24, 2),
        Stage("fused", 4, 3, 2, 24, 48, 4),
        Stage("fused", 4, 3, 2, 48, 64, 4),
        Stage("mb", 4, 3, 2, 64, 128, 6),
        Stage("mb", 6, 3, 1, 128, 160, 9),
        Stage("mb", 6, 3, 2, 160, 256, 15),
    ),
    "l": (
        Stage("fused", 1, 3, 1, 32, 32, 4),
        Stage("fused", 4, 3, 2, 32, 64, 7),
        Stage("fused", 4, 3, 2, 64, 96, 7),
        Stage("mb", 4, 3, 2, 96, 192, 10),
        Stage("mb", 6, 3, 1, 192, 224, 19),
        Stage("mb", 6, 3, 2, 224, 384, 25),
        Stage("mb", 6, 3, 1, 384, 640, 7),
    ),
}


def to_stage_c(latents: Array, shift: float = 1.0, scale: float = 42.0) -> Array:
    """Raw latents (what Stage B takes) -> the scale Stage C is trained on."""
    return (latents + shift) / scale


def from_stage_c(latents: Array, shift: float = 1.0, scale: float = 42.0) -> Array:
    """The inverse of `to_stage_c`."""
    return latents * scale - shift


def stages_of(variant: str | Stages) -> Stages:
    """The table of a named variant; a table is returned as `Stage` rows.

    Raises:
      ValueError: no such variant, a row that is no `Stage`, or rows that do not fit together.
    """
    if isinstance(variant, str):
        if variant not in VARIANTS:
            raise ValueError(
                f"compressor variant {variant!r} is not one of {sorted(VARIANTS)}; name one or "
                "give a table of stages"
            )
        return VARIANTS[variant]
    stages = tuple(Stage(*row) for row in variant)
    for number, stage in enumerate(stages):
        if stage.kind not in ("fused", "mb") or stage.stride not in (1, 2) or not stage.kernel % 2:
            raise ValueError(
                f"compressor stage {number} is {tuple(stage)}; its kind must be 'fused' or 'mb', "
                "its stride 1 or 2 and its kernel odd"
            )
        if number and stage.inputs != stages[number - 1].outputs:
            raise ValueError(
                f"compressor stage {number} takes {stage.inputs} channels, the one before gives "
                f"{stages[number - 1].outputs}"
            )
    return stages


def expanded_width(inputs: int, expansion: int) -> int:
    """Channels inside a block: a multiple of 8, as torchvision rounds them."""
    wanted = inputs * expansion
    rounded = max(8, (wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def _conv(x: Array, kernel: Array, stride: int, groups: int = 1) -> Array:
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _depthwise(x: Array, kernel: Array, stride: int) -> Array:
    """On CPU every pixel is computed and the unwanted ones dropped: still much the fastest."""
    if stride == 1:
        return depthwise_conv(x, kernel)
    by_shifts = lambda x, kernel: depthwise_conv(x, kernel, implementation="shifts")
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: by_shifts(x, kernel)[:, ::stride, ::stride],
        default=partial(_conv, stride=stride, groups=x.shape[-1]),
    )


def _conv_of_colours(x: Array, kernel: Array) -> Array:
    """Stride 2 and few inputs, where XLA:CPU's own convolution is twelve times slower."""
    odd = [side % 2 for side in x.shape[1:3]]
    x = jnp.pad(x, ((0, 0), (0, odd[0]), (0, odd[1]), (0, 0)))
    return strided_conv(x, jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0))))


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, and SiLU where `activate`.

    [batch, h, w, C] -> [batch, ceil(h / stride), ceil(w / stride), features].
    """

    features: int
    kernel_size: int | None = None  # None is a matrix: 1 x 1
    stride: int = 1
    depthwise: bool = False
    activate: bool = True
    epsilon: float = 1e-3
    kernel_init: nn.initializers.Initializer = kaiming
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        inputs, size = x.shape[-1], self.kernel_size
        shape: tuple[int, ...] = (1 if self.depthwise else inputs, self.features)
        if size is not None:
            shape = (size, size, *shape)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        x = x.astype(self.dtype)
        if size is None:
            x = dense(x, kernel)
        elif self.depthwise:
            x = _depthwise(x, kernel, self.stride)
        elif inputs == 3 and (size, self.stride) == (3, 2):
            x = _conv_of_colours(x, kernel)
        else:
            x = _conv(x, kernel, self.stride)
        x = LatentBatchNorm(epsilon=self.epsilon, name="norm")(x, train)
        return (nn.silu(x) if self.activate else x).astype(self.dtype)


class SqueezeExcitation(nn.Module):
    """Scales every channel by a gate that sees the mean of the whole map."""

    hidden: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layer = partial(Dense, kernel_init=kaiming, dtype=self.dtype)
        mean = x.astype(jnp.float32).mean((1, 2), keepdims=True).astype(self.dtype)
        hidden = nn.silu(layer(self.hidden, name="reduce")(mean))
        return x * nn.sigmoid(layer(x.shape[-1], name="expand")(hidden))


class CompressorBlock(nn.Module):
    """Fused or mobile inverted bottleneck, with a residual where the shape stays the same.

    `drop_rate` is the stochastic depth of training: with this probability a sample skips the
    block (rng "dropout"), and the others are scaled up to keep the mean.
    """

    kind: str
    expansion: int
    kernel_size: int
    stride: int
    outputs: int
    drop_rate: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        inputs = x.shape[-1]
        layer = partial(ConvNorm, dtype=self.dtype)
        spatial = partial(layer, kernel_size=self.kernel_size, stride=self.stride)
        width = expanded_width(inputs, self.expansion)
        expands = width != inputs
        if self.kind == "fused" and not expands:
            y = spatial(self.outputs, name="conv")(x, train)
        else:
            y = x
            if self.kind == "fused":
                y = spatial(width, name="expand")(y, train)
            else:
                if expands:
                    y = layer(width, name="expand")(y, train)
                y = spatial(width, depthwise=True, name="depthwise")(y, train)
                y = SqueezeExcitation(max(1, inputs // 4), self.dtype, name="squeeze")(y)
            y = layer(self.outputs, activate=False, name="project")(y, train)
        if self.stride != 1 or inputs != self.outputs:
            return y
        if train and self.drop_rate > 0:
            kept = jax.random.bernoulli(
                self.make_rng("dropout"), 1.0 - self.drop_rate, (x.shape[0], 1, 1, 1)
            )
            y = y * kept.astype(y.dtype) / (1.0 - self.drop_rate)
        return x + y


class Compressor(nn.Module):
    """Backbone and mapper. The defaults are the released v2 model; `variant="l"` is v1's.

    Attributes:
      variant: "s", "l", or a table of `Stage` rows.
      out_channels: channels of the latents.
      head_channels: channels between backbone and mapper.
      stochastic_depth: largest drop rate of a residual block; grows linearly from 0 with depth.
      dtype: the backbone's compute dtype; its BatchNorm and the mapper are float32.
    """

    variant: str | Stages = "s"
    out_channels: int = 16
    head_channels: int = 1280
    stochastic_depth: float = 0.2
    dtype: Dtype = jnp.float32

    @property
    def stages(self) -> Stages:
        """The backbone's table."""
        return stages_of(self.variant)

    @property
    def downsampling(self) -> int:
        """Image pixels per latent side: 32 in the released models."""
        strides = 2
        for stage in self.stages:
            strides *= stage.stride
        return strides

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Normalised images -> raw latents, the scale Stage B takes; `to_stage_c` changes it.

        Args:
          images: float [batch, H, W, 3] as encoders/preprocess.py makes them.
          train: use and update batch statistics (collection "batch_stats" must be mutable) and
            drop blocks (rng "dropout"). The statistics are those of the whole batch: under jit a
            batch that is split over devices gives the same ones, nothing else is needed to
            synchronise them.

        Returns:
          float32 [batch, ceil(H / 32), ceil(W / 32), out_channels].
        """
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be [batch, height, width, 3], got {images.shape}")
        stages, layer = self.stages, partial(ConvNorm, dtype=self.dtype)
        x = layer(stages[0].inputs, 3, 2, name="stem")(images, train)
        total, number = sum(stage.repeats for stage in stages), 0
        for index, stage in enumerate(stages, 1):
            for repeat in range(stage.repeats):
                x = CompressorBlock(
                    stage.kind,
                    stage.expansion,
                    stage.kernel,
                    stage.stride if repeat == 0 else 1,
                    stage.outputs,
                    self.stochastic_depth * number / total,
                    self.dtype,
                    name=f"stage_{index}_block_{repeat}",
                )(x, train)
                number += 1
        x = layer(self.head_channels, name="head")(x, train)
        mapper = ConvNorm(
            self.out_channels,
            activate=False,
            epsilon=1e-5,
            kernel_init=uniform_fan_in,
            name="mapper",
        )
        return mapper(x, train)
