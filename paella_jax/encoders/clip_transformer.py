"""The base of both CLIP towers: their transformer, and what a tower returns.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
section 2.4. Pre-norm blocks with affine layer norms and biases everywhere; the initial values are
those of the released training code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from paella_jax.models.layers import Dense, gelu
from paella_jax.models.repeated import loop_over_layers
from paella_jax.ops.attention import self_attend_heads_first
from paella_jax.typing import Array

# OpenAI's weights need the quick form, OpenCLIP's (ViT-H, bigG) the exact one.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


class ClipOutput(NamedTuple):
    """What a tower computes. States are in the tower's `dtype`, the two vectors float32.

    Attributes:
      last_hidden_state: [batch, length, width]; of the text tower after its final norm, of the
        vision tower before its last norm.
      penultimate_hidden_state: [batch, length, width], the last block's input, without final norm.
      pooled: [batch, width], the normed state of the end token (text) or class token (vision).
      embedding: [batch, projection], `pooled` in the space that text and images share, not of unit
        length; None where the tower has no projection.
      hidden_states: on request: the first block's input and every block's output, no final norm.
    """

    last_hidden_state: Array
    penultimate_hidden_state: Array
    pooled: Array
    embedding: Array | None
    hidden_states: tuple[Array, ...] | None


def norm(epsilon: float, name: str) -> nn.LayerNorm:
    """Affine layer norm, float32, with the exact two-pass variance."""
    return nn.LayerNorm(epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)


class Attention(nn.Module):
    """Self-attention; `bias` is an additive float32 mask [batch or 1, 1, query, key] or None."""

    num_heads: int
    out_std: float
    kernel: str = "xla"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, bias: Array | None) -> Array:
        batch, length, width = x.shape
        head_dim = width // self.num_heads

        def dense(name: str, std: float) -> Dense:
            init = nn.initializers.normal(std)
            return Dense(width, kernel_init=init, dtype=self.dtype, name=name)

        def project(name: str) -> Array:
            y = dense(name, width**-0.5)(x)
            return y.reshape(batch, length, self.num_heads, head_dim).swapaxes(1, 2)

        query, key, value = project("query") * head_dim**-0.5, project("key"), project("value")
        y = self_attend_heads_first(query, key, value, bias, implementation=self.kernel)
        return dense("out", self.out_std)(y.swapaxes(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Pre-norm attention and feed-forward; the residual stream stays float32."""

    num_heads: int
    hidden_dim: int
    activation: str
    out_std: float
    norm_epsilon: float
    kernel: str = "xla"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, bias: Array | None) -> Array:
        width = x.shape[-1]
        normed = lambda name, x: norm(self.norm_epsilon, name)(x)
        sizes = (self.num_heads, self.out_std, self.kernel)
        attention = Attention(*sizes, dtype=self.dtype, name="attention")
        x = x + attention(normed("attention_norm", x), bias).astype(jnp.float32)

        init = nn.initializers.normal
        expand = Dense(
            self.hidden_dim, kernel_init=init((2 * width) ** -0.5), dtype=self.dtype, name="mlp_in"
        )
        contract = Dense(width, kernel_init=init(self.out_std), dtype=self.dtype, name="mlp_out")
        hidden = ACTIVATIONS[self.activation](expand(normed("mlp_norm", x)))
        return x + contract(hidden).astype(jnp.float32)


class Transformer(nn.Module):
    """A stack of blocks: float32 [batch, length, width] -> its input and every block's output."""

    num_layers: int
    num_heads: int
    hidden_dim: int
    activation: str
    norm_epsilon: float
    dtype: Any = jnp.float32
    loop: bool = False  # all blocks but the last as one loop, of whose states the last is given
    kernel: str = "xla"

    @nn.compact
    def __call__(self, x: Array, bias: Array | None = None) -> list[Array]:
        width = x.shape[-1]
        if width % self.num_heads:
            raise ValueError(f"width {width} is not divisible by num_heads {self.num_heads}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}, not in {sorted(ACTIVATIONS)}")
        options = {
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "activation": self.activation,
            "out_std": (2 * width * self.num_layers) ** -0.5,
            "norm_epsilon": self.norm_epsilon,
            "kernel": self.kernel,
            "dtype": self.dtype,
        }
        states, first = [x], 0
        if self.loop and not self.is_initializing() and self.num_layers > 2:
            first = self.num_layers - 1  # some read the state before the last block
            params = [self.variables["params"][f"block_{i}"] for i in range(first)]
            layer = Block(**options, parent=None)
            states.append(loop_over_layers(layer, params, x, bias, cast=self.dtype))
        for i in range(first, self.num_layers):
            states.append(Block(**options, name=f"block_{i}")(states[-1], bias))
        return states


