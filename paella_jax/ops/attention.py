"""Multi-head attention over already projected heads, with key padding mask and dropout.

The kernels that a config's `attention` chooses from: "xla" is made of plain products and holds
all scores; "cudnn" is NVIDIA's fused one and "flash" the fused one of JAX for TPUs, which hold
none; "auto" takes cuDNN's where it can, and on CPU the products in the order that is fast there
(docs/speed.md).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from paella_jax.ops.batch_axis import BATCH, batch_shards
from paella_jax.ops.target import target_platform
from paella_jax.typing import Array

KERNELS = ("auto", "xla", "cudnn", "flash")
MACHINES = {"cudnn": ("gpu", "an NVIDIA GPU"), "flash": ("tpu", "a TPU")}
LARGEST_HEAD = 128  # channels, of cuDNN's kernel
FLASH_BLOCK = 128  # positions; the TPU's kernel takes whole blocks


def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    key_mask: Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    implementation: str | None = None,
) -> Array:
    """softmax(q k^T / sqrt(head_dim)) v with the softmax in float32.

    Args:
      query: [batch, queries, heads, head_dim].
      key: [batch, keys, heads, head_dim].
      value: [batch, keys, heads, head_dim].
      key_mask: [batch, keys] bool, False keys are invisible. At least one key must be visible.
      dropout_rate: fraction of the probabilities set to zero; needs `dropout_key` when > 0.
      dropout_key: PRNG key of the dropout.
      implementation: one of `KERNELS`; None is "auto".

    Returns:
      [batch, queries, heads, head_dim] in the dtype of `query`.

    Raises:
      ValueError: a kernel that this machine, or these shapes and types, do not have.
    """
    kernel = implementation or "auto"
    refusal = check_kernel(kernel) or (_unfit(query) if kernel == "cudnn" else "")
    if refusal:
        raise ValueError(refusal)
    explicit = partial(_attend, dropout_rate=dropout_rate, dropout_key=dropout_key)
    if dropout_rate > 0.0:
        if kernel in MACHINES:
            raise ValueError(
                f"attention {kernel!r} drops no probabilities: set attention_dropout=output (a "
                "deviation from the published networks) or no dropout, or take auto or xla"
            )
        return explicit(query, key, value, key_mask)
    fused: dict[str, Any] = {}
    if kernel == "cudnn" or (kernel == "auto" and _on_gpu() and not _unfit(query)):
        fused["cuda"] = _by_cudnn
    if kernel == "flash":
        fused["tpu"] = _by_flash
    if not fused:
        return explicit(query, key, value, key_mask)
    return lax.platform_dependent(query, key, value, key_mask, default=explicit, **fused)


def check_kernel(name: str) -> str:
    """Why a kernel cannot be used here, with those that can; empty where it can."""
    if name not in KERNELS:
        return f"attention {name!r} must be one of {', '.join(KERNELS)}"
    platform, machine = MACHINES.get(name, ("", ""))
    here = jax.default_backend() if name == "cudnn" else target_platform()
    if platform not in ("", here):
        return f"attention {name!r} needs {machine}, this is {here}: auto or xla"
    return ""


def _on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def _unfit(query: Array) -> str:
    """Why cuDNN's kernel does not take a query, also in training; empty where it does."""
    if query.shape[1] % 2:
        return (
            f"attention 'cudnn' needs an even number of queries, got {query.shape[1]}: auto or xla"
        )
    return _unfit_head(query)


def _unfit_head(query: Array) -> str:
    """The same of its type and its last axis."""
    head_dim = query.shape[-1]
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return f"attention 'cudnn' computes in bfloat16 or float16, not {query.dtype}: auto or xla"
    if head_dim % 8 or head_dim > LARGEST_HEAD:
        return (
            f"attention 'cudnn' needs heads of up to {LARGEST_HEAD} channels, a multiple of 8, got "
            f"{head_dim}: auto or xla"
        )
    return ""


