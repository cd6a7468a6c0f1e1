"""Which cells a comparison trains, with which configs, on how many images."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.comparison.training import Training
from paella_jax.comparison.variants import samplers_of, variant_of, variants_of
from paella_jax.config import ConfigError, differing_fields, load_config, shipped, with_overrides
from paella_jax.evaluation.flops import count_flops
from paella_jax.families.abstract import abstract_tokens
from paella_jax.families.cells import check_cell
from paella_jax.families.networks import NETWORKS
from paella_jax.objectives.inputs import StepInputs
from paella_jax.training.metrics import check_packages
from paella_jax.typing import Tree

BUDGETS = ("flops", "seconds", "parameters")
# What makes two trainings different cells, with the rate and number of updates that follow.
OF_A_CELL = ("cell.", "seed", "objective.density", "optim.learning_rate", "optim.warmup_steps",
             "optim.decay_steps", "num_steps", "checkpoint.every")  # fmt: skip
SCALES = tuple(1.0 + step / 16 for step in range(-12, 52))
# Blocks and fields that change nothing of a network's size.
NOT_OF_SIZE = ("seed", "num_steps", "tokenizer", "optim", "mesh", "checkpoint", "log", "sampler",
               "evaluation")  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Cost of a network with its text encoder, both of which are trained.

    Attributes:
      parameters: trained scalars.
      flops: one image's forward pass through predictor and text encoder.
    """

    parameters: int
    flops: int


_known_sizes: dict[str, Size] = {}


def trainings(config: ConfigDict) -> list[Training]:
    """Every network to train, seeds outermost so that an early look sees all networks.

    Raises:
      ConfigError: an unknown budget, or nothing to compare.
    """
    if config.budget.kind not in BUDGETS:
        raise ConfigError(f"budget.kind must be one of {BUDGETS}, got {config.budget.kind!r}")
    cells = config.cells
    if config.budget.reference not in cells.networks:
        raise ConfigError(
            f"budget.reference {config.budget.reference!r} is none of cells.networks "
            f"{cells.networks}"
        )
    for name in ("corruptions", "networks", "samplers"):
        if not cells[name]:
            raise ConfigError(f"cells.{name} is empty: there is nothing to compare")
    unknown = [name for name in cells.networks if name not in config.learning_rate]
    if unknown:
        raise ConfigError(
            f"cells.networks has {unknown} without a learning_rate; known: "
            f"{sorted(config.learning_rate)}"
        )
    if not config.seeds:
        raise ConfigError("seeds is empty; give at least one")
    if len(set(config.seeds)) < len(config.seeds):
        raise ConfigError(f"seeds {config.seeds} has one twice")
    for name in ("images", "seconds"):
        if config.budget[name] <= 0:
            raise ConfigError(f"budget.{name} must be positive, got {config.budget[name]}")
    grid = [
        Training(corruption, network, seed)
        for seed in config.seeds
        for network in cells.networks
        for corruption in cells.corruptions
    ]
    return grid + [
        Training(corruption, network, seed, name)
        for seed in config.seeds
        for network, corruption, name in variants_of(config)
    ]


def training_config(config: ConfigDict, training: Training, tokenizer: Path | str) -> ConfigDict:
    """The config of one training without its budget: the shared recipe and the cell's three fields.

    Raises:
      ConfigError: the recipe has no such field, or the cell makes no sense.
    """
    overrides = [*data_overrides(config), *(f"--config.{text}" for text in config.overrides)]
    run = load_config(shipped(config.training), overrides)
    check_packages(run)
    if run.method != "tokens":
        raise ConfigError(f"training {config.training!r} is no token predictor's config")
    run.tokenizer = str(tokenizer)
    run.seed = training.seed
    run.cell.corruption = training.corruption
    run.cell.network = training.network
    run.objective.density = config.cells[f"{training.corruption}_density"]
    if training.variant:
        run = with_overrides(run, variant_of(config, training).overrides)
    rates, pair = config.learning_rate, f"{training.network}_{training.corruption}"
    run.optim.learning_rate = rates.get(pair, rates[training.network])
    run.log.preview_every = 0
    run.checkpoint.keep = 1
    for sampler in samplers_of(config, training):
        run.cell.sampler = sampler
        check_cell(run)
    if config.budget.kind == "parameters" and training.network != config.budget.reference:
        _match_parameters(run, config, training)
    return run


def data_overrides(config: ConfigDict) -> list[str]:
    """What a comparison's `data` block changes of the tokenizer's data and of the trainings'."""
    given = {name: value for name, value in config.data.items() if value is not None}
    return [f"--config.data.{name}={value}" for name, value in given.items()]


def _match_parameters(run: ConfigDict, config: ConfigDict, training: Training) -> None:
    """Scales a network's widths until it has about the reference's number of parameters."""
    reference = Training(training.corruption, config.budget.reference, training.seed)
    wanted = size_of(training_config(config, reference, run.tokenizer)).parameters
    network = NETWORKS[training.network]
    block = network.block
    start = {name: run[block][name] for name in network.widths}
    heads = 8 * max(max(_each(run[block].get(name, 1))) for name in ("num_heads", "conv_heads"))

    def set_scale(scale: float) -> None:
        for name, value in start.items():
            scaled = tuple(max(1, round(x * scale / heads)) * heads for x in _each(value))
            run[block][name] = scaled if isinstance(value, tuple) else scaled[0]

    def parameters(scale: float) -> int:
        set_scale(scale)
        return size_of(run).parameters

    # Parameters rise with the widths: the first scale with at least as many, or the one before.
    above = min(bisect.bisect_left(SCALES, wanted, key=parameters), len(SCALES) - 1)
    close = SCALES[max(above - 1, 0) : above + 1]
    set_scale(min(close, key=lambda scale: abs(parameters(scale) - wanted)))