class ClipTower(nn.Module):
    """Base of both towers: their common sizes, the blocks, and what is returned."""

    width: int
    num_layers: int
    num_heads: int
    hidden_dim: int  # of the feed-forward layers
    projection: int | None = None  # width of the embedding; None has none
    activation: str = "gelu"  # or "quick_gelu"
    norm_epsilon: float = 1e-5
    loop: bool = False  # blocks as one loop, where not all states are asked for
    kernel: str = "xla"  # of attention (ops/attention.py)
    dtype: Any = jnp.float32  # of the matrix products and the states

    def norm(self, name: str) -> nn.LayerNorm:
        """One of the tower's own layer norms."""
        return norm(self.norm_epsilon, name)

    def run(self, x: Array, bias: Array | None, all_hidden: bool) -> list[Array]:
        """The blocks: float32 [batch, length, width] -> their input and every block's output.

        Without `all_hidden` only the last two are sure to be there, in the last places.
        """
        return Transformer(
            self.num_layers,
            self.num_heads,
            self.hidden_dim,
            self.activation,
            self.norm_epsilon,
            dtype=self.dtype,
            loop=self.loop and not all_hidden,
            kernel=self.kernel,
            name="transformer",
        )(x, bias)

    def output(
        self, last: Array, pooled: Array, states: list[Array], all_hidden: bool
    ) -> ClipOutput:
        """The result, with `pooled` [batch, width] projected where there is a projection."""
        embedding = None
        if self.projection is not None:
            embedding = Dense(
                self.projection,
                use_bias=False,
                kernel_init=nn.initializers.normal(self.width**-0.5),
                dtype=self.dtype,
                name="to_embedding",
            )(pooled).astype(jnp.float32)
        return ClipOutput(
            last_hidden_state=last.astype(self.dtype),
            penultimate_hidden_state=states[-2].astype(self.dtype),
            pooled=pooled,
            embedding=embedding,
            hidden_states=tuple(s.astype(self.dtype) for s in states) if all_hidden else None,
        )


def tower_config(config: dict[str, Any], tower: str) -> tuple[dict[str, Any], int | None]:
    """One tower's fields of a Hugging Face `config.json`, and its projection's width.

    Args:
      config: a tower's (model type clip_text_model, clip_vision_model) or both towers' (clip).
      tower: "text" or "vision".

    Returns:
      The tower's fields, and the projection's width where the config says that there is one.

    Raises:
      ValueError: another model type.
    """
    single = f"clip_{tower}_model"
    kind = config.get("model_type", single)
    if kind not in (single, "clip"):
        raise ValueError(f"model_type is {kind!r}; the {tower} tower reads {single} and clip")
    if kind == "clip":
        # Old files have both, and the second wins; the inner projection_dim is not in use.
        parts = [config.get(f"{tower}_config"), config.get(f"{tower}_config_dict")]
        fields = {name: value for part in parts for name, value in (part or {}).items()}
        return fields, config.get("projection_dim", 512)
    names = config.get("architectures") or []
    projects = any(name.endswith("WithProjection") for name in names)
    return config, config.get("projection_dim", 512) if projects else None


def tower_fields(
    fields: dict[str, Any], width: int, num_heads: int, hidden_dim: int
) -> dict[str, Any]:
    """The fields of `ClipTower` but the projection, from those of a Hugging Face config.

    Args:
      fields: as `tower_config` gives them.
      width: the value of an absent `hidden_size`.
      num_heads: the value of absent `num_attention_heads`.
      hidden_dim: the value of an absent `intermediate_size`.

    Raises:
      ValueError: an activation that we do not have.
    """
    activation = fields.get("hidden_act", "quick_gelu")
    if activation not in ACTIVATIONS:
        raise ValueError(f"hidden_act is {activation!r}, not in {sorted(ACTIVATIONS)}")
    return {
        "width": fields.get("hidden_size", width),
        "num_layers": fields.get("num_hidden_layers", 12),
        "num_heads": fields.get("num_attention_heads", num_heads),
        "hidden_dim": fields.get("intermediate_size", hidden_dim),
        "activation": activation,
        "norm_epsilon": fields.get("layer_norm_eps", 1e-5),
    }
