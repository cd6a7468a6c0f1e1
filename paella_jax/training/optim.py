"""Learning-rate schedule and optimiser."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, path_aware_map
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.typing import Array, Tree

KINDS = ("adamw", "adafactor", "muon")
REDUCTIONS = ("float32", "compute")
MOMENTUM_PRECISIONS = ("float32", "bfloat16")
MIN_FACTORED_SIZE = 128  # matrices with a smaller side keep their full second moments
MUON_MOMENTUM, MUON_RMS = 0.95, 0.2  # of their papers
MAX_UPDATE_RMS = 1.0  # of one array's scaled gradient: Adafactor's own clipping


class Pace(NamedTuple):
    """What of a schedule the train step is given, so that one program serves all runs.

    Attributes:
      num_steps: int32 scalar, at which the cosine ends.
      learning_rate: float32 scalar, the highest.
    """

    num_steps: int | np.ndarray | Array
    learning_rate: float | np.ndarray | Array


def pace_of(config: ConfigDict) -> Pace:
    """Of a run."""
    end = config.optim.get("decay_steps", 0) or config.num_steps  # older runs lack the field
    return Pace(np.array(end, np.int32), np.array(config.optim.learning_rate, np.float32))


def make_schedule(optim: ConfigDict, pace: Pace) -> optax.Schedule:
    """Linear warm-up from zero, then constant, or cosine to zero at `pace.num_steps`.

    Args:
      optim: the config's block.
      pace: traced in the train step.
    """
    peak = pace.learning_rate
    warmup = optax.linear_schedule(0.0, peak, max(optim.warmup_steps, 1))
    if optim.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif optim.schedule == "cosine":
        after = _cosine_to_zero(peak, pace.num_steps - optim.warmup_steps)
    else:
        raise ValueError(f"optim.schedule must be constant or cosine, got {optim.schedule!r}")
    return optax.join_schedules([warmup, after], [optim.warmup_steps])


def _cosine_to_zero(peak: Any, num_steps: Any) -> optax.Schedule:
    """`optax.cosine_decay_schedule` of a traced length, to the bit.

    A division by a constant compiles to a product with its inverse, so this multiplies too.
    """
    length = jnp.maximum(jnp.asarray(num_steps, jnp.float32), 1.0)
    angle = jnp.pi * (1.0 / length)
    return lambda step: peak * (0.5 * (1.0 + jnp.cos(jnp.minimum(step, length) * angle)))


def check_optim(optim: ConfigDict) -> None:
    """Raises ConfigError for an optimiser, a beta or a pattern that cannot be."""
    choices = {
        "kind": KINDS,
        "gradient_reduction": REDUCTIONS,
        "momentum_precision": MOMENTUM_PRECISIONS,
    }
    for name, known in choices.items():
        if optim.get(name, known[0]) not in known:
            raise ConfigError(
                f"optim.{name} must be one of {', '.join(known)}, got {optim[name]!r}"
            )
    for name in ("beta1", "beta2"):
        if not 0.0 <= optim[name] < 1.0:
            raise ConfigError(f"optim.{name} must be at least 0 and below 1, got {optim[name]}")
    try:
        re.compile(optim.decay_pattern)
    except re.error as error:
        raise ConfigError(
            f"optim.decay_pattern {optim.decay_pattern!r} is no regex: {error}"
        ) from error


def make_optimizer(optim: ConfigDict, pace: Pace) -> optax.GradientTransformation:
    """AdamW, Adafactor or Muon after clipping by global norm, with decoupled weight decay.

    The decay falls on every parameter, as in Paella's reference, or on those whose path matches
    `optim.decay_pattern`. First moments are kept in `optim.momentum_precision`; second moments are
    always float32, since an average that moves by a thousandth of itself stands still in bfloat16.

    Raises:
      ConfigError: settings that cannot be (`check_optim`); from the optimiser's `init`, also where
        it only sees shapes: a pattern that matches no parameter.
    """
    check_optim(optim)
    clip = optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity()
    schedule = make_schedule(optim, pace)
    mask = decay_mask(optim.decay_pattern) if optim.decay_pattern else None
    if optim.kind == "adafactor":
        return optax.chain(clip, _adafactor(optim, schedule, mask))
    if optim.kind == "muon":
        return optax.chain(clip, _muon(optim, schedule, mask))
    adamw = optax.adamw(
        schedule,
        b1=optim.beta1,
        b2=optim.beta2,
        eps=optim.epsilon,
        mu_dtype=momentum_type(optim),
        weight_decay=optim.weight_decay,
        mask=mask,
    )
    return optax.chain(clip, adamw)


def momentum_type(optim: ConfigDict) -> jnp.dtype:
    """In which the first moments are kept; older runs lack the field."""
    return jnp.dtype(optim.get("momentum_precision", "float32"))


def decay_mask(pattern: str) -> Callable[[Tree], Tree]:
    """A function from parameters to a tree of bools: the regex is found in "block/.../kernel".

    Raises:
      ConfigError: when called, if it is found in no path.
    """

    def mask(params: Tree) -> Tree:
        chosen = path_aware_map(
            lambda path, _: bool(re.search(pattern, "/".join(map(str, path)))), params
        )
        if not any(jax.tree.leaves(chosen)):
            example = next(iter(flatten_dict(params, sep="/")), "(no parameters)")
            raise ConfigError(
                f"optim.decay_pattern {pattern!r} matches no parameter; a path looks like "
                f"{example}; leave it empty to decay every parameter"
            )
        return chosen

    return mask


def _muon(
    optim: ConfigDict, schedule: optax.Schedule, mask: Callable[[Tree], Tree] | None
) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for the kernels of linear layers, AdamW for everything else.

    A matrix's update is made orthogonal and scaled to the root mean square that AdamW's have (Liu
    et al. 2025, "Muon is scalable for LLM training"), so that one learning rate serves both. Built
    from optax's parts, since in `optax.contrib.muon` the mask of the decay leaves out Adam's.
    """
    as_loud = lambda update: update * (MUON_RMS * max(update.shape) ** 0.5)
    rows_and_columns = lambda tree: jax.tree.map(
        lambda _: optax.contrib.MuonDimensionNumbers(), tree
    )
    matrix = optax.chain(
        optax.contrib.scale_by_muon(
            beta=MUON_MOMENTUM,
            mu_dtype=momentum_type(optim),
            weight_dimension_numbers=rows_and_columns,
        ),
        optax.stateless(lambda updates, _: jax.tree.map(as_loud, updates)),
    )
    adam = optax.scale_by_adam(
        b1=optim.beta1, b2=optim.beta2, eps=optim.epsilon, mu_dtype=momentum_type(optim)
    )
    return optax.chain(
        optax.multi_transform({"matrix": matrix, "rest": adam}, _kinds_of),
        optax.add_decayed_weights(optim.weight_decay, mask),
        optax.scale_by_learning_rate(schedule),
    )


