"""The compiled programs behind a token pipeline, conditions in and images out, and their checks.

A pipeline runs `encode` for the conditions and for what guidance leads away from, `advance_request`
for groups of steps, and the tokenizer's decoder: three programs, whatever the settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from paella_jax.families.token_networks import TokenNetworks
from paella_jax.models.conditioning import Conditioning, ConditionInputs, Leaf
from paella_jax.pipelines.batches import Numbered
from paella_jax.sampling import resample
from paella_jax.sampling.guidance import Denoise, Predict, guide, guide_jointly, mix
from paella_jax.sampling.loop import Loop, advance, run
from paella_jax.sampling.resample import ResampleSettings
from paella_jax.sampling.token_loop import Known, Start, Vocabulary
from paella_jax.sampling.token_sampler import TokenSettings, plan_tokens, starts_from_noise
from paella_jax.typing import Array, Tree


@struct.dataclass
class Request:
    """Everything a batch of images is made from; arrays with the images in front.

    Attributes:
      conditions: one or more, mixed by `weights`; encoded, but for `draw_request`.
      unconditional: what guidance steers away from; None where nothing is guided.
      weights: float32 [batch, conditions(, h, w)]; None with a single condition.
      images: whose keys all randomness comes from.
      image_tokens: int32 [batch, h, w], clean tokens to start from; None starts from noise.
      known: tokens to keep; None draws everywhere.
    """

    conditions: tuple[ConditionInputs | Conditioning, ...]
    unconditional: ConditionInputs | Conditioning | None
    weights: Leaf | None
    images: Numbered | None
    image_tokens: Leaf | None = None
    known: Known | None = None

    @property
    def count(self) -> int:
        """Images of the batch."""
        assert self.images is not None
        return len(self.images.seeds)

    def encoded(self, encode: Any) -> Request:
        """With conditions that the networks take, by `encode`; those that are stay."""
        ready = lambda c: encode(c) if isinstance(c, ConditionInputs) else c
        conditions = tuple(ready(c) for c in self.conditions)
        return replace(self, conditions=conditions, unconditional=ready(self.unconditional))


class Form(NamedTuple):
    """What one program is compiled for; all of it is static.

    Attributes:
      settings: the sampler's, as their `program()`.
      grid: (h, w) of the token map.
      joint: conditional and unconditional predictions in one doubled batch.
    """

    settings: TokenSettings | ResampleSettings
    grid: tuple[int, int]
    joint: bool


def encode(
    networks: TokenNetworks, params: Tree, frozen: Tree, inputs: ConditionInputs
) -> Conditioning:
    """Texts and whatever else -> what the predictor is conditioned on."""
    return networks.condition(params, frozen, inputs)


def advance_request(
    networks: TokenNetworks,
    weights: tuple[Tree, Tree],
    request: Request,
    course: Any,
    reached: tuple[Array, Array],
    span: tuple[Array, Array],
    *,
    form: Form,
) -> tuple[Array, Array]:
    """Some steps of a batch: the function that a pipeline compiles.

    Args:
      networks: of the run.
      weights: trained and frozen parameters.
      request: a batch with encoded conditions.
      course: of the settings, padded.
      reached: tokens before these steps, and the complete ones of the step before; int32
        [batch, h, w] each.
      span: the first of the steps, and the one after the last.
      form: of the program.

    Returns:
      The same after these steps.
    """
    return advance(_plan(networks, *weights, request, course, form), reached, *span)


def draw_request(
    networks: TokenNetworks, params: Tree, frozen: Tree, request: Request, course: Any, form: Form
) -> tuple[Array, Array]:
    """Encodes the conditions, samples and decodes: a pipeline's programs as one.

    Args:
      networks: predictor, tokenizer and encoders of the run.
      params: trained parameters.
      frozen: parameters of the frozen networks.
      request: a batch; its conditions are encoded first.
      course: of the settings.
      form: of the program.

    Returns:
      Images float32 [batch, H, W, 3] and tokens int32 [batch, h, w].
    """
    request = request.encoded(lambda inputs: encode(networks, params, frozen, inputs))
    tokens = run_request(networks, (params, frozen), request, course, form)
    return networks.decode_tokens(frozen, tokens), tokens


def run_request(
    networks: TokenNetworks, weights: tuple[Tree, Tree], request: Request, course: Any, form: Form
) -> Array:
    """All steps of a batch with encoded conditions: tokens int32 [batch, h, w]."""
    return run(_plan(networks, *weights, request, course, form), False)


def _plan(
    networks: TokenNetworks, params: Tree, frozen: Tree, request: Request, course: Any, form: Form
) -> Loop:
    settings, grid, joint = form
    assert request.images is not None
    predictor, keys, known = networks.predictor, request.images.keys(), request.known
    tokens = jnp.zeros((keys.shape[0], *grid), jnp.int32)
    denoise = _denoise(networks, params, request, tokens, joint)
    codebook = frozen["vqgan"]["params"]["codebook"]
    vocabulary = Vocabulary(predictor.codebook_size, predictor.mask_token, codebook)
    image_tokens: Any = request.image_tokens
    if isinstance(settings, ResampleSettings):
        return resample.plan(denoise, keys, image_tokens, settings, vocabulary, known, course)
    start, shape = Start(image_tokens=image_tokens, known=known), (keys.shape[0], *grid)
    return plan_tokens(denoise, keys, shape, settings, vocabulary, start, course)


def _denoise(
    networks: TokenNetworks, params: Tree, request: Request, tokens: Array, joint: bool
) -> Denoise:
    """The guided prediction for a batch's conditions, mixed where there are several."""
    # Compiled as functions of their own, so that two predictions of equal shapes are traced once.
    prepare, logits = jax.jit(networks.prepare), jax.jit(networks.logits)

    def predict(cond: Any, copies: int = 1) -> Predict:
        made = prepare(params, jnp.concatenate([tokens] * copies), cond)
        return lambda tokens, t: logits(made, tokens, t, cond)

    conds, uncond = request.conditions, request.unconditional
    conditional = predict(conds[0])
    if request.weights is not None:
        conditional = mix([predict(c) for c in conds], request.weights)
    if uncond is None:
        return guide(conditional, None)
    if joint and len(conds) == 1 and _same_shapes(conds[0], uncond):
        both: Conditioning = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), conds[0], uncond)
        return guide_jointly(conditional, predict(both, 2))
    return guide(conditional, predict(uncond))