def _each(value: int | tuple[int, ...]) -> tuple[int, ...]:
    """A field that is one number, or one per level."""
    return value if isinstance(value, tuple) else (value,)


def size_of(run: ConfigDict) -> Size:
    """Parameters and forward FLOPs of a config's networks; nothing is computed.

    What was traced once in this process is known: a search asks for the same networks a hundred
    times.
    """
    networks = {name: value for name, value in run.items() if name not in NOT_OF_SIZE}
    key = ConfigDict(networks).to_json_best_effort(sort_keys=True)
    if key not in _known_sizes:
        _known_sizes[key] = _traced_size(run)
    return _known_sizes[key]


def _traced_size(run: ConfigDict) -> Size:
    method = abstract_tokens(run)
    params = jax.eval_shape(method.init, jax.random.key(0))[0]
    sample = method.transform(method.source[0])
    side = run.data.image_size // 4
    tokens = jax.ShapeDtypeStruct((1, side, side), jnp.int32)
    batch = {name: jnp.asarray(x)[None] for name, x in sample.items() if name != "image"}

    def forward(params: Tree, tokens: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.key(0), 1)
        inputs = StepInputs(batch | {"tokens": tokens}, keys, jnp.zeros((), jnp.int32), {}, {})
        return method.objective(params, inputs)[0]

    count = sum(x.size for x in jax.tree.leaves(params))
    return Size(count, count_flops(forward, params, tokens))


def set_budget(
    run: ConfigDict, config: ConfigDict, size: Size, reference: Size, multiple: float = 1.0
) -> None:
    """Sets `num_steps` so that the training costs what the reference's does (flops, parameters)."""
    images = float(config.budget.images) * multiple
    if config.budget.kind == "flops":
        images *= reference.flops / size.flops
    _set_steps(run, round(images / run.batch_size))
    run.optim.decay_steps = run.num_steps  # so that a shorter training is the beginning of this one


def set_seconds(
    run: ConfigDict, config: ConfigDict, seconds_per_step: float, multiple: float = 1.0
) -> None:
    """Sets `num_steps` so that the training takes a multiple of the budget's seconds."""
    _set_steps(run, round(multiple * config.budget.seconds / seconds_per_step))


def _set_steps(run: ConfigDict, steps: int) -> None:
    run.num_steps = max(steps, 1)
    run.optim.warmup_steps = min(run.optim.warmup_steps, max(run.num_steps // 10, 1))
    run.checkpoint.every = max(run.num_steps // 3, 1)


def check_equal(plans: Iterable[tuple[Training, ConfigDict]]) -> None:
    """Checks that the cells differ in nothing but what makes them cells; variants may.

    Raises:
      ConfigError: they do; the message names the first two and the fields.
    """
    cells = [(training, run) for training, run in plans if not training.variant]
    first, reference = cells[0]
    own = tuple(f"{NETWORKS[name].block}." for name in {t.network for t, _ in cells})
    for training, run in cells[1:]:
        differing = differing_fields(reference, run, ignore=(*OF_A_CELL, *own))
        if differing:
            raise ConfigError(
                f"{first.name} and {training.name} differ in what should be equal:\n  "
                + "\n  ".join(differing)
            )


def check_measure(config: ConfigDict) -> None:
    """Raises ConfigError for settings that would fail only after hours of training."""
    measure = config.measure
    if measure.main_steps not in measure.steps:
        raise ConfigError(
            f"measure.main_steps {measure.main_steps} must be one of measure.steps {measure.steps}"
        )
    least = {
        "images": 8, "real_images": 2, "diversity_images": 2,  # intervals, a covariance, pairs
        "tuning_images": 1, "diversity_prompts": 1, "token_images": 1, "batch_size": 1,
        "classifier_steps": 1, "speed_rounds": 1, "speed_images": 1,
    }  # fmt: skip
    for name, smallest in least.items():
        if measure[name] < smallest:
            raise ConfigError(f"measure.{name} must be at least {smallest}, got {measure[name]}")
    if min(measure.steps) < 1 or len(set(measure.steps)) < len(measure.steps):
        raise ConfigError(f"measure.steps {measure.steps} must be different and at least 1")
    for name in ("guidance", "temperature", "choice_temperature"):
        if not measure[name]:
            raise ConfigError(f"measure.{name} must not be empty")
        for pair in measure[name]:
            is_pair = isinstance(pair, tuple | list) and len(pair) == 2
            if not is_pair and not (name == "guidance" and isinstance(pair, int | float)):
                raise ConfigError(f"measure.{name} has {pair!r}; give pairs (first, last step)")


def describe(rows: Iterable[tuple[Training, ConfigDict, Size]]) -> str:
    """The plan as a table: what each network costs and sees."""
    lines = [f"{'training':<28}{'parameters':>12}{'MFLOP':>8}{'steps':>8}{'images':>9}"]
    for training, run, size in rows:
        lines.append(
            f"{training.name:<28}{size.parameters:>12,}{size.flops / 1e6:>8.0f}"
            f"{run.num_steps:>8}{run.num_steps * run.batch_size:>9,}"
        )
    return "\n".join(lines)
