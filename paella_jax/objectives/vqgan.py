"""Training a tokenizer: reconstruction, codebook, optional adversarial and perceptual losses.

Weights and switches follow docs/models/paella.md 5. Dead codes: how often every code is used is
tracked as a moving average; every `revive_every` steps, codes used less than `dead_share` of the
mean are replaced by badly represented latents of the current batch (the first time, step 0, that
is all of them, so the codebook starts from data). Codes are left alone from `revive_until` on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.noise.tokens import split_keys, uniform_per_sample
from paella_jax.objectives.inputs import Objective, StepInputs, images_from_batch
from paella_jax.typing import Array, Tree

POINTS = ("adversarial_start", "revive_until", "settle_statistics_from")  # in a training


def code_usage(tokens: Array, codebook_size: int) -> Array:
    """Fraction of positions holding each code times the codebook size: float32 [codes], mean 1."""
    counts = jnp.zeros((codebook_size,)).at[tokens.reshape(-1)].add(1.0)
    return counts * (codebook_size / tokens.size)


def perplexity(usage: Array) -> Array:
    """exp(entropy) of the code distribution: how many codes are used as if evenly."""
    p = usage / jnp.maximum(usage.sum(), 1e-9)
    return jnp.exp(-(p * jnp.log(jnp.maximum(p, 1e-9))).sum())


def initial_code_state(codebook_size: int, code_channels: int) -> dict[str, Array]:
    """Usage zero: every code is dead until it is seen, so all are drawn from the first batch."""
    return {
        "usage": jnp.zeros((codebook_size,)),
        "candidates": jnp.zeros((codebook_size, code_channels)),
    }


def _candidates(key: Array, latents: Array, codes: Array, count: int) -> Array:
    """`count` latent vectors of the batch, drawn in proportion to their squared distance to codes.

    That is k-means++'s rule: most positions of an image look alike, so drawn evenly nearly all
    candidates would repeat a code that is there already. A little jitter keeps two codes apart, in
    units of the latents' own spread: not every tokenizer normalises them.
    """
    pick_key, jitter_key = jax.random.split(key)
    flat = latents.reshape(-1, latents.shape[-1])
    mass = jnp.cumsum(jnp.square(flat - codes.reshape(flat.shape)).sum(-1) + 1e-12)
    targets = jax.random.uniform(pick_key, (count,)) * mass[-1]
    chosen = flat[jnp.minimum(jnp.searchsorted(mass, targets), flat.shape[0] - 1)]
    spread = 0.01 * flat.std(0, keepdims=True)
    return chosen + spread * jax.random.normal(jitter_key, chosen.shape)


def vqgan_objective(
    reconstruct: Callable[..., Any],
    discriminate: Callable[..., tuple[Array, Tree]] | None,
    perceptual: Callable[[Tree, Array, Array], Array] | None,
    settings: ConfigDict,
    codebook_size: int,
) -> Objective:
    """Builds the objective.

    Generator and discriminator are updated together by one gradient: the generator's term sees
    the discriminator's parameters as constants, and the other way round.

    Args:
      reconstruct: (params, state, images, quantized, settled) -> (Reconstruction, new state), of
        the whole trees.
      discriminate: (params, state, images) -> (logits, new state); None without adversarial loss.
      perceptual: (frozen, a, b) -> distance [batch]; None without perceptual loss.
      settings: `config.objective` of configs/vqgan.py, `in_steps`.
      codebook_size: number of codes.
    """

    def objective(params: Tree, inputs: StepInputs) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        images = images_from_batch(inputs.batch)
        raw_keys, code_keys = split_keys(inputs.keys)
        quantized = uniform_per_sample(raw_keys) >= settings.unquantized_share
        settled = inputs.step >= settings.settle_statistics_from
        output, state = reconstruct(params, inputs.model_state, images, quantized, settled)
        state = dict(state)
        usage = code_usage(output.tokens, codebook_size)
        mse = jnp.square(output.images - images).mean()
        metrics = {
            "mse": mse,
            "codebook_loss": output.codebook_loss,
            "codes_used": (state["codes"]["usage"] > settings.dead_share).mean(),
            "perplexity": perplexity(usage),
        }
        loss = (
            settings.reconstruction_weight * mse
            + settings.codebook_weight * output.codebook_loss
            + settings.commitment_weight * output.commitment_loss
        )
        state["codes"] = _code_state(state["codes"], usage, code_keys[0], output, settings)
        if perceptual is not None:
            metrics["perceptual"] = perceptual(inputs.frozen, output.images, images).mean()
            loss += settings.perceptual_weight * metrics["perceptual"]
        if discriminate is not None:
            weights, before = params["discriminator"], state["discriminator"]
            extra, state["discriminator"], losses = _adversarial_terms(
                discriminate, weights, before, images, output.images, inputs.step, settings
            )
            loss += extra
            metrics |= losses
        return loss, (metrics, state)

    return objective


def _code_state(codes: Tree, usage: Array, key: Array, output: Any, settings: ConfigDict) -> Tree:
    """The running usage of every code, and latents that could replace a dead one."""
    decay, latents = settings.usage_decay, jax.lax.stop_gradient(output.latents)
    return {
        "usage": decay * codes["usage"] + (1.0 - decay) * usage,
        "candidates": _candidates(key, latents, output.codes, usage.size),
    }


def _adversarial_terms(
    discriminate: Callable[..., tuple[Array, Tree]],
    weights: Tree,
    state: Tree,
    images: Array,
    rebuilt: Array,
    step: Array,
    settings: ConfigDict,
) -> tuple[Array, Tree, dict[str, Array]]:
    """Both sides' losses, zero before `adversarial_start`; the discriminator's new state."""
    kind = settings.adversarial_loss
    active = (step >= settings.adversarial_start).astype(jnp.float32)
    fooling, _ = discriminate(jax.lax.stop_gradient(weights), state, rebuilt)
    fake, _ = discriminate(weights, state, jax.lax.stop_gradient(rebuilt))
    real, state = discriminate(weights, state, images)
    generator = generator_loss(fooling, kind)
    discriminator = discriminator_loss(real, fake, kind)
    metrics = {"generator_loss": generator, "discriminator_loss": discriminator}
    return active * (settings.adversarial_weight * generator + discriminator), state, metrics


def revive_dead_codes(params: Tree, model_state: Tree, step: Array, settings: ConfigDict) -> Tree:
    """Replaces dead codes by latents of the last batch on the steps named in the settings."""
    if not settings.revive_every:
        return params
    codes = model_state["codes"]
    due = (step % settings.revive_every == 0) & (step < settings.revive_until)
    dead = (codes["usage"] < settings.dead_share) & due
    vqgan = params["vqgan"]
    codebook = jnp.where(dead[:, None], codes["candidates"], vqgan["codebook"])
    return params | {"vqgan": vqgan | {"codebook": codebook}}


def in_steps(config: ConfigDict) -> ConfigDict:
    """The settings of `config.objective` with every point in time as a step.

    A value of at most 1 is a fraction of `num_steps`, so that a shorter run keeps its shape.
    """
    settings = config.objective.copy_and_resolve_references()
    for name in POINTS:
        value = settings[name]
        settings[name] = type(value)(round(value * config.num_steps) if value <= 1 else value)
    return settings


KINDS = ("hinge", "nonsaturating")


def generator_loss(fake_logits: Array, kind: str) -> Array:
    """What the VQGAN minimises: fakes should look real.

    Args:
      fake_logits: the discriminator's logits of reconstructions, any shape.
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
