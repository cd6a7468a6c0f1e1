"""The train step: a pure function from state and batch to the next state and metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from paella_jax.noise.tokens import sample_keys
from paella_jax.objectives.inputs import Objective, StepInputs
from paella_jax.ops.batch_axis import constrain_batch
from paella_jax.ops.linear import wide_gradients
from paella_jax.training.optim import Pace, make_optimizer, make_schedule
from paella_jax.training.state import TrainState
from paella_jax.typing import Array, Tree

Metrics = dict[str, Array]
# (params, model_state, step, objective settings) -> params, after the optimiser's update
AfterUpdate = Callable[[Tree, Tree, Array], Tree]
TrainStep = Callable[[TrainState, Tree, dict[str, Array], Array, Pace], tuple[TrainState, Metrics]]


def loss_and_gradients(
    objective: Objective, params: Tree, inputs: StepInputs, accumulation: int
) -> tuple[Tree, Metrics, Tree]:
    """Gradients averaged over `accumulation` micro-batches scanned one after the other.

    Returns:
      Gradients, metrics (with "loss") and the new model state.
    """
    value_and_grad = jax.value_and_grad(objective, has_aux=True)

    def one(inputs: StepInputs) -> tuple[Tree, Metrics, Tree]:
        (loss, (metrics, model_state)), gradients = value_and_grad(params, inputs)
        return gradients, {"loss": loss, **metrics}, model_state

    if accumulation == 1:
        return one(inputs)

    # Sample i goes to micro-batch i % accumulation, so every device keeps its own samples.
    cut = lambda x: jnp.swapaxes(x.reshape(-1, accumulation, *x.shape[1:]), 0, 1)
    batches, keys = jax.tree.map(cut, inputs.batch), cut(inputs.keys)

    def micro_step(carry: tuple[Tree, Tree], part: Any) -> tuple[tuple[Tree, Tree], Metrics]:
        total, model_state = carry
        batch, keys = part
        micro = dataclasses.replace(
            inputs, batch=constrain_batch(batch), keys=keys, model_state=model_state
        )
        gradients, metrics, model_state = one(micro)
        total = jax.tree.map(lambda a, g: a + g / accumulation, total, gradients)
        return (total, model_state), metrics

    zeros = jax.tree.map(jnp.zeros_like, params)
    (gradients, model_state), metrics = jax.lax.scan(
        micro_step, (zeros, inputs.model_state), (batches, keys)
    )
    return gradients, jax.tree.map(lambda m: m.mean(0), metrics), model_state


def make_train_step(
    objective: Objective, config: ConfigDict, after_update: AfterUpdate | None = None
) -> TrainStep:
    """Builds `train_step(state, frozen, batch, base_key, pace) -> (state, metrics)`.

    The schedule's length and highest rate are an argument: runs of every length and rate, and runs
    that are made longer, share one program.
    The step's randomness is `base_key` folded with the step, then with each sample's index in the
    global batch: it depends neither on the mesh nor on accumulation, and nothing needs saving.
    """
    optim = config.optim

    def train_step(
        state: TrainState,
        frozen: Tree,
        batch: dict[str, Array],
        base_key: Array,
        pace: Pace,
    ) -> tuple[TrainState, Metrics]:
        optimizer, schedule = make_optimizer(optim, pace), make_schedule(optim, pace)
        batch = constrain_batch(batch)
        size = jax.tree.leaves(batch)[0].shape[0]
        keys = sample_keys(jax.random.fold_in(base_key, state.step), jnp.arange(size))
        inputs = StepInputs(batch, keys, state.step, state.model_state, frozen)
        # Runs from before there was a choice go on as they began.
        with wide_gradients(optim.get("gradient_reduction", "compute") == "float32"):
            gradients, metrics, model_state = loss_and_gradients(
                objective, state.params, inputs, optim.accumulation
            )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if after_update is not None:
            params = after_update(params, model_state, state.step)
        metrics |= {
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        ema = state.ema_params
        if ema:
            decay = jnp.where(state.step < optim.ema_start, 0.0, optim.ema_decay)
            # Young averages forget their random start faster (the usual warm-up of the decay).
            decay = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
            ema = jax.tree.map(lambda a, p: a * decay + p * (1.0 - decay), ema, params)
        return TrainState(state.step + 1, params, ema, opt_state, model_state), metrics

    return train_step
