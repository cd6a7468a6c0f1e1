"""Learning-rate schedule and optimiser."""

from __future__ import annotations

import optax
from ml_collections import ConfigDict


def make_schedule(optim: ConfigDict, num_steps: int) -> optax.Schedule:
    """Linear warm-up from zero, then constant or cosine to zero at `num_steps`."""
    warmup = optax.linear_schedule(0.0, optim.learning_rate, max(optim.warmup_steps, 1))
    rest = max(num_steps - optim.warmup_steps, 1)
    if optim.schedule == "constant":
        after = optax.constant_schedule(optim.learning_rate)
    elif optim.schedule == "cosine":
        after = optax.cosine_decay_schedule(optim.learning_rate, rest)
    else:
        raise ValueError(f"optim.schedule must be constant or cosine, got {optim.schedule!r}")
    return optax.join_schedules([warmup, after], [optim.warmup_steps])


def make_optimizer(optim: ConfigDict, num_steps: int) -> optax.GradientTransformation:
    """AdamW after clipping by global norm; decay on every parameter, as the reference."""
    clip = optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity()
    adamw = optax.adamw(
        make_schedule(optim, num_steps),
        b1=optim.beta1,
        b2=optim.beta2,
        eps=optim.epsilon,
        weight_decay=optim.weight_decay,
    )
    return optax.chain(clip, adamw)