def attend_heads_first(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Array:
    """softmax(q k^T + bias) v on [batch, heads, length, head_dim]; no scaling.

    With the heads in front XLA:CPU runs plain matrix products, up to three times faster than the
    same einsum on [batch, length, heads, head_dim].
    """
    scores = _scores(query, key) if query.dtype != jnp.float32 else _product(query, key)
    if bias is not None:
        scores = scores + bias
    probabilities = jax.nn.softmax(scores, axis=-1)
    if dropout_rate > 0.0:
        assert dropout_key is not None, "dropout needs a key"
        keep = jax.random.bernoulli(dropout_key, 1.0 - dropout_rate, probabilities.shape)
        probabilities = jnp.where(keep, probabilities / (1.0 - dropout_rate), 0.0)
    return jnp.matmul(probabilities.astype(value.dtype), value)


def _product(query: Array, key: Array) -> Array:
    """query key^T, float32 [..., queries, keys]."""
    return jnp.matmul(query, jnp.swapaxes(key, -1, -2), preferred_element_type=jnp.float32)


@jax.custom_vjp
def _scores(query: Array, key: Array) -> Array:
    """The same, of which the way back multiplies in the queries' type, as fused kernels do."""
    return _product(query, key)


def _scores_forward(query: Array, key: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(query, key), (query, key)


def _scores_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    query, key = saved
    grad = grad.astype(query.dtype)
    return jnp.matmul(grad, key), jnp.matmul(jnp.swapaxes(grad, -1, -2), query)


_scores.defvjp(_scores_forward, _scores_backward)


def self_attend_heads_first(
    query: Array, key: Array, value: Array, bias: Array | None, *, implementation: str = "xla"
) -> Array:
    """`attend_heads_first` of as many keys as queries, by a kernel.

    Args:
      query: [batch, heads, length, head_dim]; keys and values alike.
      key: see there.
      value: see there.
      bias: float32 [batch or 1, heads or 1, length, length] or None. cuDNN reads it in the type of
        the queries.
      implementation: "xla", "cudnn", or "auto": cuDNN's where it can.

    Raises:
      ValueError: a kernel that this machine, or these shapes and types, do not have.
    """
    kernel = implementation
    refusal = check_kernel(kernel) or (_unfit_head(query) if kernel == "cudnn" else "")
    if kernel == "flash":
        refusal = "attention 'flash' is none of frozen encoders': auto, xla or cudnn"
    if refusal:
        raise ValueError(refusal)
    if kernel == "cudnn" or (kernel == "auto" and _on_gpu() and not _unfit_head(query)):
        swapped = _swap_heads(query), _swap_heads(key), _swap_heads(value)
        return _swap_heads(_by_cudnn_with_bias(*swapped, bias))
    return attend_heads_first(query, key, value, bias)


def _by_cudnn_with_bias(query: Array, key: Array, value: Array, bias: Array | None) -> Array:
    """Lengths are filled up to a multiple of 8: an encoder's are odd (77, 257)."""
    batch, length = query.shape[:2]
    more = -length % 8
    whole = lambda x: jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0)))
    query, key, value = whole(query), whole(key), whole(value)
    options: dict[str, Any] = {}
    if bias is not None:
        sides = ((0, 0), (0, 0), (0, more), (0, more))
        options["bias"] = jnp.pad(bias, sides).astype(query.dtype)
    if more:
        options["key_value_seq_lengths"] = jnp.full((batch,), length, jnp.int32)
    attend = partial(jax.nn.dot_product_attention, scale=1.0, implementation="cudnn")
    out = attend(query, key, value, **options)
    return out[:, :length]


def _attend(
    query: Array,
    key: Array,
    value: Array,
    key_mask: Array | None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Array:
    query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    bias = None
    if key_mask is not None:
        bias = jnp.where(key_mask[:, None, None, :], 0.0, jnp.finfo(jnp.float32).min)
    query, key, value = _swap_heads(query), _swap_heads(key), _swap_heads(value)
    return _swap_heads(attend_heads_first(query, key, value, bias, dropout_rate, dropout_key))


def _swap_heads(x: Array) -> Array:
    """[batch, length, heads, head_dim] -> [batch, heads, length, head_dim], or back."""
    return jnp.swapaxes(x, 1, 2)


def _by_cudnn(query: Array, key: Array, value: Array, key_mask: Array | None) -> Array:
    """Keys are filled up to a multiple of 8: cuDNN takes odd numbers in inference only."""
    batch, length = key.shape[:2]
    attend = partial(jax.nn.dot_product_attention, implementation="cudnn")
    more = ((0, 0), (0, -length % 8), (0, 0), (0, 0))
    key, value = jnp.pad(key, more), jnp.pad(value, more)
    if key_mask is None:
        real = jnp.full((batch,), length, jnp.int32) if key.shape[1] > length else None
        return attend(query, key, value, key_value_seq_lengths=real)
    visible = jnp.pad(key_mask, more[:2])[:, None, None, :]
    shape = (batch, 1, query.shape[1], key.shape[1])
    return attend(query, key, value, mask=jnp.broadcast_to(visible, shape))


def _by_flash(query: Array, key: Array, value: Array, key_mask: Array | None) -> Array:
    """The compiler cannot cut the kernel: on a mesh each device is given its part of the batch."""
    visible = jnp.ones(key.shape[:2], bool) if key_mask is None else key_mask
    shards = batch_shards()
    if shards == 1 and jax.sharding.get_abstract_mesh().empty:
        return _flash(query, key, value, visible)
    if query.shape[0] % shards:
        return _attend(query, key, value, key_mask)  # previews and initialisation
    cut = jax.shard_map(_flash, in_specs=(BATCH,) * 4, out_specs=BATCH, check_vma=False)
    return cut(query, key, value, visible)


def _flash(query: Array, key: Array, value: Array, visible: Array) -> Array:
    """Queries and keys are filled up to whole blocks; the filling is a segment of its own."""
    from jax.experimental.pallas.ops.tpu.flash_attention import SegmentIds, flash_attention

    def whole(x: Array) -> Array:
        more = -x.shape[1] % FLASH_BLOCK
        return jnp.pad(x, ((0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)))

    queries = jnp.ones(query.shape[:2], jnp.int32)
    segments = SegmentIds(q=whole(queries), kv=whole(visible.astype(jnp.int32)))
    heads_first = [jnp.swapaxes(whole(x), 1, 2) for x in (query, key, value)]
    scale = query.shape[-1] ** -0.5
    out = flash_attention(*heads_first, segment_ids=segments, sm_scale=scale)
    return jnp.swapaxes(out, 1, 2)[:, : query.shape[1]]
