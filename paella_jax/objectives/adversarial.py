"""Adversarial losses on discriminator logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array
KINDS = ("hinge", "nonsaturating")


def generator_loss(fake_logits: Array, kind: str) -> Array:
    """What the VQGAN minimises: fakes should look real.

    Args:
      fake_logits: of reconstructions, any shape.
      kind: "hinge" (-mean logit), or "nonsaturating" (-log sigmoid, the paper's sigmoid output).
    """
    _check(kind)
    if kind == "hinge":
        return -fake_logits.mean()
    return jax.nn.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Array, fake_logits: Array, kind: str) -> Array:
    """What the discriminator minimises: real above, fake below."""
    _check(kind)
    if kind == "hinge":
        penalty = lambda logits: jax.nn.relu(1.0 - logits)
    else:
        penalty = lambda logits: jax.nn.softplus(-logits)
    return 0.5 * (jnp.mean(penalty(real_logits)) + jnp.mean(penalty(-fake_logits)))


def _check(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"adversarial_loss must be one of {KINDS}, got {kind!r}")