def _kinds_of(params: Tree) -> Tree:
    """What Muon updates: not tables and classifiers, whose rows are codes, nor convolutions.

    Adapters (LoRA) have other names and are all AdamW's.
    """
    is_matrix = lambda path, x: x.ndim == 2 and str(path[-1]).endswith("kernel")
    return path_aware_map(lambda path, x: "matrix" if is_matrix(path, x) else "rest", params)


def _adafactor(
    optim: ConfigDict, schedule: optax.Schedule, mask: Callable[[Tree], Tree] | None
) -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern 2018) as MUSE's settings name it: docs/models/muse.md 1.2.

    Built from optax's parts, as `optax.adafactor` differs from those settings: it scales steps by
    the size of the parameters, raises beta2 towards 1 with the step, and does not scale the decay
    by the learning rate. `optim.epsilon` is Adam's; Adafactor's 1e-30 only guards against 0/0.
    What MUSE leaves open: the momentum is of the scaled gradient and bias-corrected, and each
    array's update is clipped to an RMS of 1, as in the Adafactor paper.
    """
    momentum = optax.identity()
    if optim.beta1:
        momentum = optax.ema(optim.beta1, accumulator_dtype=momentum_type(optim))
    return optax.chain(
        optax.scale_by_factored_rms(
            decay_rate=optim.beta2,
            decay_rate_fn=_unbiased_decay,
            min_dim_size_to_factor=MIN_FACTORED_SIZE,
        ),
        optax.clip_by_block_rms(MAX_UPDATE_RMS),
        momentum,
        optax.add_decayed_weights(optim.weight_decay, mask),
        optax.scale_by_learning_rate(schedule),
    )


def _unbiased_decay(step: Any, beta2: Any) -> Array:
    """The decay whose running average equals the bias-corrected one of a fixed `beta2`.

    Where optax expects `1 - step ** -exponent`; step 0 is the first. Shazeer & Stern, section 7.1.
    """
    before = jnp.asarray(step, jnp.float32)
    return beta2 * (1.0 - beta2**before) / (1.0 - beta2 ** (before + 1.0))