def _same_shapes(first: Tree, second: Tree) -> bool:
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    return shapes(first) == shapes(second)


# --- checks of what a caller gives, before anything is compiled


def check_start(
    settings: TokenSettings | ResampleSettings,
    image_tokens: Any,
    known: Known | None,
    sampler: Mapping[str, Any],
) -> None:
    """Raises ValueError where settings that start from an image come without one."""
    if isinstance(settings, ResampleSettings):
        settings.check()
        if image_tokens is None:
            raise ValueError("resampling edits an image; give image_tokens")
        unused = sorted(name for name, value in sampler.items() if value is not None)
        if unused:
            raise ValueError(f"mask-free editing runs no sampler: {', '.join(unused)} unused")
    elif image_tokens is None and known is None and not starts_from_noise(settings):
        raise ValueError("t_start (or strength) below 1 starts from an image; give image_tokens")


def check_weights(
    given: Any, count: int, conditions: int, grid: tuple[int, int]
) -> np.ndarray | None:
    """Mixing weights of `count` images, their sum 1: float32 [count, conditions(, h, w)].

    None is equal weights; the result is None where there is nothing to mix.

    Raises:
      ValueError: another shape, or weights without a positive sum.
    """
    if given is None:
        if conditions == 1:
            return None
        return np.full((count, conditions), 1.0 / conditions, np.float32)
    try:
        weights = np.asarray(given, np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"weights are {given!r}; give one number per condition") from None
    if weights.ndim == 1:
        weights = np.broadcast_to(weights, (count, *weights.shape))
    shapes = ((count, conditions), (count, conditions, *grid))
    if weights.shape not in shapes:
        raise ValueError(
            f"weights have shape {np.shape(given)}; {conditions} conditions in {count} pictures "
            f"need one weight per condition: [{conditions}], {shapes[0]} or {shapes[1]}"
        )
    if not np.isfinite(weights).all() or not (weights.sum(1) > 0).all():
        raise ValueError("weights must be finite and have a positive sum")
    return weights / weights.sum(1, keepdims=True)


def check_known(known: Known, count: int, grid: tuple[int, int], codes: int) -> Known:
    """Tokens to keep [count, h, w], 0 where they are to be drawn. Raises ValueError."""
    if not isinstance(known, Known):
        raise ValueError(f"known is of type {type(known).__name__}; give Known(tokens, generate)")
    generate = _check_map(known.generate, count, grid, "known.generate").astype(bool)
    kept = np.where(generate, 0, _check_map(known.tokens, count, grid, "known.tokens"))
    return Known(check_tokens(kept, count, grid, "known.tokens", codes), generate)


def check_tokens(
    given: Any, count: int, grid: tuple[int, int], name: str, codes: int
) -> np.ndarray:
    """A token map for each of `count` images, of a tokenizer's codes. Raises ValueError."""
    array = _check_map(given, count, grid, name)
    if not np.issubdtype(array.dtype, np.integer) or array.min() < 0 or array.max() >= codes:
        raise ValueError(
            f"{name} ({array.dtype}, from {array.min()} to {array.max()}) must be whole numbers "
            f"from 0 to {codes - 1}, the tokenizer's codes"
        )
    return array


def _check_map(given: Any, count: int, grid: tuple[int, int], name: str) -> np.ndarray:
    array = np.asarray(given)
    if array.shape != (count, *grid):
        raise ValueError(
            f"{name} has shape {array.shape}; {count} pictures of {grid[0]}x{grid[1]} tokens "
            f"need {(count, *grid)}"
        )
    return array
