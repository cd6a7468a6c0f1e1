"""The loss of held-back samples, which a run writes whenever it draws a preview."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.data.loader import Source, make_iterator
from paella_jax.noise.tokens import sample_keys
from paella_jax.objectives.inputs import Objective, StepInputs
from paella_jax.ops.batch_axis import constrain_batch
from paella_jax.training.method import Method
from paella_jax.training.placing import fetch, local_rows, shard_batch
from paella_jax.training.pulse import Program
from paella_jax.training.state import TrainState, mesh_of
from paella_jax.typing import Array, Tree

PREFIX = "validation_"
CHANCE = 2  # added to a run's seed; 0 and 1 are those of its weights and of its steps


def with_validation(config: ConfigDict, method: Method) -> Method:
    """The method with the objective's metrics on held-back samples, as its `validation`.

    They are a step's own, named `validation_loss` and so on, by the weights that images are drawn
    with and without dropout. Every call sees the same samples with the same noise, so that a curve
    of them moves with the weights alone.

    Args:
      config: of the run; about `log.validation_images` samples are seen: whole batches of a step's
        size, at least one. 0 leaves the method as it is.
      method: of the run; one without held-back samples, of which some sources then give those of
        the training, stays as it is, too.
    """
    count = config.log.get("validation_images", 0)  # older runs lack the field
    if not count or not method.validates:
        return method
    source = method.held()
    if not len(source) or _are_the_same(source, method.source):
        return method
    measure = Program("the validation loss", _measure(method.objective, config.seed + CHANCE))

    def validation(state: TrainState, frozen: Tree) -> dict[str, float]:
        weights = state.eval_params, state.model_state, frozen, state.step
        found: dict[str, list[float]] = {}
        for number, batch in enumerate(_batches(config, method, source, count, mesh_of(state))):
            for name, value in measure(*weights, batch, np.int32(number)).items():
                found.setdefault(name, []).append(float(fetch(value)))
        return {PREFIX + name: float(np.mean(values)) for name, values in found.items()}

    return replace(method, validation=validation)


def _are_the_same(source: Source, other: Source) -> bool:
    """Whether two sources have the same samples, by their names, or by the first and the last."""
    if len(source) != len(other):
        return False
    ends = 0, len(source) - 1
    records, others = getattr(source, "records", None), getattr(other, "records", None)
    if records is not None and others is not None:
        return all(records.name(n) == others.name(n) for n in ends)
    same = lambda a, b: all(np.array_equal(a[k], b[k]) for k in a.keys() & b.keys())
    return all(same(source[n], other[n]) for n in ends)


def _measure(objective: Objective, seed: int) -> Callable[..., dict[str, Array]]:
    """(params, model state, frozen, step, batch, the batch's number) -> its metrics."""

    def measure(
        params: Tree,
        model_state: Tree,
        frozen: Tree,
        step: Array,
        batch: dict[str, Array],
        number: Array,
    ) -> dict[str, Array]:
        batch = constrain_batch(batch)
        size = jax.tree.leaves(batch)[0].shape[0]
        keys = sample_keys(jax.random.fold_in(jax.random.key(seed), number), jnp.arange(size))
        inputs = StepInputs(batch, keys, step, model_state, frozen, dropout=False)
        loss, (metrics, _) = objective(params, inputs)
        return {"loss": loss, **metrics}

    return measure


def _batches(
    config: ConfigDict, method: Method, source: Source, count: int, mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    """The same ones whenever they are asked for, of the size that a step works on at a time."""
    size = config.batch_size // config.optim.accumulation
    data = make_iterator(
        source,
        method.transform,
        batch_size=size,
        seed=config.seed,
        rows=local_rows(size, mesh),
        threads=config.data.threads,
        prefetch=2,
    )
    for local in islice(data, -(-min(count, len(source)) // size)):
        yield shard_batch(local, size, mesh)
