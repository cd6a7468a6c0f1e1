"""The compiled program behind a token pipeline: conditions in, images out."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from paella_jax.families.token_networks import TokenNetworks
from paella_jax.models.conditioning import Conditioning, ConditionInputs, Leaf
from paella_jax.sampling.guidance import Denoise, guide, guide_jointly, mix
from paella_jax.sampling.resample import ResampleSettings, resample
from paella_jax.sampling.token_loop import Known, Ramps, Start, Vocabulary
from paella_jax.sampling.token_sampler import TokenSettings, draw_tokens
from paella_jax.typing import Array, Tree


@struct.dataclass
class Request:
    """Everything a batch of images is made from; arrays with the images in front.

    Attributes:
      conditions: one or more, mixed by `weights`.
      unconditional: what guidance steers away from.
      weights: float32 [batch, conditions(, h, w)]; None with a single condition.
      keys: [batch] PRNG keys.
      image_tokens: int32 [batch, h, w], clean tokens to start from; None starts from noise.
      known: tokens to keep; None draws everywhere.
    """

    conditions: tuple[ConditionInputs, ...]
    unconditional: ConditionInputs
    weights: Leaf | None
    keys: Leaf
    image_tokens: Leaf | None = None
    known: Known | None = None


class Form(NamedTuple):
    """What one program is compiled for; all of it is static.

    Attributes:
      settings: the sampler's, without its ramps.
      grid: (h, w) of the token map.
      joint: conditional and unconditional predictions in one doubled batch.
      trace: also return the tokens of every step.
    """

    settings: TokenSettings | ResampleSettings
    grid: tuple[int, int]
    joint: bool
    trace: bool


def draw_request(
    networks: TokenNetworks, params: Tree, frozen: Tree, request: Request, ramps: Ramps, form: Form
) -> tuple[Array, ...]:
    """Encodes the conditions, samples and decodes: the function a pipeline compiles.

    Args:
      networks: predictor, tokenizer and encoders of the run.
      params: trained parameters.
      frozen: parameters of the frozen networks.
      request: a batch.
      ramps: temperature and guidance of every step.
      form: of the program.

    Returns:
      Images float32 [batch, H, W, 3], tokens int32 [batch, h, w] and with `trace` int32
      [batch, steps, h, w].
    """
    settings, grid, joint, trace = form
    denoise = _denoise(networks, params, frozen, request, joint)
    predictor, keys, known = networks.predictor, request.keys, request.known
    codebook = frozen["vqgan"]["params"]["codebook"]
    vocabulary = Vocabulary(predictor.codebook_size, predictor.mask_token, codebook)
    image_tokens: Any = request.image_tokens
    if isinstance(settings, ResampleSettings):
        out = resample(denoise, keys, image_tokens, settings, vocabulary, known, ramps, trace)
    else:
        start, shape = Start(image_tokens=image_tokens, known=known), (keys.shape[0], *grid)
        out = draw_tokens(denoise, keys, shape, settings, vocabulary, start, ramps, trace)
    if not trace:
        return networks.decode_tokens(frozen, out), out
    tokens, history = out
    return networks.decode_tokens(frozen, tokens), tokens, jnp.moveaxis(history, 0, 1)


def _denoise(
    networks: TokenNetworks, params: Tree, frozen: Tree, request: Request, joint: bool
) -> Denoise:
    """The guided prediction for a batch's conditions, mixed where there are several."""
    encode = lambda inputs: networks.condition(params, frozen, inputs)
    predict = lambda c: lambda tokens, t: networks.logits(params, tokens, t, c)
    conds, uncond = [encode(c) for c in request.conditions], encode(request.unconditional)
    conditional = predict(conds[0])
    if request.weights is not None:
        conditional = mix([predict(c) for c in conds], request.weights)
    if joint and len(conds) == 1 and _same_shapes(conds[0], uncond):
        both: Conditioning = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), conds[0], uncond)
        return guide_jointly(conditional, predict(both))
    return guide(conditional, predict(uncond))


def _same_shapes(first: Tree, second: Tree) -> bool:
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    return shapes(first) == shapes(second)
